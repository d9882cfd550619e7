"""The order desk on Flask and on FastAPI, each test in a transaction of its own that is rolled back."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from flask.testing import FlaskClient

from pgmonkey.testing import Sandbox, statements

UMBRELLA = 4  # there is one


@pytest.fixture(params=["flask", "fastapi"])
def client(request: pytest.FixtureRequest, pgmonkey_sandbox: Sandbox) -> Iterator[FlaskClient | TestClient]:
    if request.param == "flask":
        from .flask_orders import create_app

        yield create_app().test_client()
    else:
        from .fastapi_orders import app

        with TestClient(app, raise_server_exceptions=False) as client:
            yield client


def json_of(response: Any) -> Any:
    return response.json() if callable(response.json) else response.json


def order(client: FlaskClient | TestClient, quantity: int) -> Any:
    lines = [{"product_id": UMBRELLA, "quantity": quantity}]
    return client.post("/api/orders", json={"customer": "Ann", "lines": lines})


def orders(client: FlaskClient | TestClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json_of(client.get("/api/orders"))["orders"]
    return found


def test_an_order_is_written(client: FlaskClient | TestClient) -> None:
    response = order(client, 1)
    assert response.status_code == 201
    placed = json_of(response)
    assert placed == {"id": placed["id"], "customer": "Ann", "total_cents": 1999}
    assert [row["id"] for row in orders(client)] == [placed["id"]]
    page = client.get("/").text
    assert "Ann" in page
    assert "/promises/" not in page, "the panel is the demo's"


def test_the_last_umbrella_is_sold_once(client: FlaskClient | TestClient) -> None:
    assert order(client, 1).status_code == 201
    assert order(client, 1).status_code == 409
    assert len(orders(client)) == 1


def test_what_is_not_in_stock_leaves_nothing(client: FlaskClient | TestClient) -> None:
    refused = order(client, 2)
    assert (refused.status_code, json_of(refused)["detail"]) == (409, "Only 1 left of Last umbrella, not 2.")
    assert orders(client) == []


def test_a_commit_that_fails_is_no_order(client: FlaskClient | TestClient, pgmonkey_sandbox: Sandbox) -> None:
    pgmonkey_sandbox.fail_next_commit("40001")
    failed = order(client, 1)
    assert failed.status_code == 500
    assert "Nothing of this request was stored" in json_of(failed)["detail"]
    assert orders(client) == []


def test_the_list_is_one_query(client: FlaskClient | TestClient) -> None:
    assert order(client, 1).status_code == 201
    with statements() as counted:
        orders(client)
    assert counted.count == 1


def test_the_export_is_streamed(client: FlaskClient | TestClient) -> None:
    assert order(client, 1).status_code == 201
    header, line = client.get("/orders.csv").text.splitlines()
    assert header == "id,customer,placed_at,total_cents"
    assert "Ann" in line


def test_a_server_that_is_away_is_a_503(client: FlaskClient | TestClient, pgmonkey_sandbox: Sandbox) -> None:
    assert orders(client) == []
    with pgmonkey_sandbox.server_away():
        assert client.get("/api/orders").status_code == 503
        page = client.get("/")
        assert (page.status_code, page.headers["retry-after"]) == (503, "1")
        assert "Please try again" in page.text
    assert orders(client) == []
