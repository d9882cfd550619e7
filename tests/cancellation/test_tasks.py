"""Tasks that are cancelled, and cancelled again, at any point."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import sys
import time
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import psycopg
import pytest

from pgmonkey import AsyncDatabase

Backends = Callable[[], list[tuple[int, str]]]


async def test_cancelled_tasks_lose_no_connection_and_leave_nothing_open(
    config: dict[str, Any], backends: Backends, observer: psycopg.Connection[Any]
) -> None:
    observer.execute("CREATE TABLE t (a int)")
    config["async_pool_settings"] = {"min_size": 4, "max_size": 4}
    database = AsyncDatabase(config)
    acknowledged: list[int] = []

    async def work(number: int) -> None:
        async with database.transaction() as connection:
            await connection.execute("SELECT set_config('search_path', 'nowhere', false)")
            await connection.execute("INSERT INTO public.t VALUES (%s)", [number])
        acknowledged.append(number)

    rng = random.Random(1)
    for burst in range(20):
        tasks = [asyncio.create_task(work(burst * 20 + i)) for i in range(20)]
        await asyncio.sleep(rng.uniform(0, 0.02))
        for _ in range(2):
            for task in tasks:
                task.cancel()
            await asyncio.sleep(rng.uniform(0, 0.002))
        await asyncio.gather(*tasks, return_exceptions=True)
    await database.connect()  # on a slow machine not one task may have lived to see the pool opened
    stats = database.stats()
    for _ in range(100):  # what was closed is being replaced
        stats = database.stats()
        if stats["pool_available"] == stats["pool_size"]:
            break
        await asyncio.sleep(0.02)
    assert stats["pool_available"] == stats["pool_size"] <= 4
    assert stats["requests_waiting"] == 0
    for _ in range(100):
        if {state for _, state in backends()} <= {"idle"}:
            break
        await asyncio.sleep(0.02)
    assert {state for _, state in backends()} <= {"idle"}
    written = {row[0] for row in observer.execute("SELECT a FROM t").fetchall()}
    assert set(acknowledged) <= written
    paths = await asyncio.gather(*(database.fetch_value("SHOW search_path") for _ in range(20)))
    assert set(paths) == {'"$user", public'}


async def test_a_task_cancelled_while_it_waits_leaves_the_queue(config: dict[str, Any]) -> None:
    config["async_pool_settings"] = {"max_size": 1}
    database = AsyncDatabase(config)
    async with database.connection():
        waiting = [asyncio.create_task(database.fetch_value("SELECT 1")) for _ in range(3)]
        while database.stats()["requests_waiting"] < 3:
            await asyncio.sleep(0.001)
        waiting[0].cancel()
        waiting[1].cancel()
        await asyncio.wait(waiting[:2])
        assert database.stats()["requests_waiting"] == 1
    assert await waiting[2] == 1


async def test_a_connection_delivered_to_a_task_that_is_cancelled_goes_to_the_next(
    config: dict[str, Any],
) -> None:
    config["async_pool_settings"] = {"max_size": 1}
    database = AsyncDatabase(config)
    block = database.connection()
    await block.__aenter__()
    first, second = (asyncio.create_task(database.fetch_value("SELECT 1")) for _ in range(2))
    while database.stats()["requests_waiting"] < 2:
        await asyncio.sleep(0.001)
    await block.__aexit__(None, None, None)  # delivers to the first ...
    first.cancel()  # ... which has had no chance to run since
    assert await second == 1
    await asyncio.wait([first])
    assert first.cancelled()


async def test_a_connection_whose_cleaning_was_cancelled_is_not_lent_again(config: dict[str, Any]) -> None:
    started = asyncio.Event()

    async def reset(connection: object) -> None:
        started.set()
        await asyncio.sleep(60)

    config["async_pool_settings"] = {"max_size": 1, "reset": reset}
    database = AsyncDatabase(config)

    async def work() -> None:
        async with database.connection() as connection:
            await connection.execute("SELECT 1")

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    await asyncio.wait([task])
    assert database.stats()["pool_size"] == 0


async def test_a_cancelled_connect_is_closed_at_once(config: dict[str, Any], server: Any) -> None:
    def sockets() -> int:
        return sum(os.readlink(entry.path).startswith("socket:") for entry in os.scandir("/proc/self/fd"))

    database = AsyncDatabase(config)
    before = sockets()
    tasks = []
    for delay in range(40):
        task = asyncio.create_task(database.fetch_value("SELECT 1"))
        await asyncio.sleep(delay / 20_000)
        task.cancel()
        await asyncio.wait([task])
        tasks.append(task)  # with its exception, whose traceback holds what the frames in it hold
        await database.close()
    deadline = time.monotonic() + 5
    while sockets() > before + 1:  # an old asyncio takes a few rounds to end what was cancelled
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


@types.coroutine
def cancelled_at(wait: int, coroutine: Coroutine[Any, Any, None]) -> Generator[Any, Any, int]:
    """Await *coroutine*, whose task is cancelled when it waits for the *wait*-th time; return how often it waited."""
    error: BaseException | None = None
    task = asyncio.current_task()
    assert task is not None
    for number in itertools.count(1):
        try:
            waiting = coroutine.send(None) if error is None else coroutine.throw(error)
        except StopIteration:
            return number - 1
        if number == wait:
            task.cancel()
        error = None
        try:
            yield waiting
        except BaseException as caught:
            error = caught
    raise AssertionError("unreachable")


async def test_a_stream_that_is_cancelled_leaves_no_cursor_open(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    config["async_pool_settings"] = {"min_size": 1, "max_size": 1}
    database = AsyncDatabase(config)

    async def read() -> None:
        async for _ in database.stream("SELECT 1"):
            """Read on."""

    await read()
    waits = await cancelled_at(0, read())
    assert waits >= 3  # for the declaration, the rows and the COMMIT
    for wait in range(1, waits + 1):
        with pytest.raises(asyncio.CancelledError):
            await cancelled_at(wait, read())
    gc.collect()
    assert complaints == []
    assert await database.fetch_value("SELECT 1") == 1
    await database.close()


@pytest.mark.parametrize("way", ["pipeline", "executemany", "execute_many"])
async def test_what_was_cancelled_with_many_statements_under_way_is_not_lent_again(
    way: str, config: dict[str, Any], observer: psycopg.Connection[Any]
) -> None:
    observer.execute("CREATE TABLE t (a int)")
    config["async_pool_settings"] = {"max_size": 2, "timeout": 5}
    database = AsyncDatabase(config)
    insert, rows = "INSERT INTO t VALUES (%s)", [(number,) for number in range(20)]

    async def work() -> None:
        if way == "execute_many":
            await database.execute_many(insert, rows)
            return
        async with database.connection() as connection:
            if way == "executemany":
                await connection.cursor().executemany(insert, rows)
            else:
                async with connection.pipeline():
                    for row in rows:
                        await connection.execute(insert, row)

    rng = random.Random(1)
    for number in range(150):
        task = asyncio.create_task(work())
        if number % 2:
            await asyncio.sleep(rng.uniform(0, 0.008))
        else:
            for _ in range(number // 4):
                await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):  # and nothing else
            await task
        both = asyncio.gather(*(database.fetch_value("SELECT 7") for _ in range(2)))
        assert await asyncio.wait_for(both, 10) == [7, 7]
    await database.close()
