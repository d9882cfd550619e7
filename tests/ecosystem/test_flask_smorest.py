"""Flask-Smorest."""

from __future__ import annotations

import httpx
import pytest

from .browsers import at_once
from .conftest import GUNICORN, Programs

PETS = "SELECT name, age FROM pets ORDER BY name"


@pytest.fixture
def client(programs: Programs) -> httpx.Client:
    programs.observer.execute(
        "CREATE TABLE pets (id serial PRIMARY KEY, name text UNIQUE, age int); CREATE TABLE refused AS SELECT 0 AS n"
    )
    return programs.serve(*GUNICORN, "flask_smorest_app:app")


def whole(programs: Programs, client: httpx.Client) -> None:
    programs.wait_until_whole(lambda: client.get("/stats").json())


def test_pets_come_and_are_listed_page_by_page(programs: Programs, client: httpx.Client) -> None:
    for n in range(4):
        assert client.post("/pets/", json={"name": f"pet {n}", "age": n}).json()["name"] == f"pet {n}"
    answer = client.get("/pets/", params={"page": 2, "page_size": 3})
    assert [pet["name"] for pet in answer.json()] == ["pet 3"]
    assert '"total": 4' in answer.headers["X-Pagination"]
    whole(programs, client)


def test_what_is_refused_leaves_nothing(programs: Programs, client: httpx.Client) -> None:
    assert client.post("/pets/", json={"name": "rex", "age": 1}).status_code == 201
    refused = [
        client.post("/pets/", json={"name": "rex", "age": 2}),
        client.post("/pets/", json={"name": "x" * 21, "age": 2}),
        client.post("/pets/broken", json={"name": "ada", "age": 2}),  # written, and then not shown
    ]
    assert [answer.status_code for answer in refused] == [409, 422, 500]
    assert refused[0].json()["message"] == "there is one already"
    assert programs.rows(PETS) == [("rex", 1)]
    whole(programs, client)


def test_a_handler_of_a_blueprint_answers_with_a_success(programs: Programs, client: httpx.Client) -> None:
    assert client.post("/pets/counted", json={"name": "rex", "age": 1}).status_code == 201
    answer = client.post("/pets/counted", json={"name": "rex", "age": 2})
    assert (answer.status_code, answer.json()) == (200, {"message": "counted"})
    assert programs.rows("SELECT n FROM refused") == [(1,)]
    assert programs.rows(PETS) == [("rex", 1)]
    whole(programs, client)


def test_an_update_of_what_has_changed_meanwhile(programs: Programs, client: httpx.Client) -> None:
    id = client.post("/pets/", json={"name": "rex", "age": 1}).json()["id"]
    etag = {"If-Match": client.get(f"/pets/{id}").headers["ETag"]}
    new = {"name": "rex", "age": 2}
    assert client.put(f"/pets/{id}", json=new).status_code == 428
    assert client.put(f"/pets/{id}", json=new, headers=etag).status_code == 200
    assert client.put(f"/pets/{id}", json={"name": "rex", "age": 3}, headers=etag).status_code == 412
    assert programs.rows(PETS) == [("rex", 2)]
    whole(programs, client)


def test_one_of_many_updates_at_once_wins(programs: Programs, client: httpx.Client) -> None:
    id = client.post("/pets/", json={"name": "rex", "age": 0}).json()["id"]
    etag = {"If-Match": client.get(f"/pets/{id}").headers["ETag"]}

    def update(n: int) -> int:
        return client.put(f"/pets/{id}", json={"name": "rex", "age": n + 1}, headers=etag).status_code

    statuses = at_once(8, update)
    assert sorted(statuses) == [200] + [412] * 7
    assert programs.rows(PETS) == [("rex", statuses.index(200) + 1)]
    whole(programs, client)
