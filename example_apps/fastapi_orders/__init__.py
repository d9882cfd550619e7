"""The order desk on FastAPI: ``uvicorn example_apps.fastapi_orders:app``."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse
from fastapi.templating import Jinja2Templates
from psycopg.errors import CheckViolation
from psycopg.rows import dict_row
from starlette.responses import Response

from fastapi_pgmonkey import PGMonkey
from pgmonkey import AsyncDatabase, Gap

from .. import shop

pgmonkey = PGMonkey(shop.CONFIG, resolve_env=True, row_factory=dict_row)
app = FastAPI(title="Order desk", lifespan=pgmonkey.lifespan)
templates = Jinja2Templates(shop.TEMPLATES)
# The table refuses a stock below zero.
TAKE = "UPDATE product SET stock = stock - %(n)s WHERE id = %(id)s RETURNING price_cents"
DB = Annotated[AsyncDatabase, Depends(pgmonkey.database)]


@app.get("/", include_in_schema=False)
async def index(request: Request, db: DB) -> Response:
    return await desk(request, db)


@app.post("/orders", include_in_schema=False)
async def place_from_form(request: Request, db: DB) -> Response:
    fields = {name: str(value) for name, value in (await request.form()).items()}
    if not shop.is_own_form(request.cookies.get(shop.CSRF_COOKIE), fields.get(shop.CSRF_FIELD)):
        raise HTTPException(403)
    try:
        order = await place(db, *shop.parse_form(fields.get("customer", ""), fields))
    except shop.BadOrder as error:
        return await desk(request, db, error, 400)
    except shop.OutOfStock as error:
        return await desk(request, db, error, 409)
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
                    yield "event: gap\ndata: \n\n"  # orders may have been missed: the page loads itself again
                elif order := await database.fetch_one(shop.ORDER, [int(note.payload)]):
                    yield shop.event(order)

    headers = {"Access-Control-Allow-Origin": "*", "Cache-Control": "no-store"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


@app.get("/orders/{order_id}", include_in_schema=False)
async def detail(request: Request, order_id: int, db: DB) -> Response:
    context = {"order": await find(db, order_id), "lines": await db.fetch_all(shop.LINES, [order_id])}
    return templates.TemplateResponse(request, "order.html", {"framework": "FastAPI", **context})


@app.get("/orders.csv", include_in_schema=False)
async def export(db: DB) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        yield shop.CSV_HEADER
        async for row in db.stream(shop.EXPORT):
            yield shop.csv_line(row.values())

    return StreamingResponse(lines(), media_type="text/csv")


@app.get("/api/orders")
async def api_list(db: DB) -> dict[str, Any]:
    return {"orders": await db.fetch_all(shop.ORDERS, [100])}


@app.post("/api/orders", status_code=201)
async def api_place(request: Request, db: DB) -> Any:
    try:
        return await place(db, *shop.parse_order(await request.json()))
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, str(error)) from error
    except shop.OutOfStock as error:
        return JSONResponse({"detail": str(error)}, 409)


@app.get("/api/orders/{order_id}")
async def api_detail(order_id: int, db: DB) -> dict[str, Any]:
    return {**await find(db, order_id), "lines": await db.fetch_all(shop.LINES, [order_id])}


async def desk(request: Request, db: AsyncDatabase, error: Exception | None = None, status: int = 200) -> Response:
    context = {"products": await db.fetch_all(shop.PRODUCTS), "orders": await db.fetch_all(shop.ORDERS, [20])}
    token = shop.csrf_token(request.cookies.get(shop.CSRF_COOKIE))
    context |= {"framework": "FastAPI", "error": error, "csrf_input": shop.csrf_input(token)}
    context["live_url"] = shop.LIVE_URL or "/orders/live"
    page = templates.TemplateResponse(request, "index.html", context, status_code=status)
    page.set_cookie(shop.CSRF_COOKIE, token, httponly=True, samesite="lax")
    return page


async def find(db: AsyncDatabase, order_id: int) -> dict[str, Any]:
    order: dict[str, Any] | None = await db.fetch_one(shop.ORDER, [order_id]) if order_id < 2**63 else None
    if order is None:
        raise HTTPException(404)
    return order


async def place(db: AsyncDatabase, customer: str, lines: list[tuple[int, int]]) -> dict[str, Any]:
    """Write the order and take its lines from stock, or raise OutOfStock and leave nothing behind."""
    # A savepoint: the page is shown in the same request when a statement in it failed.
    async with db.transaction():
        order_id, total = await db.fetch_value(shop.PLACE, [customer]), 0
        for product, quantity in lines:
            try:
                price = await db.fetch_value(TAKE, {"id": product, "n": quantity})
            except CheckViolation:  # of the column "stock"; the savepoint around it undoes the order
                price = None
            if price is None:
                raise shop.OutOfStock(f"There are not {quantity} of product {product} left.")
            await db.execute(shop.ADD_LINE, [order_id, product, quantity, price])
            total += price * quantity
        await db.execute(shop.TOTAL, [total, order_id])
        await db.notify(shop.PLACED, str(order_id))
    return {"id": order_id, "customer": customer, "total_cents": total}
