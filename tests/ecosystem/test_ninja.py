"""django-ninja."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from .conftest import GUNICORN, Programs

THINGS = "SELECT name, price FROM shop_thing ORDER BY id"


@pytest.fixture
def client(programs: Programs) -> httpx.Client:
    programs.manage("ninja_app", "migrate")
    return programs.serve(*GUNICORN, "ninja_app:application")


def test_what_succeeds_is_stored_and_what_is_refused_is_not(programs: Programs, client: httpx.Client) -> None:
    assert client.post("/api/things", json={"name": "apple", "price": 3}).status_code == 201
    seen = {
        way: client.post(f"/api/refused/{way}", json={"name": way}).status_code
        for way in ("http-error", "handler", "status", "response")
    }
    assert seen == {"http-error": 403, "handler": 422, "status": 402, "response": 500}
    assert client.post("/api/things", json={"name": "apple"}).status_code == 409  # its own handler of IntegrityError
    assert client.post("/api/things", json={"name": "pear", "price": "much"}).status_code == 422  # its validation
    assert client.get("/api/things").json() == [{"id": 1, "name": "apple", "price": 3}]
    assert client.post("/api/nested", json={"name": "plum"}).json() == {"things": 2}
    assert programs.rows(THINGS) == [("apple", 3), ("plum", 1)]
    programs.wait_until_server_is_whole(client)


def test_many_at_the_same_time_each_see_the_last_write(programs: Programs, client: httpx.Client) -> None:
    client.post("/api/things", json={"name": "apple", "price": 0})
    with ThreadPoolExecutor(12) as threads:
        prices = list(threads.map(lambda _: client.post("/api/buy/apple").json()["price"], range(60)))
    assert sorted(prices) == list(range(1, 61))
    assert programs.rows(THINGS) == [("apple", 60)]
    programs.wait_until_server_is_whole(client)
