"""What the three shops share: the schema, the queries, the pages and one configuration."""

from pathlib import Path

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
EXPORT = "SELECT id, customer, placed_at, total_cents FROM purchase ORDER BY id"
PLACE = "INSERT INTO purchase (customer, total_cents) VALUES (%s, 0) RETURNING id"
TAKE = "UPDATE product SET stock = stock - %(n)s WHERE id = %(id)s AND stock >= %(n)s RETURNING price_cents"
ADD_LINE = "INSERT INTO line (purchase_id, product_id, quantity, price_cents) VALUES (%s, %s, %s, %s)"
TOTAL = "UPDATE purchase SET total_cents = %s WHERE id = %s"


class BadOrder(ValueError):
    """An order that makes no sense."""


class OutOfStock(Exception):
    """Somebody else bought the last one."""


def parse_order(data: object) -> tuple[str, list[tuple[int, int]]]:
    """Return the customer and the (product, quantity) lines of an order as JSON; raise BadOrder otherwise."""
    if not isinstance(data, dict):
        raise BadOrder("an order is an object with 'customer' and 'lines'")
    customer, lines = data.get("customer"), data.get("lines")
    if not isinstance(customer, str) or not 0 < len(customer.strip()) <= 100 or "\0" in customer:
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


def parse_form(customer: str, quantities: dict[str, str]) -> tuple[str, list[tuple[int, int]]]:
    """Return what `parse_order` does, for the fields ``quantity-1`` ... of the page's form."""
    lines = [
        {"product_id": int(name.removeprefix("quantity-")), "quantity": int(value)}
        for name, value in quantities.items()
        if name.startswith("quantity-") and name.removeprefix("quantity-").isdecimal() and value.isdecimal()
        if int(value)
    ]
    return parse_order({"customer": customer, "lines": lines})


def csv_line(row: tuple[object, ...]) -> str:
    """Return one line of the CSV export."""
    import csv
    import io

    out = io.StringIO()
    csv.writer(out).writerow(row)
    return out.getvalue()


CSV_HEADER = "id,customer,placed_at,total_cents\r\n"
