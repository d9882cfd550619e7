"""A unit of work that tasks or threads share: one cancels it, or ends it, while another uses it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import psycopg
import pytest
from psycopg.adapt import Dumper
from psycopg.errors import QueryCanceled

from pgmonkey import AsyncDatabase, CancelledUnitError, Database, GivenBackError, PoolTimeoutError

from ..configs import prepared

Observer = psycopg.Connection[Any]
ACTIVE = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND query = "
SLOW = f"{ACTIVE}'SELECT pg_sleep(60)'"


def wait_until(observer: Observer, query: str, value: int) -> None:
    deadline = time.monotonic() + 10
    while observer.execute(query.encode()).fetchone() != (value,):
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("by_query_method", [True, False])
async def test_cancelling_ends_the_statement_of_another_task(
    config: dict[str, Any], observer: Observer, by_query_method: bool
) -> None:
    database = AsyncDatabase(config)
    unit = database.begin()
    connection = await unit.connection()
    pid = connection.info.backend_pid

    async def sleep() -> None:
        await (database.execute if by_query_method else connection.execute)("SELECT pg_sleep(60)")

    task = asyncio.create_task(sleep())
    await asyncio.to_thread(wait_until, observer, SLOW, 1)
    await unit.cancel("the client is gone")
    with pytest.raises(QueryCanceled):
        await task
    with pytest.raises(CancelledUnitError):
        await unit.finish()
    assert observer.execute(SLOW.encode()).fetchone() == (0,)
    async with database.connection() as again:
        assert again.info.backend_pid == pid, "kept: it was idle and clean"
        assert again.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE


@pytest.mark.parametrize("by_query_method", [True, False])
def test_cancelling_ends_the_statement_of_another_thread(
    config: dict[str, Any], observer: Observer, by_query_method: bool
) -> None:
    database = Database(config)
    unit = database.begin()
    connection = unit.connection()
    pid = connection.info.backend_pid
    with ThreadPoolExecutor(1) as executor:
        statement: Callable[..., Any] = connection.execute
        if by_query_method:
            context = copy_context()
            statement = lambda query: context.run(database.execute, query)  # noqa: E731
        future = executor.submit(statement, "SELECT pg_sleep(60)")
        wait_until(observer, SLOW, 1)
        unit.cancel("the client is gone")
        with pytest.raises(QueryCanceled):
            future.result()
    with pytest.raises(CancelledUnitError):
        unit.finish()
    with database.connection() as again:
        assert again.info.backend_pid == pid
    assert observer.execute(SLOW.encode()).fetchone() == (0,)


PREPARED = f"{ACTIVE}'SELECT pg_sleep($1)::text'"


async def test_cancelling_ends_a_first_read_of_another_task(config: dict[str, Any], observer: Observer) -> None:
    told: list[str] = []
    database = AsyncDatabase(prepared(config))
    for _ in range(3):
        async with database.unit_of_work():
            await database.fetch_value("SELECT pg_sleep(%s)::text", [0])
    unit = database.begin(label=lambda: "GET /slow", on_borrow=lambda: told.append("borrowed"))
    task = asyncio.create_task(database.fetch_value("SELECT pg_sleep(%s)::text", [60]))
    await asyncio.to_thread(wait_until, observer, PREPARED, 1)
    assert told == ["borrowed"]
    with pytest.raises(PoolTimeoutError, match="for GET /slow"):
        async with database.connection(timeout=0.05):
            """Never lent."""
    await unit.cancel("the client is gone")
    with pytest.raises(QueryCanceled):
        await task
    with pytest.raises(CancelledUnitError):
        await unit.finish()
    assert observer.execute(PREPARED.encode()).fetchone() == (0,)
    stats = database.stats()
    assert stats["pool_size"] == stats["pool_available"] == 1


async def test_asking_for_the_connection_during_a_first_read_keeps_it(config: dict[str, Any]) -> None:
    database = AsyncDatabase(prepared(config))
    for _ in range(3):
        async with database.unit_of_work():
            await database.fetch_value("SELECT pg_sleep(%s)::text", [0.0])
    async with database.unit_of_work() as unit:
        task = asyncio.create_task(database.fetch_value("SELECT pg_sleep(%s)::text", [0.1]))
        await asyncio.sleep(0.05)
        connection = await unit.connection()
        await task
        assert unit.borrowed
        assert await (await connection.execute("SELECT 1")).fetchone() == (1,)
    assert connection.closed
    stats = database.stats()
    assert stats["pool_size"] == stats["pool_available"] == 1


def test_cancelling_ends_a_first_read_of_another_thread(config: dict[str, Any], observer: Observer) -> None:
    database = Database(prepared(config))
    for _ in range(3):
        with database.unit_of_work():
            database.fetch_value("SELECT pg_sleep(%s)::text", [0])
    unit = database.begin(label=lambda: "GET /slow")
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(copy_context().run, database.fetch_value, "SELECT pg_sleep(%s)::text", [60])
        wait_until(observer, PREPARED, 1)
        with pytest.raises(PoolTimeoutError, match="for GET /slow"):
            with database.connection(timeout=0.05):
                """Never lent."""
        unit.cancel("the client is gone")
        with pytest.raises(QueryCanceled):
            future.result()
    with pytest.raises(CancelledUnitError):
        unit.finish()
    assert observer.execute(PREPARED.encode()).fetchone() == (0,)
    stats = database.stats()
    assert stats["pool_size"] == stats["pool_available"] == 1


async def test_finish_waits_for_a_running_query(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = AsyncDatabase(config)
    unit = database.begin()
    await unit.connection()
    insert: Any = "INSERT INTO t SELECT 1 FROM pg_sleep(%s)"
    queries = [asyncio.create_task(database.execute(insert, [seconds])) for seconds in (0.4, 0, 0)]
    await asyncio.sleep(0.02)
    await unit.finish()
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (1,)
    outcomes = await asyncio.gather(*queries, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [int, GivenBackError, GivenBackError]
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (1,), "nothing runs outside its unit"


async def test_execute_many_waits_for_its_turn(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = AsyncDatabase(config)
    for _ in range(10):
        async with database.transaction():
            insert = "INSERT INTO t VALUES (%s)"
            counts = await asyncio.gather(
                database.execute_many(insert, [[1], [2]]),
                database.execute(insert, [3]),
                database.execute_many(insert, [[4], [5], [6]]),
            )
            assert list(counts) == [2, 1, 3]
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (60,)
    await database.close()


@pytest.mark.parametrize("first_read", [True, False])
def test_a_cancel_never_hits_the_next_borrower(config: dict[str, Any], first_read: bool) -> None:
    config = prepared(config)
    database = Database(config)
    stop = threading.Event()
    failures: list[Exception] = []

    def borrow() -> None:
        other = Database(config)
        while not stop.is_set():
            try:
                other.fetch_value("SELECT pg_sleep(0.001)")
            except Exception as error:
                failures.append(error)

    def finish(unit: Any) -> None:
        try:
            if first_read:
                database.fetch_value("SELECT pg_sleep(%s)::text", [0.022])
            else:
                unit.connection().execute("SELECT pg_sleep(0.022)")  # a request goes out after 0.02
            unit.finish()
        except psycopg.OperationalError:
            unit.finish(ZeroDivisionError())

    borrower = threading.Thread(target=borrow)
    borrower.start()
    with ThreadPoolExecutor(1) as executor:
        for i in range(150):
            for _ in range(3 * first_read):  # until it is a first read again
                with database.unit_of_work():
                    database.fetch_value("SELECT pg_sleep(%s)::text", [0.0])
            unit = database.begin()
            future = executor.submit(copy_context().run, finish, unit)
            time.sleep(i % 10 / 2000)
            unit.cancel("gone")
            future.result()
    stop.set()
    borrower.join()
    assert failures == []
    stats = database.stats()
    assert stats["pool_size"] == stats["pool_available"] == 1


def test_a_block_waits_for_the_first_statement_of_another_thread(config: dict[str, Any], observer: Observer) -> None:
    """Which has begun, but not reached the server: the block must not take the transaction for unused."""
    observer.execute("CREATE TABLE t (a int)")
    begun = threading.Event()

    class Slow(Dumper):
        oid = 23

        def dump(self, obj: int) -> bytes:
            if threading.current_thread() is not threading.main_thread():
                begun.set()
                time.sleep(0.2)
            return str(obj).encode()

    config = prepared(config)
    config["pool_settings"]["configure"] = lambda connection: connection.adapters.register_dumper(int, Slow)
    database = Database(config)
    for number in range(8):
        with database.transaction() as connection:
            connection.execute("INSERT INTO t VALUES (%s)", [number])
    with ThreadPoolExecutor(1) as executor:
        with database.transaction() as connection:
            late = executor.submit(connection.execute, "INSERT INTO t VALUES (%s)", [8])
            assert begun.wait(10)
        late.result()
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (9,)
    database.close()
