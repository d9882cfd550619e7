"""fastapi-users."""

from __future__ import annotations

import httpx
import pytest

from .browsers import at_once, browser
from .conftest import UVICORN, Programs

PASSWORD = "long enough"
EMAILS = "SELECT email FROM users"
MAILS = "SELECT address FROM mails"


@pytest.fixture
def client(programs: Programs) -> httpx.Client:
    programs.observer.execute(
        "CREATE TABLE users (id serial PRIMARY KEY, email text UNIQUE, hashed_password text,"
        " is_active bool DEFAULT true, is_superuser bool DEFAULT false, is_verified bool DEFAULT false);"
        "CREATE TABLE tokens (token text PRIMARY KEY, user_id int REFERENCES users ON DELETE CASCADE,"
        " created_at timestamptz DEFAULT now());"
        "CREATE TABLE mails (address text);"
        "CREATE TABLE notes (owner int REFERENCES users, text text)"
    )
    return programs.serve(*UVICORN, "fastapi_users_app:app")


def register(client: httpx.Client, email: str) -> int:
    return client.post("/register", json={"email": email, "password": PASSWORD}).status_code


def log_in(client: httpx.Client, email: str, password: str = PASSWORD) -> int:
    answer = client.post("/login", data={"username": email, "password": password})
    if answer.status_code == 200:
        client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
    return answer.status_code


def whole(programs: Programs, client: httpx.Client) -> None:
    programs.wait_until_whole(lambda: client.get("/stats").json())


def test_a_user_registers_logs_in_writes_and_logs_out(programs: Programs, client: httpx.Client) -> None:
    assert register(client, "ann@example.com") == 201
    assert log_in(client, "ann@example.com", "wrong") == 400
    assert client.post("/notes/no").status_code == 401
    assert log_in(client, "ann@example.com") == 200
    assert client.post("/notes/yes").json() == {"by": "ann@example.com"}
    assert client.post("/logout").status_code == 204
    assert client.post("/notes/no").status_code == 401
    assert programs.rows("SELECT text FROM notes") == [("yes",)]
    assert programs.rows("SELECT token FROM tokens") == []
    assert programs.rows(MAILS) == [("ann@example.com",)]
    whole(programs, client)


def test_what_is_refused_leaves_nothing(programs: Programs, client: httpx.Client) -> None:
    assert [register(client, "ann@example.com") for _ in range(2)] == [201, 400]
    assert register(client, "bounce@example.com") == 500
    assert log_in(client, "ann@example.com") == 200
    assert client.patch("/users/me", json={"email": "bad@example.com"}).status_code == 400
    assert client.patch("/users/me", json={"email": "eve@example.com"}).status_code == 200
    assert programs.rows(EMAILS) == [("eve@example.com",)]
    assert programs.rows(MAILS) == [("ann@example.com",), ("changed eve@example.com",)]
    whole(programs, client)


def test_the_same_address_at_once(programs: Programs, client: httpx.Client) -> None:
    assert sorted(at_once(6, lambda n: register(client, "ann@example.com"))) == [201] + [400] * 5
    assert programs.rows(EMAILS) == programs.rows(MAILS) == [("ann@example.com",)]
    whole(programs, client)


def test_many_users_at_once(programs: Programs, client: httpx.Client) -> None:
    def use(n: int) -> set[str]:
        with browser(client) as own:
            assert register(own, f"{n}@example.com") == 201
            assert log_in(own, f"{n}@example.com") == 200
            return {own.post(f"/notes/{n}").json()["by"] for _ in range(10)}

    assert at_once(5, use) == [{f"{n}@example.com"} for n in range(5)]
    right = "SELECT count(*) FROM notes JOIN users ON users.id = owner WHERE email = text || '@example.com'"
    assert programs.rows(right) == [(50,)]
    whole(programs, client)
