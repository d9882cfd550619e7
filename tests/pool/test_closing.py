"""A `Database` that one thread closes while others use it: they open it again, and get no error."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pgmonkey import AsyncDatabase, Database, PGConnectionManager, PoolClosedError

from ..configs import pools

Backends = Callable[[], list[tuple[int, str]]]


def _connection(database: Database[Any]) -> None:
    with database.connection() as connection:
        connection.execute("SELECT 1")


def _transaction(database: Database[Any]) -> None:
    with database.transaction():
        database.fetch_value("SELECT 1")


WAYS: dict[str, Callable[[Database[Any]], object]] = {
    "fetch_value": lambda database: database.fetch_value("SELECT 1"),
    "execute": lambda database: database.execute("SELECT 1 -- not prepared"),
    "connection": _connection,
    "transaction": _transaction,
    "stream": lambda database: list(database.stream("SELECT 1")),
    "connect": lambda database: database.connect(),
}


@pytest.mark.parametrize("way", WAYS)
def test_threads_use_what_another_one_closes(way: str, config: dict[str, Any], backends: Backends) -> None:
    database = Database(pools(config, max_size=2))
    errors: list[Exception] = []
    uses, end = 0, threading.Event()

    def use() -> None:
        nonlocal uses
        while not end.is_set():
            try:
                WAYS[way](database)
                uses += 1
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for round_ in range(12):
        before, until = uses, time.monotonic() + 5
        # At whatever moment of opening and borrowing, but not always: opening has to come to an end.
        while uses < before + 4 * (round_ % 3) and not errors:
            assert time.monotonic() < until
            time.sleep(0.001)
        database.close()
    end.set()
    for thread in threads:
        thread.join()
    assert errors == []
    database.close()
    while backends():
        time.sleep(0.01)


def test_who_waits_for_a_connection_gets_one_of_the_next_pool(config: dict[str, Any]) -> None:
    database = Database(pools(config, max_size=1))
    found: list[Any] = []
    with database.connection() as connection:
        pid = connection.info.backend_pid
        threads = [
            threading.Thread(target=lambda: found.append(database.fetch_value("SELECT pg_backend_pid()"))),
            threading.Thread(target=lambda: found.append(database.execute("SELECT 1"))),
        ]
        for thread in threads:
            thread.start()
        while database.stats()["requests_waiting"] < 2:
            time.sleep(0.01)
        database.close()
        for thread in threads:
            thread.join(5)
        assert len(found) == 2
        assert pid not in found
    database.close()


async def test_tasks_use_what_another_one_closes(config: dict[str, Any]) -> None:
    database = AsyncDatabase(pools(config, max_size=2))
    ended = False

    async def use() -> int:
        uses = 0
        while not ended:
            assert await database.fetch_value("SELECT 1") == 1
            async with database.transaction() as connection:
                await connection.execute("SELECT 1")
            uses += 1
        return uses

    tasks = [asyncio.create_task(use()) for _ in range(6)]
    for _ in range(100):
        await database.close()
        await asyncio.sleep(0.005)
    ended = True
    assert min(await asyncio.gather(*tasks)) > 0
    await database.close()


def test_a_handle_stays_closed(config: dict[str, Any]) -> None:
    """Unlike a database, it is of one pool: the manager gives the next one."""
    manager = PGConnectionManager()
    pool = manager.get_database_connection_from_dict(pools(config, max_size=1), "pool")
    errors: list[Exception] = []

    def wait() -> None:
        try:
            pool.borrow()
        except PoolClosedError as error:
            errors.append(error)

    with pool:
        thread = threading.Thread(target=wait)
        thread.start()
        while not pool.stats()["requests_waiting"]:
            time.sleep(0.01)
        manager.clear_cache()
        thread.join()
    assert "ask get_database_connection() again" in str(errors[0])
