"""The ``timeout`` of a call, a block and a request: what has not ended by then is cancelled, and the error names it."""

from __future__ import annotations

import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg.errors import SerializationFailure
from psycopg.rows import dict_row

from pgmonkey import (
    AsyncDatabase,
    CommandTimeoutError,
    CommitUnknownError,
    Deadline,
    DeadlineExceededError,
    PoolTimeoutError,
)
from pgmonkey._async.waiting import sleep

from ..configs import pools, prepared, proxied
from ..faults.proxy import FaultProxy
from .concurrency import Beside

Observer = psycopg.Connection[Any]
# Seconds that a machine with much to do may be late.
LATE = 10
SLOW = "SELECT pg_sleep(%s::float8)"
LONG = 60.0


def calls(database: AsyncDatabase[Any], timeout: float) -> dict[str, Callable[[], Awaitable[object]]]:
    async def stream() -> None:
        async for _ in database.stream(SLOW, [LONG], timeout=timeout):
            pass

    async def transaction() -> None:
        async with database.transaction(timeout=timeout):
            await database.fetch_value("SELECT 1")
            await database.execute(SLOW, [LONG])

    async def cursor() -> None:
        async with database.transaction(timeout=timeout) as connection:
            await connection.execute(SLOW, [LONG])

    async def connection() -> None:
        async with database.connection(timeout=timeout) as connection:
            await connection.execute("SELECT 1")
            await connection.execute(SLOW, [LONG])

    async def batch() -> None:
        async with database.batch(timeout=timeout) as batch:
            batch.execute("SELECT 1")
            batch.execute(SLOW, [LONG])

    return {
        "fetch_one": lambda: database.fetch_one(SLOW, [LONG], timeout=timeout),
        "fetch_one of dict_row": lambda: database.fetch_one(SLOW, [LONG], row_factory=dict_row, timeout=timeout),
        "fetch_exactly_one": lambda: database.fetch_exactly_one(SLOW, [LONG], timeout=timeout),
        "fetch_all": lambda: database.fetch_all(SLOW, [LONG], timeout=timeout),
        "fetch_value": lambda: database.fetch_value(SLOW, [LONG], timeout=timeout),
        "fetch_values": lambda: database.fetch_values(SLOW, [LONG], timeout=timeout),
        "execute": lambda: database.execute(SLOW, [LONG], timeout=timeout),
        "execute_many": lambda: database.execute_many(SLOW, [[0], [LONG]], timeout=timeout),
        "stream": stream,
        "transaction": transaction,
        "cursor": cursor,
        "connection": connection,
        "batch": batch,
        "copy_to": lambda: database.copy_to(SLOW, io.BytesIO(), [LONG], timeout=timeout),
        "retry": lambda: database.retry(lambda: database.execute(SLOW, [LONG]), timeout=timeout),
    }


def sleeping(observer: Observer) -> int:
    """Return how many sessions execute the slow statement."""
    row = observer.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query ~ 'pg_sleep'"
        " AND datname = current_database() AND pid <> pg_backend_pid()"
    ).fetchone()
    assert row is not None
    return int(row[0])


async def expect_late(call: Callable[[], Awaitable[object]], observer: Observer) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError) as caught:
        await call()
    assert 0.2 <= time.monotonic() - started < 0.2 + LATE
    assert "did not end within 0.25 s (timeout)" in str(caught.value)
    assert isinstance(caught.value, CommandTimeoutError)
    await expect(lambda: sleeping(observer) == 0)


async def side_by_side(works: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """Do them all at the same time: most of what they take is waiting."""
    for each in [Beside(work) for work in works]:
        if isinstance(error := await each.end(), BaseException):
            raise error


async def wide(config: dict[str, Any], **settings: Any) -> AsyncDatabase:
    """Return a database with a connection ready for each of the calls."""
    database = AsyncDatabase(pools(config, min_size=16, max_size=16, **settings))
    await database.connect()
    await expect(lambda: database.stats()["pool_available"] == 16)
    return database


async def expect(what: Callable[[], bool]) -> None:
    """Wait until *what* is true, as it is to become."""
    deadline = time.monotonic() + LATE
    while not what():
        assert time.monotonic() < deadline
        await sleep(0.01)


async def test_calls_side_by_side_end_in_time_and_are_cancelled(config: dict[str, Any], observer: Observer) -> None:
    database = await wide(config)
    await side_by_side(partial(expect_late, call, observer) for call in calls(database, 0.25).values())
    assert await database.fetch_value("SELECT 1") == 1
    await expect(lambda: database.stats()["pool_available"] == 16)  # of which upkeep has made some anew
    await database.close()


async def test_every_call_ends_in_time_and_is_cancelled(config: dict[str, Any], observer: Observer) -> None:
    database = AsyncDatabase(prepared(config))
    for _ in range(3):
        assert await database.fetch_one(SLOW, [0], timeout=LONG) == ("",)
        await database.fetch_value(SLOW, [0])
    for call in calls(database, 0.25).values():
        await expect_late(call, observer)
        assert await database.fetch_value("SELECT 1") == 1
    # Two of them are beside each other in a unit of work, whose transaction is lost with its connection.
    for name in ("fetch_one", "fetch_one of dict_row", "fetch_exactly_one", "execute", "execute_many", "batch"):
        with pytest.raises(psycopg.OperationalError):
            async with database.unit_of_work():
                await database.fetch_value("SELECT 1")
                await expect_late(calls(database, 0.25)[name], observer)
    stats = database.stats()
    assert stats["pool_available"] == stats["pool_size"]
    await database.close()


async def test_a_timeout_that_is_not_reached_costs_no_round_trip(config: dict[str, Any]) -> None:
    settings = config["connection_settings"]
    with FaultProxy(settings["host"], int(settings["port"])) as proxy:
        database = AsyncDatabase(proxied(config, proxy))

        async def both() -> None:
            await database.fetch_value("SELECT 1", timeout=LONG)
            async with database.transaction(timeout=LONG):
                await database.fetch_value("SELECT 1", timeout=LONG)

        for _ in range(3):
            await both()
        before = proxy.round_trips
        await both()
        assert proxy.round_trips - before == 3
        await database.close()


async def test_the_shorter_of_two_limits_counts(config: dict[str, Any]) -> None:
    config["connection_settings"]["command_timeout"] = 0.25
    database = await wide(config)

    async def expect_command_timeout(call: Callable[[], Awaitable[object]]) -> None:
        with suppress(DeadlineExceededError):  # what the machine makes late, else
            with pytest.raises(CommandTimeoutError, match=r"0\.25 s \(command_timeout\)"):
                await call()

    await side_by_side(partial(expect_command_timeout, call) for call in calls(database, LONG).values())
    await database.close()


@pytest.mark.parametrize("timeout", [0.0, -3.0])
async def test_where_no_time_is_left_nothing_is_begun(
    timeout: float, config: dict[str, Any], observer: Observer
) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = AsyncDatabase(pools(config))
    await database.fetch_value("SELECT 1")
    for _ in range(3):
        with pytest.raises(DeadlineExceededError, match=rf"within {timeout:g} s \(timeout\)"):
            await database.execute("INSERT INTO t VALUES (1)", timeout=timeout)
        with pytest.raises(DeadlineExceededError):
            async with database.transaction(timeout=timeout):
                await database.execute("INSERT INTO t VALUES (1)")
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (0,)
    assert database.stats()["pool_size"] == 1
    await database.close()


async def test_a_wait_for_a_connection_raises_what_the_pool_raises(config: dict[str, Any]) -> None:
    database = AsyncDatabase(pools(config, max_size=1, timeout=60))
    for _ in range(3):
        await database.fetch_value(SLOW, [0])

    async def expect_none(name: str, call: Callable[[], Awaitable[object]]) -> None:
        started = time.monotonic()
        with pytest.raises(PoolTimeoutError, match=r"\(timeout\)"):
            await call()
        assert time.monotonic() - started < LATE, name

    async with database.connection():
        await side_by_side(partial(expect_none, *each) for each in calls(database, 0.25).items())
    await database.close()


async def test_what_ends_too_late_is_not_committed(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = AsyncDatabase(pools(config))
    with pytest.raises(DeadlineExceededError, match=r"nothing was committed: .* within 1\.5 s \(timeout\)"):
        async with database.transaction(timeout=1.5):
            await database.execute("INSERT INTO t VALUES (1)")
            await sleep(1.6)
    with pytest.raises(DeadlineExceededError, match="no statement was begun"):
        async with database.transaction(timeout=1.5):
            await sleep(1.6)
            await database.execute("INSERT INTO t VALUES (2)")
    # An error that is more important stays what is raised.
    with pytest.raises(ZeroDivisionError):
        async with database.transaction(timeout=1.5):
            await database.execute("INSERT INTO t VALUES (3)")
            await sleep(1.6)
            raise ZeroDivisionError
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (0,)
    assert await database.fetch_value("SELECT 1") == 1
    await database.close()


async def test_a_block_in_a_transaction_has_a_time_of_its_own(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = AsyncDatabase(pools(config))
    async with database.transaction(timeout=LONG) as connection:
        await database.execute("INSERT INTO t VALUES (1)")
        async with database.transaction(timeout=LONG):
            await database.execute("INSERT INTO t VALUES (2)", timeout=LONG)
        # It ended too late: its savepoint is rolled back, and the rest goes on.
        with pytest.raises(DeadlineExceededError, match=r"the block did not end within 1\.5 s"):
            async with database.transaction(timeout=1.5):
                await database.execute("INSERT INTO t VALUES (3)")
                await sleep(1.6)
        with pytest.raises(DeadlineExceededError, match="no statement was begun"):
            async with database.transaction(timeout=1.5):
                await sleep(1.6)
                await connection.execute("INSERT INTO t VALUES (4)")
        await connection.execute("INSERT INTO t VALUES (5)")
    assert observer.execute("SELECT a FROM t ORDER BY a").fetchall() == [(1,), (2,), (5,)]
    with pytest.raises(psycopg.OperationalError):  # the connection is lost, and so is the transaction
        async with database.transaction():
            await database.execute("INSERT INTO t VALUES (6)")
            with pytest.raises(DeadlineExceededError):
                async with database.transaction(timeout=1.5):
                    await database.execute(SLOW, [LONG])
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (3,)
    await database.close()


async def test_the_end_of_a_block_has_no_more_time_than_the_block(config: dict[str, Any]) -> None:
    settings = config["connection_settings"]
    with FaultProxy(settings["host"], int(settings["port"])) as proxy:
        database = AsyncDatabase(proxied(config, proxy))
        for late in (False, True):  # its savepoint is released, or rolled back
            with pytest.raises(psycopg.OperationalError):  # the connection is lost
                async with database.transaction():
                    await database.execute("SELECT 1")
                    started = time.monotonic()
                    with pytest.raises(DeadlineExceededError):
                        async with database.transaction(timeout=1.5):
                            await database.execute("SELECT 1")
                            proxy.silent = True
                            await sleep(1.6 if late else 0)
                    assert time.monotonic() - started < LATE
            proxy.silent = False
            proxy.reset_all()
        assert await database.fetch_value("SELECT 1") == 1
        await database.close()


async def test_a_copy_whose_rows_take_too_long(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = AsyncDatabase(pools(config))

    async def rows() -> AsyncIterator[tuple[int]]:
        for number in range(1000):
            yield (number,)
        await sleep(1.6)
        yield (1000,)

    with pytest.raises(DeadlineExceededError):
        await database.copy_rows("t", rows(), timeout=1.5)
    with pytest.raises(psycopg.OperationalError):  # the connection is lost, and so is the transaction
        async with database.transaction():
            await database.execute("INSERT INTO t VALUES (-1)")
            with pytest.raises(DeadlineExceededError):
                await database.copy_rows("t", rows(), timeout=1.5)
            with pytest.raises(psycopg.OperationalError, match="closed"):
                await database.execute("INSERT INTO t VALUES (-2)")
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (0,)
    assert await database.fetch_value("SELECT 1") == 1
    await database.close()


async def test_all_attempts_of_a_transaction_have_one_limit(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = AsyncDatabase(pools(config))
    tried = 0

    async def conflict() -> None:
        nonlocal tried
        tried += 1
        await database.execute("INSERT INTO t VALUES (1)")
        raise SerializationFailure("another transaction was first")

    with pytest.raises(DeadlineExceededError, match=r"within 1 s \(timeout\)"):
        await database.retry(conflict, attempts=10**6, timeout=1)
    assert tried > 1
    with pytest.raises(SerializationFailure):
        await database.retry(conflict, attempts=2, timeout=LONG)
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (0,)
    await database.close()


async def test_the_attempts_in_a_unit_of_work_have_a_limit_of_their_own(
    config: dict[str, Any], observer: Observer
) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = AsyncDatabase(prepared(config))  # of one connection

    async def insert() -> int:
        return await database.execute("INSERT INTO t VALUES (1)")

    async with database.unit_of_work():
        assert await database.retry(insert, timeout=2) == 1
        await sleep(2.1)
        await insert()  # not limited any more
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (2,)
    with pytest.raises(DeadlineExceededError):
        async with database.unit_of_work():
            await database.retry(lambda: database.execute(SLOW, [LONG]), timeout=0.25)
    async with database.connection():
        started = time.monotonic()
        with pytest.raises(PoolTimeoutError):
            async with database.unit_of_work():
                await database.retry(insert, timeout=0.25)
        assert time.monotonic() - started < LATE
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (2,)
    await database.close()


async def test_a_timeout_does_not_lengthen_the_wait_for_a_connection(config: dict[str, Any]) -> None:
    database = AsyncDatabase(pools(config, max_size=1, timeout=0.25))
    await database.fetch_value("SELECT 1")
    async with database.connection():
        started = time.monotonic()
        with pytest.raises(PoolTimeoutError):
            async with database.unit_of_work():
                await database.fetch_value("SELECT 1", timeout=LONG)
        with pytest.raises(PoolTimeoutError):
            async with database.unit_of_work(), database.transaction(timeout=LONG):
                pass
        assert time.monotonic() - started < LATE
    await database.close()


async def test_a_wait_for_its_turn_ends_in_time(config: dict[str, Any]) -> None:
    database = AsyncDatabase(pools(config))
    async with database.transaction() as connection:
        ready = Beside(lambda: database.execute(SLOW, [5.0]))
        while connection.pgconn.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
            await sleep(0.01)
        with pytest.raises(DeadlineExceededError, match="another statement of this transaction did not end"):
            await database.fetch_value("SELECT 1", timeout=0.25)
        assert await ready.end() == 1
        assert await database.fetch_value("SELECT 1", timeout=LONG) == 1
    await database.close()


async def test_the_next_borrower_has_all_the_time(config: dict[str, Any]) -> None:
    database = AsyncDatabase(prepared(config))  # of one connection
    async with database.transaction(timeout=2):
        await database.fetch_value("SELECT 1")
    with suppress(ZeroDivisionError):
        async with database.transaction(timeout=2):
            await database.fetch_value("SELECT 1")
            raise ZeroDivisionError
    async with database.connection(timeout=2) as connection:
        await connection.execute("SELECT 1")
    await database.fetch_value("SELECT 2", timeout=2)
    await sleep(2.1)
    async with database.transaction():
        await database.fetch_value("SELECT 1")
    assert await database.fetch_value("SELECT 1") == 1
    await database.close()


async def test_a_commit_that_does_not_end_in_time(config: dict[str, Any], observer: Observer) -> None:
    body = "BEGIN PERFORM pg_sleep(60); RETURN NULL; END"
    observer.execute(f"CREATE FUNCTION slow() RETURNS trigger AS '{body}' LANGUAGE plpgsql".encode())
    observer.execute("CREATE TABLE t (a int)")
    deferred = "AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
    observer.execute(f"CREATE CONSTRAINT TRIGGER slow {deferred} EXECUTE FUNCTION slow()".encode())
    database = AsyncDatabase(pools(config))
    with pytest.raises(CommitUnknownError, match=r"within 2 s \(timeout\)"):
        async with database.transaction(timeout=2):
            await database.execute("INSERT INTO t VALUES (1)")
    await database.close()


async def test_the_deadline_of_a_request(config: dict[str, Any], observer: Observer) -> None:
    database = await wide(config, timeout=60)
    deadline: list[Deadline | None] = [None]
    database.deadline = lambda: deadline[0]
    causes: list[type] = []

    async def expect_late(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(DeadlineExceededError, match=r"within 0\.25 s \(PGMONKEY_DEADLINE\)") as caught:
            await call()
        causes.append(type(caught.value.__cause__))

    async def ask_all() -> None:
        deadline[0] = Deadline.after(0.25, "PGMONKEY_DEADLINE")
        await side_by_side(partial(expect_late, call) for call in calls(database, LONG).values())
        await expect(lambda: sleeping(observer) == 0)
        deadline[0] = None

    await ask_all()
    assert await database.fetch_value("SELECT 1") == 1
    causes.clear()
    leases = [await database.borrow() for _ in range(16)]
    await ask_all()
    assert PoolTimeoutError in causes  # of all, on a machine that has time for them
    for lease in leases:
        await lease.finish()
    assert await database.fetch_value("SELECT 1") == 1
    await database.close()
