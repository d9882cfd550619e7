"""What the three shops share: the schema, the queries, the pages and one configuration."""

import csv
import io
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

HERE = Path(__file__).parent
CONFIG = HERE / "config.yaml"
TEMPLATES = HERE / "templates"
SCHEMA = (HERE / "schema.sql").read_text(encoding="utf-8")
SEED = (HERE / "seed.sql").read_text(encoding="utf-8")

PRODUCTS = "SELECT id, name, price_cents, stock FROM product ORDER BY id"
ORDERS = "SELECT id, customer, placed_at, total_cents FROM purchase ORDER BY id DESC LIMIT %s"
ORDER = "SELECT id, customer, placed_at, total_cents FROM purchase WHERE id = %s"
LINES = """
    SELECT product.name, line.quantity, line.price_cents
    FROM line JOIN product ON product.id = line.product_id
    WHERE line.purchase_id = %s ORDER BY line.id
"""
STOCK = "SELECT name, stock FROM product WHERE id = %s"
EXPORT = "SELECT id, customer, placed_at, total_cents FROM purchase ORDER BY id"
PLACE = "INSERT INTO purchase (customer, total_cents) VALUES (%s, 0) RETURNING id"
TAKE = "UPDATE product SET stock = stock - %(n)s WHERE id = %(id)s AND stock >= %(n)s RETURNING price_cents"
ADD_LINE = "INSERT INTO line (purchase_id, product_id, quantity, price_cents) VALUES (%s, %s, %s, %s)"
TOTAL = "UPDATE purchase SET total_cents = %s WHERE id = %s"

# The channel on which each shop tells the number of an order, when it is committed.
PLACED = "order_placed"
# Where the pages hear of orders, as server-sent events; the shop on FastAPI sends them, for the pages of all three.
LIVE_URL = os.environ.get("SHOP_LIVE_URL", "")
# The shops that link to each other: "Flask=http://127.0.0.1:8001/ FastAPI=..."
SITES = dict(site.split("=", 1) for site in os.environ.get("SHOP_SITES", "").split())

# What a page says of a request that was refused, by status; an order that was refused is shown in its form instead.
PROBLEMS = {
    400: ("That request is garbled", "The shop could not read what your browser has sent."),
    403: ("Not from this shop", "That form was not sent from a page of this shop. Open the page again and retry."),
    404: ("Not found", "There is no such page, or no such order."),
    405: ("Not allowed", "This address does not take that kind of request."),
    500: ("Something went wrong", "The shop made a mistake. Nothing of this request was stored."),
    503: ("Please try again", "The database is busy or not available. Nothing of this request was stored."),
}


def context(framework: str) -> dict[str, Any]:
    """Return what every page is made with."""
    return {"framework": framework, "sites": SITES, "live_url": LIVE_URL}


def event(order: Mapping[str, object]) -> str:
    """Return the server-sent event for an order."""
    return f"data: {json.dumps(dict(order), default=str)}\n\n"


class BadOrder(ValueError):
    """An order that makes no sense."""


class OutOfStock(Exception):
    """There are fewer of a product than were *asked* for; *found* is its name and stock, or None."""

    def __init__(self, product_id: int, asked: int, found: Mapping[str, Any] | None) -> None:
        if found is None:
            super().__init__(f"There is no product {product_id}, so none are left.")
        elif not found["stock"]:
            super().__init__(f"{found['name']} is sold out: none are left.")
        else:
            super().__init__(f"Only {found['stock']} left of {found['name']}, not {asked}.")


def parse_order(data: object) -> tuple[str, list[tuple[int, int]]]:
    """Return the customer and the (product, quantity) lines of an order as JSON; raise BadOrder otherwise."""
    if not isinstance(data, dict):
        raise BadOrder("an order is an object with 'customer' and 'lines'")
    customer, lines = data.get("customer"), data.get("lines")
    if not isinstance(customer, str) or not 0 < len(customer.strip()) <= 100 or not is_storable(customer):
        raise BadOrder("'customer' is a name of 1 to 100 characters")
    if not isinstance(lines, list) or not lines:
        raise BadOrder("'lines' is a list of at least one line")
    parsed: list[tuple[int, int]] = []
    for line in lines:
        product, quantity = (line.get("product_id"), line.get("quantity")) if isinstance(line, dict) else (None, None)
        if type(product) is not int or type(quantity) is not int or not (0 < product < 2**31 and 0 < quantity < 1000):
            raise BadOrder("a line has a 'product_id' and a 'quantity' of 1 to 999, both whole numbers")
        parsed.append((product, quantity))
    return customer.strip(), sorted(parsed)  # in the order of products, so that two orders cannot deadlock


def is_storable(text: str) -> bool:
    """Tell whether PostgreSQL can store *text*: no NUL, and no half of a character, which JSON may hold."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def parse_form(fields: Mapping[str, str]) -> tuple[str, list[tuple[int, int]]]:
    """Return what `parse_order` does, for the fields ``customer`` and ``quantity-1`` ... of the page's form."""
    lines = []
    for name, value in fields.items():
        product = name.removeprefix("quantity-")
        if product == name or not value.strip(" 0"):
            continue
        # The lengths first: int() refuses a number of some thousand digits.
        if len(product) > 10 or len(value) > 3 or not product.isdecimal() or not value.isdecimal():
            raise BadOrder("A quantity is a whole number from 0 to 999.")
        lines.append({"product_id": int(product), "quantity": int(value)})
    if not lines:
        raise BadOrder("Please choose at least one product.")
    try:
        return parse_order({"customer": fields.get("customer"), "lines": lines})
    except BadOrder:
        raise BadOrder("Please enter your name, in at most 100 characters.") from None


# Against forms of other sites that post here: what the form sends must be what the cookie holds, which another site
# can neither read nor set.  Django has its own, under the same name.
CSRF_FIELD = "csrfmiddlewaretoken"
CSRF_COOKIE = "shop-csrf"


def csrf_token(cookie: str | None) -> str:
    """Return the token for a page: that of the cookie, or a new one to set as the cookie."""
    return cookie or secrets.token_urlsafe()


def csrf_input(token: str) -> Markup:
    """Return the form's hidden field."""
    return Markup('<input type="hidden" name="{}" value="{}">').format(CSRF_FIELD, token)


def is_own_form(cookie: str | None, field: object) -> bool:
    """Tell whether a form came from a page of this shop."""
    return bool(cookie) and secrets.compare_digest(str(cookie).encode(), str(field).encode("utf-8", "replace"))


def csv_line(row: Iterable[object]) -> str:
    """Return one line of the CSV export, in which no text is a formula for a spreadsheet."""
    out = io.StringIO()
    csv.writer(out).writerow(
        f"'{cell}" if isinstance(cell, str) and cell.lstrip().startswith(("=", "+", "-", "@")) else cell for cell in row
    )
    return out.getvalue()


CSV_HEADER = "id,customer,placed_at,total_cents\r\n"
