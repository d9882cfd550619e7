"""Flask-RESTX and Flask-RESTful, which answer the exceptions of their resources themselves."""

from __future__ import annotations

import httpx
import pytest

from .browsers import at_once
from .conftest import GUNICORN, Programs

TASKS = "SELECT task FROM todos ORDER BY task"


@pytest.fixture(params=["restx", "restful"])
def package(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def client(programs: Programs, package: str) -> httpx.Client:
    programs.observer.execute("CREATE TABLE todos (task text UNIQUE CHECK (task <> 'bad'))")
    return programs.serve(*GUNICORN, f"flask_{package}_app:app")


def add(client: httpx.Client, task: str) -> int:
    return client.post("/todos/", json={"task": task}).status_code


def whole(programs: Programs, client: httpx.Client) -> None:
    programs.wait_until_whole(lambda: client.get("/stats").json())


def test_what_is_refused_leaves_nothing(programs: Programs, client: httpx.Client) -> None:
    seen = [add(client, task) for task in ("eat", "sleep", "eat", "gone", "locked")]
    assert seen == [201, 201, 409, 410, 423]
    assert client.post("/todos/", json={}).status_code == 400
    assert client.get("/todos/").json() == [{"task": "eat"}, {"task": "sleep"}]
    assert programs.rows(TASKS) == [("eat",), ("sleep",)]
    whole(programs, client)


def test_an_exception_that_is_answered_with_a_success(programs: Programs, client: httpx.Client, package: str) -> None:
    assert add(client, "bad") == 200
    # What the resource did is undone; what a handler of Flask-RESTX did is decided by its own status.
    assert programs.rows(TASKS) == ([("what the handler did",)] if package == "restx" else [])
    whole(programs, client)


def test_the_same_task_at_once(programs: Programs, client: httpx.Client) -> None:
    assert sorted(at_once(8, lambda n: add(client, "eat"))) == [201] + [409] * 7
    assert programs.rows(TASKS) == [("eat",)]
    whole(programs, client)
