"""The same order desk three times over one database, by HTTP and in a real browser."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from ..conftest import ON_CI

if TYPE_CHECKING:
    from .conftest import Demo

SHOPS = ("Flask", "FastAPI", "Django")
COFFEE, TEAPOT, MUG, UMBRELLA = 1, 2, 3, 4
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
STOCK = {COFFEE: 1000, TEAPOT: 25, MUG: 500, UMBRELLA: 1}


@pytest.fixture
def database(demo: Demo) -> Iterator[psycopg.Connection[Any]]:
    """The shops' database, emptied of orders and with its first stock."""
    with psycopg.connect(demo.dsn, autocommit=True) as connection:
        connection.execute("TRUNCATE purchase, line RESTART IDENTITY")
        connection.execute(
            "UPDATE product SET stock = CASE id WHEN 1 THEN 1000 WHEN 2 THEN 25 WHEN 3 THEN 500 ELSE 1 END"
        )
        yield connection


@pytest.fixture(params=SHOPS)
def shop(request: pytest.FixtureRequest, demo: Demo, database: object) -> Iterator[httpx.Client]:
    # A new connection each time: an old gunicorn may close one that waits for a request, at the moment when that comes.
    anew = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=demo.urls[request.param], limits=anew) as client:
        yield client


def order(customer: str, *lines: tuple[int, int]) -> dict[str, Any]:
    return {"customer": customer, "lines": [{"product_id": p, "quantity": q} for p, q in lines]}


def test_an_order_is_written_and_seen_by_all_shops(
    shop: httpx.Client, demo: Demo, database: psycopg.Connection[Any]
) -> None:
    answer = shop.post("/api/orders", json=order("Ann", (COFFEE, 2), (MUG, 1)))
    assert answer.status_code == 201
    assert answer.json() == {"id": 1, "customer": "Ann", "total_cents": 2980}
    lines = database.execute("SELECT product_id, quantity, price_cents FROM line ORDER BY id").fetchall()
    assert lines == [(COFFEE, 2, 890), (MUG, 1, 1200)]
    assert database.execute("SELECT stock FROM product WHERE id = 1").fetchone() == (998,)
    for url in demo.urls.values():
        found = httpx.get(f"{url}api/orders/1").json()
        assert (found["customer"], found["total_cents"]) == ("Ann", 2980)
        assert [line["name"] for line in found["lines"]] == ["Coffee, 250 g", "Mug"]
        assert "Ann" in httpx.get(url).text
        assert "29.80" in httpx.get(f"{url}orders/1").text
        assert [entry["id"] for entry in httpx.get(f"{url}api/orders").json()["orders"]] == [1]


@pytest.mark.parametrize("lines", [[(UMBRELLA, 2)], [(COFFEE, 5), (UMBRELLA, 2)], [(99, 1)]])
def test_what_is_not_in_stock_is_refused_and_leaves_nothing(
    lines: list[tuple[int, int]], shop: httpx.Client, database: psycopg.Connection[Any]
) -> None:
    answer = shop.post("/api/orders", json=order("Bob", *lines))
    assert answer.status_code == 409
    assert "left" in answer.json()["detail"]
    assert database.execute("SELECT count(*) FROM purchase").fetchone() == (0,)
    assert database.execute("SELECT stock FROM product WHERE id = 1").fetchone() == (1000,)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'{"customer": "A"}', b'{"customer": "A", "lines": []}'),
        b'{"customer": "", "lines": [{"product_id": 1, "quantity": 1}]}',
        b'{"customer": "A\\u0000", "lines": [{"product_id": 1, "quantity": 1}]}',
        b'{"customer": "A", "lines": [1]}',
        b'{"customer": "A", "lines": [{"product_id": 1, "quantity": -1}]}',
        b'{"customer": "A", "lines": [{"product_id": "1", "quantity": true}]}',
        b'{"customer": "A", "lines": [{"product_id": 99999999999999999999, "quantity": 1}]}',
        b'{"customer": "A", "lines": [{"product_id": 1, "quantity": ' + b"9" * 5000 + b"}]}",
        b'{"customer": "A\\ud800", "lines": [{"product_id": 1, "quantity": 1}]}',
        b"[" * 100_000,
    ],
)
def test_a_malformed_order_is_a_422(body: bytes, shop: httpx.Client, database: psycopg.Connection[Any]) -> None:
    answer = shop.post("/api/orders", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["detail"]
    assert database.execute("SELECT count(*) FROM purchase").fetchone() == (0,)


def test_an_unknown_order_is_a_404(shop: httpx.Client) -> None:
    assert shop.get("/orders/12345").status_code == 404
    assert shop.get("/api/orders/12345").status_code == 404
    for number in ("99999999999999999999", "9" * 5000):
        assert shop.get(f"/api/orders/{number}").status_code in (400, 404, 414, 422)


def token(shop: httpx.Client) -> dict[str, str]:
    """The hidden field of the form, whose counterpart *shop* has as a cookie."""
    return {"csrfmiddlewaretoken": re.findall(r'name="csrfmiddlewaretoken" value="([^"]+)"', shop.get("/").text)[0]}


def test_a_form_of_another_site_is_refused(shop: httpx.Client, database: psycopg.Connection[Any]) -> None:
    fields = {"customer": "Mallory", "quantity-2": "1"}
    for sent in ({}, {"csrfmiddlewaretoken": ""}, {"csrfmiddlewaretoken": "guessed"}, {"csrfmiddlewaretoken": "é"}):
        assert shop.post("/orders", data={**fields, **sent}).status_code == 403
    own = token(shop)
    for sent in ({}, {"csrfmiddlewaretoken": "guessed"}):
        assert shop.post("/orders", data={**fields, **sent}).status_code == 403
    assert httpx.post(shop.base_url.join("/orders"), data={**fields, **own}).status_code == 403, "without the cookie"
    assert database.execute("SELECT count(*) FROM purchase").fetchone() == (0,)
    assert shop.post("/orders", data={**fields, **own}).status_code == 303


@pytest.mark.parametrize("field", [b"quantity-2=" + b"9" * 5000, b"quantity-" + b"9" * 5000 + b"=1"])
def test_a_number_of_thousands_of_digits_in_the_form_is_a_422(field: bytes, shop: httpx.Client) -> None:
    content = b"customer=A&" + field + b"&csrfmiddlewaretoken=" + token(shop)["csrfmiddlewaretoken"].encode()
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert shop.post("/orders", content=content, headers=headers).status_code == 422
    half = content.replace(b"customer=A&" + field, b"customer=A%ED%A0%80&quantity-2=1")
    assert shop.post("/orders", content=half, headers=headers).status_code in (303, 422)


def test_no_cell_of_the_export_is_a_formula(shop: httpx.Client, database: psycopg.Connection[Any]) -> None:
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "Ann = 1", "a-b"]
    for name in names:
        database.execute("INSERT INTO purchase (customer, total_cents) VALUES (%s, -1)", [name])
    rows = list(csv.reader(io.StringIO(shop.get("/orders.csv").text)))[1:]
    assert [row[1] for row in rows] == [f"'{name}" for name in names[:5]] + names[5:]
    assert {row[3] for row in rows} == {"-1"}, "a number is none"


def test_the_form_places_an_order(shop: httpx.Client, database: psycopg.Connection[Any]) -> None:
    fields = {"customer": "Cleo", "quantity-2": "1", "quantity-3": "0", **token(shop)}
    answer = shop.post("/orders", data=fields)
    assert (answer.status_code, answer.headers["location"]) == (303, "/orders/1")
    fields["quantity-4"] = "7"
    answer = shop.post("/orders", data=fields)
    assert answer.status_code == 409
    assert "Only 1 left of Last umbrella, not 7." in answer.text
    assert shop.post("/orders", data={**fields, "customer": " "}).status_code == 422
    assert database.execute("SELECT customer FROM purchase").fetchall() == [("Cleo",)]


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"quantity-2": "26"}, 409, "Only 25 left of Teapot, not 26."),
        ({"quantity-99": "1"}, 409, "There is no product 99"),
        ({"quantity-2": "1", "customer": " "}, 422, "Please enter your name"),
        ({"quantity-2": "-1"}, 422, "A quantity is a whole number from 0 to 999."),
        ({"quantity-2": "0"}, 422, "Please choose at least one product."),
    ],
)
def test_a_form_that_is_refused_says_why_and_keeps_what_was_typed(
    fields: dict[str, str], status: int, said: str, shop: httpx.Client, database: psycopg.Connection[Any]
) -> None:
    sent = {"customer": 'Zoë "Z" <b>', "quantity-3": "0", **fields}
    answer = shop.post("/orders", data={**sent, **token(shop)})
    assert answer.status_code == status
    assert said in answer.text
    assert "<h1>New order</h1>" in answer.text
    for name, value in sent.items():
        if name != "quantity-99":
            field = re.findall(rf'<input[^>]* name="{name}"[^>]*>', answer.text)[0]
            assert html.unescape(re.findall(r'value="([^"]*)"', field)[0]) == value
    assert database.execute("SELECT count(*) FROM purchase").fetchone() == (0,)


def test_nothing_left_is_said_so(shop: httpx.Client, database: psycopg.Connection[Any]) -> None:
    database.execute("UPDATE product SET stock = 0 WHERE id = 4")
    answer = shop.post("/api/orders", json=order("Bob", (UMBRELLA, 1)))
    assert (answer.status_code, answer.json()["detail"]) == (409, "Last umbrella is sold out: none are left.")


@pytest.mark.parametrize(
    ("method", "path", "status", "title"),
    [
        ("GET", "/nowhere", 404, "Not found"),
        ("GET", "/orders/12345", 404, "Not found"),
        ("GET", "/orders/one", 404, "Not found"),
        ("GET", "/orders", 405, "Not allowed"),
        ("POST", "/", 405, "Not allowed"),
        ("POST", "/orders", 403, "Not from this shop"),
    ],
)
def test_what_is_refused_is_a_page_of_the_shop(
    method: str, path: str, status: int, title: str, shop: httpx.Client
) -> None:
    fields = token(shop) if status == 405 else {}
    answer = shop.request(method, path, data=fields) if method == "POST" else shop.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")
    assert f"<h1>{title}</h1>" in answer.text
    assert "prefers-color-scheme: dark" in answer.text
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert (answer.headers.get("allow") is not None) == (status == 405)


def test_what_the_api_refuses_is_json(shop: httpx.Client) -> None:
    for answer in (shop.get("/api/nowhere"), shop.get("/api/orders/12345"), shop.delete("/api/orders")):
        assert answer.status_code in (404, 405)
        assert answer.json()["detail"]


def test_the_api_takes_no_form_of_another_site(shop: httpx.Client, database: psycopg.Connection[Any]) -> None:
    body = json.dumps(order("Mallory", (TEAPOT, 1)))
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert shop.post("/api/orders", content=body, headers={"content-type": kind}).status_code == 422
    assert database.execute("SELECT count(*) FROM purchase").fetchone() == (0,)


def test_fastapis_documentation_knows_what_an_order_is(demo: Demo) -> None:
    described = httpx.get(f"{demo.urls['FastAPI']}openapi.json").json()
    schemas = described["components"]["schemas"]
    assert schemas["OrderLine"]["properties"]["quantity"]["maximum"] == 999
    post = described["paths"]["/api/orders"]["post"]
    assert post["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/NewOrder"}
    assert {"201", "409", "422"} == set(post["responses"])
    example = {name: each["examples"][0] for name, each in schemas["OrderLine"]["properties"].items()}
    sent = {"customer": schemas["NewOrder"]["properties"]["customer"]["examples"][0], "lines": [example]}
    assert httpx.post(f"{demo.urls['FastAPI']}api/orders", json=sent).status_code == 201
    assert set(described["paths"]) == {"/api/orders", "/api/orders/{order_id}"}
    assert "swagger" in httpx.get(f"{demo.urls['FastAPI']}docs").text


def test_the_export_streams_all_orders(shop: httpx.Client, database: psycopg.Connection[Any]) -> None:
    customers = "SELECT 'x,\"' || i, i FROM generate_series(1, 5000) i"
    database.execute(f"INSERT INTO purchase (customer, total_cents) {customers}")
    answer = shop.get("/orders.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.reader(io.StringIO(answer.text)))
    assert rows[0] == ["id", "customer", "placed_at", "total_cents"]
    assert [row[0] for row in rows[1:]] == [str(i) for i in range(1, 5001)]
    assert rows[5000][1] == 'x,"5000'


def test_the_last_umbrella_is_sold_once(demo: Demo, database: psycopg.Connection[Any]) -> None:
    def buy(i: int) -> int:
        url = demo.urls[SHOPS[i % 3]]
        return httpx.post(f"{url}api/orders", json=order(f"buyer {i}", (UMBRELLA, 1)), timeout=20).status_code

    with ThreadPoolExecutor(12) as executor:
        statuses = list(executor.map(buy, range(30)))
    assert sorted(set(statuses)) == [201, 409]
    assert statuses.count(201) == 1
    assert database.execute("SELECT count(*) FROM purchase").fetchone() == (1,)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None and not ON_CI:
        pytest.skip("no Chromium here; Debian: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def test_an_order_placed_on_each_shop_is_seen_on_the_other_two(browser: Browser, demo: Demo) -> None:
    with psycopg.connect(demo.dsn, autocommit=True) as connection:
        connection.execute("TRUNCATE purchase, line RESTART IDENTITY")
    page = browser.new_page()
    errors: list[Any] = []
    page.on("pageerror", lambda error: errors.append(error))
    for shop, url in demo.urls.items():
        page.goto(url)
        expect(page.get_by_text(f"served by {shop}")).to_be_visible()
        page.get_by_label("Mug").fill("2")
        page.get_by_label("Your name").fill(f"Customer of {shop}")
        page.get_by_role("button", name="Place the order").click()
        expect(page.get_by_role("heading", name="Order ")).to_be_visible()
        expect(page.get_by_role("row", name="Total")).to_contain_text("24.00")
        number = page.url.rpartition("/")[2]
        for other in demo.urls.values():
            page.goto(other)
            expect(page.get_by_role("row", name=f"Customer of {shop}")).to_contain_text("24.00")
            page.get_by_role("link", name=number, exact=True).click()
            expect(page.get_by_text(f"For Customer of {shop}, placed")).to_be_visible()
    page.goto(demo.urls["Flask"])
    page.get_by_label("Teapot").fill("999")
    page.get_by_label("Your name").fill("Somebody")
    page.get_by_role("button", name="Place the order").click()
    expect(page.get_by_role("alert")).to_contain_text("left of Teapot, not 999.")
    expect(page.get_by_label("Your name")).to_have_value("Somebody")
    assert errors == []


def test_an_order_placed_on_each_shop_is_an_event(demo: Demo, database: psycopg.Connection[Any]) -> None:
    with httpx.stream("GET", f"{demo.urls['FastAPI']}orders/live", timeout=60) as live:
        assert live.headers["content-type"].startswith("text/event-stream")
        lines = live.iter_lines()
        assert next(lines) == ": listening"
        for name, url in demo.urls.items():
            assert httpx.post(f"{url}api/orders", json=order("Refused", (UMBRELLA, 9))).status_code == 409
            number = httpx.post(f"{url}api/orders", json=order(name, (MUG, 1))).json()["id"]
            event = json.loads(next(line for line in lines if line.startswith("data: ")).removeprefix("data: "))
            assert (event["id"], event["customer"], event["total_cents"]) == (number, name, 1200)


def test_an_order_placed_on_each_shop_appears_live_on_all(browser: Browser, demo: Demo, database: object) -> None:
    with ExitStack() as stack:
        pages = [stack.enter_context(browser.new_page()) for _ in demo.urls]
        errors: list[Any] = []
        for page, url in zip(pages, demo.urls.values(), strict=True):
            page.on("pageerror", lambda error: errors.append(error))
            with page.expect_response("**/orders/live"):  # its headers come when the server listens
                page.goto(url)
        for shop, url in demo.urls.items():
            assert httpx.post(f"{url}api/orders", json=order(f"Live {shop}", (MUG, 2))).status_code == 201
            for page in pages:
                expect(page.get_by_role("row", name=f"Live {shop}")).to_contain_text("24.00", timeout=30_000)
        assert errors == []
