"""Strawberry's GraphQL, which answers errors with status 200: `rollback_request` says that nothing is to be stored."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from .browsers import at_once
from .conftest import GUNICORN, UVICORN, Programs

ADD = "mutation Add($title: String!) { add(title: $title) }"
TWO = 'mutation { first: add(title: "good") second: add(title: "bad") }'
BOOKS = "SELECT title FROM books ORDER BY title"
SERVERS = {"flask": GUNICORN, "fastapi": UVICORN}


@pytest.fixture(params=SERVERS)
def client(request: pytest.FixtureRequest, programs: Programs) -> httpx.Client:
    programs.observer.execute("CREATE TABLE books (title text UNIQUE)")
    return programs.serve(*SERVERS[request.param], f"strawberry_{request.param}_app:app")


def ask(client: httpx.Client, path: str, query: str, **variables: Any) -> Any:
    answer = client.post(path, json={"query": query, "variables": variables})
    assert answer.status_code == 200, answer.text
    return answer.json()


def whole(programs: Programs, client: httpx.Client) -> None:
    programs.wait_until_whole(lambda: client.get("/stats").json())


def test_mutations_are_stored_and_read(programs: Programs, client: httpx.Client) -> None:
    assert ask(client, "/strict", ADD, title="Emma") == {"data": {"add": "Emma"}}
    query = "{ " + " ".join(f"f{n}: count" for n in range(20)) + " }"  # on FastAPI, they are resolved at once
    assert ask(client, "/strict", query) == {"data": {f"f{n}": 1 for n in range(20)}}
    answers = at_once(6, lambda n: ask(client, "/strict", ADD, title=str(n // 2)))
    assert sum("errors" in answer for answer in answers) == 3
    assert programs.rows(BOOKS) == [("0",), ("1",), ("2",), ("Emma",)]
    whole(programs, client)


def test_errors_with_status_200(programs: Programs, client: httpx.Client) -> None:
    assert "errors" in ask(client, "/strict", TWO)
    assert programs.rows(BOOKS) == []
    assert "errors" in ask(client, "/plain", TWO)  # a success, as the status says
    assert programs.rows(BOOKS) == [("bad",), ("good",)]
    for document in ("{ nothing }", "{ no document"):
        assert "errors" in ask(client, "/strict", document)
    whole(programs, client)


def test_a_statement_that_failed_is_no_success(programs: Programs, client: httpx.Client) -> None:
    programs.observer.execute("INSERT INTO books VALUES ('good')")
    # In a transaction in which a statement failed nothing can be stored.
    assert client.post("/plain", json={"query": TWO}).status_code == 500
    assert "duplicate key" in ask(client, "/strict", TWO)["errors"][0]["message"]
    assert programs.rows(BOOKS) == [("good",)]
    whole(programs, client)


@pytest.mark.parametrize("client", ["fastapi"], indirect=True)
def test_a_block_refuses_what_is_resolved_beside_it(programs: Programs, client: httpx.Client) -> None:
    answer = ask(client, "/strict", "{ a: countInABlock b: count }")
    assert "savepoints must nest" in answer["errors"][0]["message"]
    assert ask(client, "/strict", "{ a: countInABlock }") == {"data": {"a": 0}}
    whole(programs, client)
