"""channels, served by daphne."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from .conftest import APPS, Programs

NAMES = "SELECT name FROM shop_thing ORDER BY name"


@pytest.fixture
def client(programs: Programs) -> httpx.Client:
    programs.manage("channels_app", "migrate")
    return programs.serve("daphne", "-b", "127.0.0.1", "-p", "PORT", "channels_app:application")


def test_consumers_store_what_succeeds_and_give_all_back(programs: Programs, client: httpx.Client) -> None:
    said = json.loads(programs.run(str(Path(APPS, "channels_client.py")), str(client.base_url).rstrip("/")))
    assert said["one"] == [
        {"stored": "apple"},
        {"error": "refused"},
        {"error": "is there already"},
        {"stored": "pear"},
    ]
    assert said["sync"] == [{"stored": "plum"}, {"closed": 1011}]
    assert said["spoken"] == 60
    left = [f"left {number}" for number in range(12)]
    assert said["heard"] == sorted(left)
    spoken = [f"{number} {n}" for number in range(12) for n in range(5)]
    assert [name for (name,) in programs.rows(NAMES)] == sorted(["apple", "pear", "plum", *left, *spoken])
    programs.wait_until_server_is_whole(client)


def test_views_beside_them_are_transactions(programs: Programs, client: httpx.Client) -> None:
    def ask(number: int) -> None:
        view, status = ("create", "create_async")[number % 2], (201, 409)[number % 3 == 0]
        assert client.get(f"/{view}/{number}?status={status}").status_code == status

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(ask, range(60)))
    assert {name for (name,) in programs.rows(NAMES)} == {str(number) for number in range(60) if number % 3}
    programs.wait_until_server_is_whole(client)


def test_consumers_over_http(programs: Programs, client: httpx.Client) -> None:
    names = [f"{('orm', 'block', 'refused')[number % 3]} {number}" for number in range(60)]
    with ThreadPoolExecutor(12) as threads:
        statuses = list(threads.map(lambda name: client.post(f"/consumer/{name}").status_code, names))
    assert statuses == [201, 201, 409] * 20
    assert {name for (name,) in programs.rows(NAMES)} == {name for name in names if not name.startswith("refused")}
    programs.wait_until_server_is_whole(client)
