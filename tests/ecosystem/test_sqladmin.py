"""sqladmin beside us."""

from __future__ import annotations

import httpx
import pytest

from pgmonkey.embedded import Server

from .browsers import at_once, browser
from .conftest import UVICORN, Programs

LOG = "SELECT text FROM log"


@pytest.fixture
def client(programs: Programs, server: Server, dbname: str) -> httpx.Client:
    programs.observer.execute(
        "CREATE TABLE items (id serial PRIMARY KEY, name text UNIQUE); CREATE TABLE log (text text);"
        "CREATE TABLE admins AS SELECT 'ann' AS name, 0 AS failed"
    )
    programs.environ["SQLALCHEMY"] = server.dsn(dbname).replace("postgresql://", "postgresql+psycopg://")
    return programs.serve(*UVICORN, "sqladmin_app:app")


def log_in(client: httpx.Client, name: str = "ann") -> int:
    return client.post("/admin/login", data={"username": name, "password": ""}).status_code


def create(client: httpx.Client, name: str) -> int:
    return client.post("/admin/item/create", data={"name": name}).status_code


def whole(programs: Programs, client: httpx.Client) -> None:
    programs.wait_until_whole(lambda: client.get("/stats").json())


def test_what_sqladmin_stores_is_there_and_so_is_ours(programs: Programs, client: httpx.Client) -> None:
    assert create(client, "no") == 302  # to the log-in
    assert log_in(client) == 302
    assert create(client, "tea") == 302
    assert client.get("/items").json() == ["tea"]
    assert "tea" in client.get("/admin/item/list").text
    assert programs.rows(LOG) == [("tea",)]
    whole(programs, client)


def test_what_sqladmin_catches_leaves_nothing_of_ours(programs: Programs, client: httpx.Client) -> None:
    assert log_in(client) == 302
    assert [create(client, "tea") for _ in range(2)] == [302, 400]
    assert programs.rows(LOG) == [("tea",)]
    whole(programs, client)


def test_failed_log_ins_are_kept(programs: Programs, client: httpx.Client) -> None:
    assert [log_in(client, "bob") for _ in range(3)] == [400] * 3
    assert client.get("/admin/item/list").status_code == 302
    assert programs.rows("SELECT failed FROM admins") == [(3,)]
    whole(programs, client)


def test_the_same_record_at_once(programs: Programs, client: httpx.Client) -> None:
    def use(n: int) -> int:
        with browser(client) as own:
            assert log_in(own) == 302
            return create(own, "tea")

    assert sorted(at_once(6, use)) == [302] + [400] * 5
    assert programs.rows(LOG) == [("tea",)]
    whole(programs, client)
