"""The order desk on Flask: ``gunicorn "example_apps.flask_orders:create_app()"``."""

import json
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, abort, g, redirect, render_template, request
from flask.typing import ResponseReturnValue
from psycopg.rows import dict_row

from flask_pgmonkey import PGMonkey

from .. import shop

db = PGMonkey(row_factory=dict_row)


def create_app() -> Flask:
    app = Flask(__name__, template_folder=str(shop.TEMPLATES))
    app.config.update(PGMONKEY_CONFIG=str(shop.CONFIG), PGMONKEY_RESOLVE_ENV=True)
    db.init_app(app)
    app.context_processor(lambda: {**shop.context("Flask"), "csrf_input": shop.csrf_input(csrf_token())})

    @app.after_request
    def remember_token(response: Response) -> Response:
        if "csrf_token" in g and shop.CSRF_COOKIE not in request.cookies:
            response.set_cookie(shop.CSRF_COOKIE, g.csrf_token, httponly=True, samesite="Lax")
        return response

    @app.after_request
    def show_problem(response: Response) -> Response:
        """Show what went wrong as a page, and to the API as JSON; also the 503 while the database is away."""
        if response.status_code in shop.PROBLEMS:
            title, text = shop.PROBLEMS[response.status_code]
            if request.path.startswith("/api/"):
                response.set_data(json.dumps({"detail": text}))
                response.mimetype = "application/json"
            else:
                status = response.status_code
                response.set_data(render_template("problem.html", status=status, title=title, text=text))
                response.mimetype = "text/html"
        return response

    @app.get("/")
    def index() -> str:
        return desk()

    @app.post("/orders")
    def place_from_form() -> ResponseReturnValue:
        require_own_form()
        try:
            order = place(*shop.parse_form(request.form))
        except shop.BadOrder as error:
            return desk(error), 422
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


def csrf_token() -> str:
    if "csrf_token" not in g:
        g.csrf_token = shop.csrf_token(request.cookies.get(shop.CSRF_COOKIE))
    return str(g.csrf_token)


def require_own_form() -> None:
    """Refuse a form that another site has sent."""
    if not shop.is_own_form(request.cookies.get(shop.CSRF_COOKIE), request.form.get(shop.CSRF_FIELD)):
        abort(403)


def desk(error: Exception | None = None) -> str:
    products, orders = db.fetch_all(shop.PRODUCTS), db.fetch_all(shop.ORDERS, [20])
    return render_template("index.html", products=products, orders=orders, error=error, typed=request.form)


def find(order_id: int) -> dict[str, Any]:
    order: dict[str, Any] | None = db.fetch_one(shop.ORDER, [order_id]) if order_id < 2**63 else None
    return order or abort(404)


def place(customer: str, lines: list[tuple[int, int]]) -> dict[str, Any]:
    """Write the order and take its lines from stock, or raise OutOfStock and leave nothing behind."""
    # A savepoint: what is refused is undone before the page is shown, which is part of the same request.
    with db.transaction():
        order_id, total = db.fetch_value(shop.PLACE, [customer]), 0
        for product, quantity in lines:
            price = db.fetch_value(shop.TAKE, {"id": product, "n": quantity})
            if price is None:
                raise shop.OutOfStock(product, quantity, db.fetch_one(shop.STOCK, [product]))
            db.execute(shop.ADD_LINE, [order_id, product, quantity, price])
            total += price * quantity
        db.execute(shop.TOTAL, [total, order_id])
        db.notify(shop.PLACED, str(order_id))
    return {"id": order_id, "customer": customer, "total_cents": total}
