"""Flask-Admin: views over query methods, and SQLAlchemy's on the same database."""

from __future__ import annotations

import httpx
import pytest

from pgmonkey.embedded import Server

from .browsers import at_once, browser
from .conftest import GUNICORN, Programs

ITEMS = "SELECT name, price FROM items ORDER BY name"
LOG = "SELECT text FROM log ORDER BY text"


@pytest.fixture
def client(programs: Programs, server: Server, dbname: str) -> httpx.Client:
    programs.observer.execute(
        "CREATE TABLE items (id serial PRIMARY KEY, name text UNIQUE, price int CHECK (price > 0));"
        "CREATE TABLE log (text text)"
    )
    programs.environ["SQLALCHEMY"] = server.dsn(dbname).replace("postgresql://", "postgresql+psycopg://")
    return programs.serve(*GUNICORN, "flask_admin_app:app")


def create(client: httpx.Client, view: str, name: str, price: int) -> int:
    return client.post(f"/admin/{view}/new/", data={"name": name, "price": price}).status_code


def whole(programs: Programs, client: httpx.Client) -> None:
    programs.wait_until_whole(lambda: client.get("/stats").json())


def test_a_record_is_made_changed_and_deleted(programs: Programs, client: httpx.Client) -> None:
    assert create(client, "items", "tea", 3) == 302
    ((id,),) = programs.rows("SELECT id FROM items")
    assert "tea" in client.get("/admin/items/").text
    assert client.post(f"/admin/items/edit/?id={id}", data={"name": "tea", "price": 4}).status_code == 302
    assert programs.rows(ITEMS) == [("tea", 4)]
    assert client.post("/admin/items/delete/", data={"id": id}).status_code == 302
    assert programs.rows(ITEMS) == []
    assert programs.rows(LOG) == [("tea",), ("tea",)]
    whole(programs, client)


def test_a_violation_that_the_view_shows_leaves_nothing(programs: Programs, client: httpx.Client) -> None:
    seen = [create(client, "items", name, price) for name, price in (("tea", 3), ("tea", 5), ("milk", -1))]
    assert seen == [302, 200, 200]
    assert programs.rows(ITEMS) == [("tea", 3)]
    assert programs.rows(LOG) == [("tea",)]
    whole(programs, client)


def test_a_violation_that_is_caught_without_a_savepoint_is_no_success(programs: Programs, client: httpx.Client) -> None:
    assert create(client, "careless", "milk", -1) == 500
    assert (programs.rows(ITEMS), programs.rows(LOG)) == ([], [])
    whole(programs, client)


def test_the_same_record_at_once(programs: Programs, client: httpx.Client) -> None:
    def make(n: int) -> int:
        with browser(client) as own:
            return create(own, "items", "tea", n + 1)

    assert sorted(at_once(6, make)) == [200] * 5 + [302]
    assert programs.rows("SELECT name FROM items") == programs.rows(LOG) == [("tea",)]
    whole(programs, client)


@pytest.mark.parametrize(("view", "log"), [("strict", [("tea",)]), ("plain", [("milk",), ("tea",)])])
def test_what_a_sqlalchemy_view_shows_with_status_200_is_a_success_unless_it_says_otherwise(
    programs: Programs, client: httpx.Client, view: str, log: list[tuple[str]]
) -> None:
    assert [create(client, view, "tea", 3), create(client, view, "milk", -1)] == [302, 200]
    assert programs.rows(ITEMS) == [("tea", 3)]
    assert programs.rows(LOG) == log
    whole(programs, client)
