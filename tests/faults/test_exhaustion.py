"""A server that is full, and a pool that closes under load."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import psycopg
import pytest

from pgmonkey import AsyncDatabase, Database, PoolClosedError

from .clusters import Cluster
from .load import wait_until

Figure = Callable[[str, str], None]
Others = Callable[[int], list[psycopg.Connection[Any]]]
FULL = "max_connections reached by others"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A server that is easily full."""
    with Cluster(
        settings={"max_connections": "12", "superuser_reserved_connections": "3", "max_wal_senders": "2"}
    ) as c:
        c.execute("CREATE ROLE worker LOGIN PASSWORD 'w'")
        yield c


@pytest.fixture
def config(config: dict[str, Any], cluster: Cluster, dbname: str) -> dict[str, Any]:
    cluster.execute("GRANT ALL ON t TO worker", dbname)
    pool = {"min_size": 4, "max_size": 4, "timeout": 5}
    settings = {**config["connection_settings"], "user": "worker", "password": "w"}
    return {"connection_settings": settings, "pool_settings": dict(pool), "async_pool_settings": dict(pool)}


@pytest.fixture
def others(config: dict[str, Any]) -> Iterator[Callable[[int], list[psycopg.Connection[Any]]]]:
    """A function that takes connections away from the pool."""
    with ExitStack() as stack:
        yield lambda number: [
            stack.enter_context(closing(psycopg.connect(**config["connection_settings"]))) for _ in range(number)
        ]


def test_the_server_is_full(config: dict[str, Any], others: Others, figure: Figure) -> None:
    held = others(9)
    database = Database(config)
    started = time.monotonic()
    with pytest.raises(psycopg.OperationalError, match=r"remaining connection slots|too many clients") as caught:
        database.fetch_value("SELECT 1")
    took = time.monotonic() - started
    assert took < 0.5
    words = str(caught.value).rpartition("FATAL:")[2].strip()
    held.pop().close()
    recovered = wait_until(lambda: _works(database), 5)
    # One slot is free now, and eight borrowers want one of four connections each: they are served one after another.
    served: list[int] = []
    refused: list[str] = []

    def work(number: int) -> None:
        try:
            with database.connection() as connection:
                connection.execute("SELECT pg_sleep(0.05)")
            served.append(number)
        except psycopg.OperationalError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    for connection in held:
        connection.close()
    for thread in threads:
        thread.join()
    assert all("slots" in error or "too many" in error for error in refused)
    assert served
    full = wait_until(lambda: _works(database) and database.stats()["pool_available"] == 4, 5)
    assert recovered < 1
    assert full < 1
    figure(
        FULL,
        f'sync: "{words}" after {took * 1000:.0f} ms; served again {recovered * 1000:.0f} ms after a slot was free; '
        f"full size {full:.2f} s after all were",
    )


async def test_the_server_is_full_for_tasks(config: dict[str, Any], others: Others, figure: Figure) -> None:
    held = others(7)
    database = AsyncDatabase(config)
    # Two of four connections can be made: whoever cannot have one of his own hears why, or waits for one of the two.
    results = await asyncio.gather(*(_sleep(database) for _ in range(30)))
    served = results.count("")
    assert served
    assert all("slots" in error or "too many" in error for error in results if error), set(results)
    for connection in held:
        connection.close()
    await asyncio.to_thread(time.sleep, 0.05)
    assert await asyncio.gather(*(_sleep(database) for _ in range(30))) == [""] * 30
    await database.close()
    figure(
        FULL, f"async: 30 at once over two slots, {served} served, the others with the server's words; then 30 of 30"
    )


async def _sleep(database: AsyncDatabase[Any]) -> str:
    try:
        await database.fetch_value("SELECT pg_sleep(0.02)")
    except psycopg.OperationalError as error:
        return str(error)
    return ""


def _works(database: Database[Any]) -> bool:
    try:
        return bool(database.fetch_value("SELECT 1"))
    except psycopg.OperationalError:
        return False


async def test_a_pool_that_closes_under_load(
    config: dict[str, Any], cluster: Cluster, dbname: str, figure: Figure
) -> None:
    outcomes: list[str] = []
    database, async_database = Database(config), AsyncDatabase(config)

    def work() -> None:
        try:
            with handle.connection() as connection:
                connection.execute("SELECT pg_sleep(0.3)")
            outcomes.append("finished")
        except PoolClosedError:
            outcomes.append("closed")

    async def async_work() -> None:
        try:
            async with async_handle.connection() as connection:
                await connection.execute("SELECT pg_sleep(0.3)")
            outcomes.append("finished")
        except PoolClosedError:
            outcomes.append("closed")

    handle, async_handle = database._pool(), await async_database._pool()
    while {handle.stats()["pool_available"], async_handle.stats()["pool_available"]} != {4}:
        await asyncio.sleep(0.005)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    tasks = [asyncio.create_task(async_work()) for _ in range(8)]
    while handle.stats()["requests_waiting"] < 4 or async_handle.stats()["requests_waiting"] < 4:
        await asyncio.sleep(0.005)
    handle.close()
    async_handle.close()
    await asyncio.gather(*tasks)
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert sorted(outcomes) == ["closed"] * 8 + ["finished"] * 8, outcomes
    query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{dbname}'"
    await asyncio.to_thread(wait_until, lambda: cluster.execute(query) == [(0,)], 5)
    figure("Closing a pool under load", "8 of 8 at work finish, 8 of 8 waiting get PoolClosedError, 0 sessions left")
