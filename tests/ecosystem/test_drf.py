"""Django REST framework."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from .conftest import GUNICORN, Programs

NAMES = "SELECT name FROM shop_thing ORDER BY name"


@pytest.fixture
def client(programs: Programs) -> httpx.Client:
    programs.manage("drf_app", "migrate")
    user = "from django.contrib.auth.models import User; User.objects.create_user('ann', password='secret')"
    programs.manage("drf_app", "shell", "-c", user)
    client = programs.serve(*GUNICORN, "drf_app:application")
    token = client.post("/token/", json={"username": "ann", "password": "secret"}).json()["token"]
    client.headers["Authorization"] = f"Token {token}"
    return client


def test_a_view_set_stores_what_succeeds_and_nothing_that_is_refused(programs: Programs, client: httpx.Client) -> None:
    assert client.post("/token/", json={"username": "ann", "password": "wrong"}).status_code == 400
    assert len(programs.rows("SELECT * FROM authtoken_token")) == 1
    assert client.post("/things/", json={"name": "apple", "price": 3}).status_code == 201
    assert client.patch("/things/1/", json={"price": 4}).json()["price"] == 4
    assert client.patch("/things/1/", json={"price": -1}).status_code == 400
    assert client.post("/things/", json={"name": "pear"}, headers={"Authorization": ""}).status_code == 401
    ways = ("denied", "invalid", "always-ok", "missing", "duplicate", "returned")
    seen = {way: client.post(f"/things/refused/{way}/").status_code for way in ways}
    assert seen == {
        "denied": 403,
        "invalid": 400,
        "always-ok": 200,
        "missing": 500,
        "duplicate": 409,
        "returned": 402,
    }
    assert client.post("/things/many/", json=[{"name": "a"}, {"name": "b"}]).status_code == 201
    assert client.post("/things/many/", json=[{"name": "c"}, {"name": "c"}]).status_code == 409
    assert programs.rows(NAMES) == [("a",), ("apple",), ("b",)]
    page = client.get("/things/").json()
    assert [thing["name"] for thing in page["results"]] == ["apple", "a"]
    assert [thing["name"] for thing in client.get(page["next"]).json()["results"]] == ["b"]
    assert client.delete("/things/1/").status_code == 204
    assert programs.rows(NAMES) == [("a",), ("b",)]
    programs.wait_until_server_is_whole(client)


def test_of_many_with_one_name_one_is_stored(programs: Programs, client: httpx.Client) -> None:
    names = [f"name {number % 5}" for number in range(50)]
    with ThreadPoolExecutor(12) as threads:
        statuses = list(threads.map(lambda name: client.post("/things/", json={"name": name}).status_code, names))
    counted = Counter(statuses)
    assert counted[201] == 5
    assert counted[201] + counted[400] + counted[409] == 50
    assert programs.rows(NAMES) == [(f"name {number}",) for number in range(5)]
    programs.wait_until_server_is_whole(client)
