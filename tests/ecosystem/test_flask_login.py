"""Flask-Login."""

from __future__ import annotations

import httpx
import pytest

from .browsers import at_once, browser
from .conftest import GUNICORN, Programs

NAMES = ["ann", "bob", "cat", "dan", "eve", "fay"]
NOTES = "SELECT name, text FROM notes JOIN users ON id = owner ORDER BY 1, 2"


@pytest.fixture
def client(programs: Programs) -> httpx.Client:
    programs.observer.execute(
        "CREATE TABLE users (id serial PRIMARY KEY, name text UNIQUE, password text,"
        " failed int DEFAULT 0, logins int DEFAULT 0);"
        "CREATE TABLE notes (owner int REFERENCES users, text text UNIQUE);"
        "CREATE TABLE hits (path text)"
    )
    programs.observer.execute("INSERT INTO users (name, password) SELECT n, n FROM unnest(%s::text[]) n", [NAMES])
    return programs.serve(*GUNICORN, "flask_login_app:app")


def log_in(client: httpx.Client, name: str, password: str | None = None, **more: str) -> int:
    return client.post("/login", data={"name": name, "password": password or name, **more}).status_code


def whole(programs: Programs, client: httpx.Client) -> None:
    programs.wait_until_whole(lambda: client.get("/stats").json())


def test_who_is_logged_in_writes(programs: Programs, client: httpx.Client) -> None:
    assert log_in(client, "ann") == 204
    assert client.post("/notes/mine").json() == {"by": "ann"}
    assert client.post("/notes/mine").status_code == 500
    assert client.post("/logout").status_code == 302
    assert client.post("/notes/more").status_code == 401
    assert programs.rows(NOTES) == [("ann", "mine")]
    assert programs.rows("SELECT logins FROM users WHERE name = 'ann'") == [(1,)]
    # Answers that refuse leave no hit, and a redirect does.
    assert programs.rows("SELECT path FROM hits") == [("/login",), ("/notes/mine",), ("/logout",)]
    whole(programs, client)


def test_failed_attempts_are_kept(programs: Programs, client: httpx.Client) -> None:
    assert [log_in(client, "ann", "wrong") for _ in range(3)] == [401] * 3
    assert client.post("/notes/no").status_code == 401
    assert programs.rows("SELECT failed, logins FROM users WHERE name = 'ann'") == [(3, 0)]
    whole(programs, client)


def test_a_user_who_is_gone_and_a_loader_that_fails(programs: Programs, client: httpx.Client) -> None:
    assert log_in(client, "fay") == 204
    programs.observer.execute("DELETE FROM users WHERE name = 'fay'")
    assert client.post("/notes/a").status_code == 401
    assert log_in(client, "eve") == 204
    programs.observer.execute("ALTER TABLE users RENAME name TO nick")
    assert client.post("/notes/b").status_code == 500
    assert programs.rows("SELECT * FROM notes") == []
    assert programs.rows("SELECT path FROM hits") == [("/login",), ("/login",)]
    whole(programs, client)


def test_a_remembered_user_needs_a_fresh_login(programs: Programs, client: httpx.Client) -> None:
    assert log_in(client, "bob", remember="yes") == 204
    assert client.post("/fresh/first").status_code == 200
    del client.cookies["session"]
    assert client.post("/notes/remembered").json() == {"by": "bob"}
    assert client.post("/fresh/second").status_code == 401
    assert programs.rows(NOTES) == [("bob", "first"), ("bob", "remembered")]
    whole(programs, client)


def test_many_users_at_once(programs: Programs, client: httpx.Client) -> None:
    def use(n: int) -> set[str]:
        with browser(client) as own:
            assert log_in(own, NAMES[n]) == 204
            return {own.post(f"/notes/{NAMES[n]}{i}").json()["by"] for i in range(15)}

    assert at_once(6, use) == [{name} for name in NAMES]
    assert programs.rows(NOTES) == sorted((name, f"{name}{i}") for name in NAMES for i in range(15))
    whole(programs, client)
