"""The order desk on FastAPI: ``uvicorn example_apps.fastapi_orders:app``."""

import logging
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse
from fastapi.templating import Jinja2Templates
from psycopg.errors import ConnectionTimeout
from psycopg.rows import dict_row
from pydantic import BaseModel, Field, StringConstraints
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

from fastapi_pgmonkey import PGMonkey
from pgmonkey import AsyncDatabase, Gap, PoolFullError, PoolTimeoutError, ServerUnavailableError

from .. import shop

logger = logging.getLogger(__name__)
pgmonkey = PGMonkey(shop.CONFIG, resolve_env=True, row_factory=dict_row)
app = FastAPI(title="Order desk", lifespan=pgmonkey.lifespan)
templates = Jinja2Templates(shop.TEMPLATES)
DB = Annotated[AsyncDatabase, Depends(pgmonkey.database)]


class OrderLine(BaseModel):
    product_id: Annotated[int, Field(strict=True, gt=0, lt=2**31, examples=[3])]
    quantity: Annotated[int, Field(strict=True, ge=1, le=999, examples=[2])]


class NewOrder(BaseModel):
    customer: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=r"^[^\x00]*$")
    ] = Field(examples=["Ann"])
    lines: Annotated[list[OrderLine], Field(min_length=1)]


class PlacedOrder(BaseModel):
    id: int
    customer: str
    total_cents: int


class Order(PlacedOrder):
    placed_at: datetime


class Orders(BaseModel):
    orders: list[Order]


class LineOfOrder(BaseModel):
    name: str
    quantity: int
    price_cents: int


class OrderWithLines(Order):
    lines: list[LineOfOrder]


class Problem(BaseModel):
    detail: str


# -- pages ------------------------------------------------------------------------------------------------------------


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form, or refuse it if another site has sent it."""
    fields = {name: str(value) for name, value in (await request.form()).items()}
    if not shop.is_own_form(request.cookies.get(shop.CSRF_COOKIE), fields.get(shop.CSRF_FIELD)):
        raise HTTPException(403)
    return fields


OwnForm = Annotated[dict[str, str], Depends(read_form)]


@app.get("/", include_in_schema=False)
async def index(request: Request, db: DB) -> Response:
    return await desk(request, db)


@app.post("/orders", include_in_schema=False)
async def place_from_form(request: Request, form: OwnForm, db: DB) -> Response:
    try:
        order = await place(db, *shop.parse_form(form))
    except shop.BadOrder as error:
        return await desk(request, db, form, error, 422)
    except shop.OutOfStock as error:
        return await desk(request, db, form, error, 409)
    return RedirectResponse(f"/orders/{order['id']}", 303)


@app.get("/orders/live", include_in_schema=False)
async def live() -> StreamingResponse:
    """Tell of each order that is placed in any shop."""
    database = pgmonkey.async_database

    async def events() -> AsyncIterator[str]:
        async with database.listen(shop.PLACED) as notes:
            yield ": listening\n\n"
            async for note in notes:
                if isinstance(note, Gap):
                    yield "event: gap\ndata: \n\n"  # orders may have been missed: the page looks them up
                elif order := await database.fetch_one(shop.ORDER, [int(note.payload)]):
                    yield shop.event(order)

    headers = {"Access-Control-Allow-Origin": "*", "Cache-Control": "no-store"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


@app.get("/orders/{order_id}", include_in_schema=False)
async def detail(request: Request, order_id: int, db: DB) -> Response:
    order = await find(db, order_id)
    return page(request, "order.html", {"order": order, "lines": await db.fetch_all(shop.LINES, [order_id])})


@app.get("/orders.csv", include_in_schema=False)
async def export(db: DB) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        yield shop.CSV_HEADER
        async for row in db.stream(shop.EXPORT):
            yield shop.csv_line(row.values())

    return StreamingResponse(lines(), media_type="text/csv")


# -- the API ----------------------------------------------------------------------------------------------------------


@app.get("/api/orders")
async def list_orders(db: DB) -> Orders:
    """The latest 100 orders."""
    return Orders.model_validate({"orders": await db.fetch_all(shop.ORDERS, [100])})


@app.post("/api/orders", status_code=201, responses={409: {"model": Problem}, 422: {"model": Problem}})
async def place_order(order: NewOrder, db: DB) -> PlacedOrder:
    """Place an order; it is refused with a 409, and leaves nothing behind, if a product is out of stock."""
    # In the order of products, so that two orders cannot deadlock.
    lines = sorted((line.product_id, line.quantity) for line in order.lines)
    try:
        return PlacedOrder.model_validate(await place(db, order.customer, lines))
    except shop.OutOfStock as error:
        raise HTTPException(409, str(error)) from error


@app.get("/api/orders/{order_id}", responses={404: {"model": Problem}, 422: {"model": Problem}})
async def show_order(order_id: int, db: DB) -> OrderWithLines:
    """One order with its lines."""
    order = await find(db, order_id)
    return OrderWithLines.model_validate({**order, "lines": await db.fetch_all(shop.LINES, [order_id])})


# -- what went wrong: a page, or JSON to the API -----------------------------------------------------------------------


@app.exception_handler(StarletteHTTPException)
async def refuse(request: Request, error: StarletteHTTPException) -> Response:
    # FastAPI's answer to JSON that Python's parser gives up on is 400; to other invalid JSON it is 422.
    status = 422 if is_api(request) and error.status_code == 400 else error.status_code
    return problem(request, status, error.detail, error.headers)


@app.exception_handler(RequestValidationError)
async def refuse_invalid(request: Request, error: RequestValidationError) -> Response:
    # Not what was sent, which may be anything.
    found = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    return problem(request, 422 if is_api(request) else 404, "; ".join(found))


@app.exception_handler(PoolTimeoutError)
@app.exception_handler(PoolFullError)
@app.exception_handler(ServerUnavailableError)
@app.exception_handler(ConnectionTimeout)
async def ask_to_retry(request: Request, error: Exception) -> Response:
    logger.warning("%s", " ".join(str(error).split()))
    return problem(request, 503, headers={"Retry-After": "1"})


@app.exception_handler(Exception)
async def fail(request: Request, error: Exception) -> Response:
    return problem(request, 500)


def problem(
    request: Request, status: int, detail: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    title, text = shop.PROBLEMS.get(status, (f"Status {status}", detail))
    if is_api(request):
        return JSONResponse({"detail": detail or text}, status, headers)
    return page(request, "problem.html", {"status": status, "title": title, "text": text}, status, headers)


def is_api(request: Request) -> bool:
    return request.url.path.startswith("/api/")


# -- what they share --------------------------------------------------------------------------------------------------


def page(
    request: Request,
    name: str,
    context: Mapping[str, Any],
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a page with what forms need."""
    token = shop.csrf_token(request.cookies.get(shop.CSRF_COOKIE))
    own = {**shop.context("FastAPI"), "csrf_input": shop.csrf_input(token)}
    own["live_url"] = own["live_url"] or "/orders/live"
    response = templates.TemplateResponse(request, name, {**own, **context}, status_code=status, headers=headers)
    if shop.CSRF_COOKIE not in request.cookies:
        response.set_cookie(shop.CSRF_COOKIE, token, httponly=True, samesite="lax")
    return response


async def desk(
    request: Request,
    db: AsyncDatabase,
    typed: Mapping[str, str] | None = None,
    error: Exception | None = None,
    status: int = 200,
) -> Response:
    context = {"products": await db.fetch_all(shop.PRODUCTS), "orders": await db.fetch_all(shop.ORDERS, [20])}
    return page(request, "index.html", {**context, "typed": typed, "error": error}, status)


async def find(db: AsyncDatabase, order_id: int) -> dict[str, Any]:
    order: dict[str, Any] | None = await db.fetch_one(shop.ORDER, [order_id]) if order_id < 2**63 else None
    if order is None:
        raise HTTPException(404)
    return order


async def place(db: AsyncDatabase, customer: str, lines: list[tuple[int, int]]) -> dict[str, Any]:
    """Write the order and take its lines from stock, or raise OutOfStock and leave nothing behind."""
    # A savepoint: what is refused is undone before the page is shown, which is part of the same request.
    async with db.transaction():
        order_id, total = await db.fetch_value(shop.PLACE, [customer]), 0
        for product, quantity in lines:
            price = await db.fetch_value(shop.TAKE, {"id": product, "n": quantity})
            if price is None:
                raise shop.OutOfStock(product, quantity, await db.fetch_one(shop.STOCK, [product]))
            await db.execute(shop.ADD_LINE, [order_id, product, quantity, price])
            total += price * quantity
        await db.execute(shop.TOTAL, [total, order_id])
        await db.notify(shop.PLACED, str(order_id))
    return {"id": order_id, "customer": customer, "total_cents": total}
