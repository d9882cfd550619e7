"""django-ninja."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def test_an_exception_that_is_answered_with_a_success(programs: Programs, client: httpx.Client) -> None:
    seen = [client.post(f"/api/late/{how}") for how in ("lost", "note", "accepted")]
    assert [(answer.status_code, answer.json()) for answer in seen] == [
        (200, {"things": 0}),
        (200, {"things": 1}),
        (202, {"detail": "accepted"}),
    ]
    assert client.post("/api/late-async").status_code == 200
    assert programs.rows(THINGS) == [("a note", 1), ("accepted", 1)]
    programs.wait_until_server_is_whole(client)


def test_a_server_that_is_away(programs: Programs, config_file: Path) -> None:
    config_file.write_text(re.sub(r"port: .*", "port: 1", config_file.read_text()))
    client = programs.serve(*GUNICORN, "ninja_app:application")
    answer = client.get("/api/things")  # its own handler answers 500
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def test_many_at_the_same_time_each_see_the_last_write(programs: Programs, client: httpx.Client) -> None:
    client.post("/api/things", json={"name": "apple", "price": 0})
    with ThreadPoolExecutor(12) as threads:
        prices = list(threads.map(lambda _: client.post("/api/buy/apple").json()["price"], range(60)))
    assert sorted(prices) == list(range(1, 61))
    assert programs.rows(THINGS) == [("apple", 60)]
    programs.wait_until_server_is_whole(client)
