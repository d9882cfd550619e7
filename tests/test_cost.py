"""What the hot paths cost, counted rather than timed: the functions that are called, in Python and in C.

A limit is what was counted when it was set, and a tenth more.  Whoever makes a path dearer sees it here, on whatever
machine; whoever makes it cheaper lowers the limit.  For the time that it takes there is ``nox -s benchmarks``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextvars import Context
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
import pytest

from pgmonkey import AsyncDatabase, Database, PGConnectionManager

from .configs import prepared
from .conftest import ROOT
from .django.projects import ok, run

pytestmark = pytest.mark.skipif(
    psycopg.pq.__impl__ == "python", reason="the limits are for psycopg in C: in Python it calls more"
)


def calls(function: Callable[[], Any]) -> int:
    """Return how many functions *function* calls, the least of a few times, in a context in which nothing was done."""
    return min(Context().run(_count, function) for _ in range(5))


def _count(function: Callable[[], Any]) -> int:
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


# In threads and in tasks.
LIMITS = {
    "fetch_one": (31, 84),
    "fetch_one with parameters": (33, 86),
    "unit of work that reads once": (84, 195),
    "transaction with one statement": (132, 247),
}


@pytest.mark.parametrize("name", LIMITS)
def test_calls_in_threads(name: str, config: dict[str, Any]) -> None:
    database = Database(prepared(config))

    def unit() -> None:
        with database.unit_of_work():
            database.fetch_one("SELECT 1")

    def transaction() -> None:
        with database.transaction() as connection:
            connection.execute("SELECT 1").fetchone()

    paths: dict[str, Callable[[], Any]] = {
        "fetch_one": lambda: database.fetch_one("SELECT 1"),
        "fetch_one with parameters": lambda: database.fetch_one("SELECT %s::int", (1,)),
        "unit of work that reads once": unit,
        "transaction with one statement": transaction,
    }
    for _ in range(3):
        paths[name]()
    found = calls(paths[name])
    database.close()
    assert found <= LIMITS[name][0]


@pytest.mark.parametrize("name", LIMITS)
def test_calls_in_tasks(name: str, config: dict[str, Any]) -> None:
    database = AsyncDatabase(prepared(config))

    async def unit() -> None:
        async with database.unit_of_work():
            await database.fetch_one("SELECT 1")

    async def transaction() -> None:
        async with database.transaction() as connection:
            cursor = await connection.execute("SELECT 1")
            await cursor.fetchone()

    paths: dict[str, Callable[[], Any]] = {
        "fetch_one": lambda: database.fetch_one("SELECT 1"),
        "fetch_one with parameters": lambda: database.fetch_one("SELECT %s::int", (1,)),
        "unit of work that reads once": unit,
        "transaction with one statement": transaction,
    }
    loop = asyncio.new_event_loop()

    async def often() -> None:
        for _ in range(20):  # beside which the loop's own beginning and end are little
            await paths[name]()

    for _ in range(2):
        loop.run_until_complete(often())
    found = calls(lambda: loop.run_until_complete(often())) / 20
    loop.run_until_complete(database.close())
    loop.close()
    # Before Python 3.13 asyncio itself calls more: before 3.12 its current_task() is Python, which calls twice.
    assert found <= LIMITS[name][1] + 20 * (sys.version_info < (3, 13))


def test_calls_in_a_rotation_of_many_statements(config: dict[str, Any]) -> None:
    def configure(connection: Any) -> None:
        connection.prepared_max = 1000

    settings = prepared(config)
    settings["pool_settings"]["configure"] = configure
    database = Database(settings)
    statements: list[Any] = [f"SELECT {number}" for number in range(500)]

    def rotation() -> None:
        for statement in statements:
            database.fetch_one(statement)

    for _ in range(3):
        rotation()
    found = calls(rotation) / len(statements)
    database.close()
    assert found <= 40


def test_calls_for_a_cached_connection(config_file: Any) -> None:
    manager = PGConnectionManager()
    manager.get_database_connection(config_file, "pool")
    found = calls(lambda: manager.get_database_connection(config_file, "pool"))
    manager.clear_cache()
    assert found <= 18


def test_calls_for_a_borrow_of_django(project: Path) -> None:
    code = f"""
import sys
from django.db import connections
sys.path.append({str(ROOT)!r})
from tests.test_cost import calls
connection = connections["default"]
def borrow():
    connection.ensure_connection()
    connection.close()
for _ in range(3):
    borrow()
print(calls(borrow))
"""
    assert int(ok(run(project, code=code))) <= 105
