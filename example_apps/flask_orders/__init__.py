"""The order desk on Flask: ``gunicorn "example_apps.flask_orders:create_app()"``."""

from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, abort, g, redirect, render_template, request
from flask.typing import ResponseReturnValue
from psycopg.errors import CheckViolation
from psycopg.rows import dict_row

from flask_pgmonkey import PGMonkey

from .. import shop

# The table refuses a stock below zero.
TAKE = "UPDATE product SET stock = stock - %(n)s WHERE id = %(id)s RETURNING price_cents"

db = PGMonkey(row_factory=dict_row)


def create_app() -> Flask:
    app = Flask(__name__, template_folder=str(shop.TEMPLATES))
    app.config.update(PGMONKEY_CONFIG=str(shop.CONFIG), PGMONKEY_RESOLVE_ENV=True)
    db.init_app(app)
    app.context_processor(lambda: {"framework": "Flask", "live_url": shop.LIVE_URL})

    @app.before_request
    def protect_forms() -> None:
        g.csrf_token = shop.csrf_token(request.cookies.get(shop.CSRF_COOKIE))

    @app.after_request
    def remember_token(response: Response) -> Response:
        if shop.CSRF_COOKIE not in request.cookies:
            response.set_cookie(shop.CSRF_COOKIE, g.csrf_token, httponly=True, samesite="Lax")
        return response

    @app.get("/")
    def index() -> str:
        return desk()

    @app.post("/orders")
    def place_from_form() -> ResponseReturnValue:
        if not shop.is_own_form(request.cookies.get(shop.CSRF_COOKIE), request.form.get(shop.CSRF_FIELD)):
            abort(403)
        try:
            order = place(*shop.parse_form(request.form.get("customer", ""), request.form))
        except shop.BadOrder as error:
            return desk(error), 400
        except shop.OutOfStock as error:
            return desk(error), 409
        return redirect(f"/orders/{order['id']}", 303)

    @app.get("/orders/<int:order_id>")
    def detail(order_id: int) -> str:
        return render_template("order.html", order=find(order_id), lines=db.fetch_all(shop.LINES, [order_id]))

    @app.get("/orders.csv")
    def export() -> Response:
        rows = db.stream(shop.EXPORT)

        def lines() -> Iterator[str]:
            yield shop.CSV_HEADER
            for row in rows:
                yield shop.csv_line(row.values())

        return Response(lines(), mimetype="text/csv")

    @app.get("/api/orders")
    def api_list() -> dict[str, Any]:
        return {"orders": db.fetch_all(shop.ORDERS, [100])}

    @app.post("/api/orders")
    def api_place() -> ResponseReturnValue:
        try:
            return place(*shop.parse_order(request.get_json(silent=True))), 201
        except (shop.BadOrder, RecursionError) as error:
            return {"detail": str(error)}, 422
        except shop.OutOfStock as error:
            return {"detail": str(error)}, 409

    @app.get("/api/orders/<int:order_id>")
    def api_detail(order_id: int) -> dict[str, Any]:
        return {**find(order_id), "lines": db.fetch_all(shop.LINES, [order_id])}

    return app


def desk(error: Exception | None = None) -> str:
    products, orders = db.fetch_all(shop.PRODUCTS), db.fetch_all(shop.ORDERS, [20])
    return render_template(
        "index.html", products=products, orders=orders, error=error, csrf_input=shop.csrf_input(g.csrf_token)
    )


def find(order_id: int) -> dict[str, Any]:
    order: dict[str, Any] | None = db.fetch_one(shop.ORDER, [order_id]) if order_id < 2**63 else None
    return order or abort(404)


def place(customer: str, lines: list[tuple[int, int]]) -> dict[str, Any]:
    """Write the order and take its lines from stock, or raise OutOfStock and leave nothing behind."""
    # A savepoint: the page is shown in the same request when a statement in it failed.
    with db.transaction():
        order_id, total = db.fetch_value(shop.PLACE, [customer]), 0
        for product, quantity in lines:
            try:
                price = db.fetch_value(TAKE, {"id": product, "n": quantity})
            except CheckViolation:  # of the column "stock"; the savepoint around it undoes the order
                price = None
            if price is None:
                raise shop.OutOfStock(f"There are not {quantity} of product {product} left.")
            db.execute(shop.ADD_LINE, [order_id, product, quantity, price])
            total += price * quantity
        db.execute(shop.TOTAL, [total, order_id])
        db.notify(shop.PLACED, str(order_id))
    return {"id": order_id, "customer": customer, "total_cents": total}
