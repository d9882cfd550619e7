"""Transactions whose statements are prepared: few round trips, and cursors that are psycopg's in all else."""

from __future__ import annotations

from functools import partial
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from psycopg import pq
from psycopg.generators import execute
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row, scalar_row

from pgmonkey import AsyncDatabase, PGConnectionManager
from pgmonkey._async import cursor as cursors
from pgmonkey._async import fastpath as fast

from ..configs import prepared, proxied
from ..faults.proxy import FaultProxy
from ..values import VALUES, first_row, outcome, small
from .concurrency import run_to_end
from .test_fast_path import Hits, Observer


@pytest.fixture
def fast_path_hits(monkeypatch: pytest.MonkeyPatch) -> Hits:
    """A function that returns how many statements of transactions took the fast path so far."""
    taken = 0
    usual = fast.execute_plan

    async def counted(*arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        return await usual(*arguments)

    monkeypatch.setattr(fast, "execute_plan", counted)
    monkeypatch.setattr(cursors, "execute_plan", counted)
    return lambda: taken


async def test_round_trips(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    connect = config["connection_settings"]
    with FaultProxy(connect["host"], int(connect["port"])) as proxy:
        database = AsyncDatabase(proxied(config, proxy))

        async def query() -> None:
            assert await database.fetch_one("SELECT 1") == (1,)

        async def reads_once() -> None:
            async with database.unit_of_work():
                assert await database.fetch_one("SELECT 1") == (1,)

        async def reads_twice() -> None:
            async with database.unit_of_work():
                assert await database.fetch_one("SELECT 1") == (1,)
                assert await database.fetch_value("SELECT 1") == 1

        async def transaction() -> None:
            async with database.transaction() as connection:
                cursor = await connection.execute("SELECT 1")
                assert await cursor.fetchone() == (1,)

        async def reads_in_a_transaction() -> None:
            async with database.transaction():
                assert await database.fetch_one("SELECT 1") == (1,)

        async def writes_three_times() -> None:
            async with database.unit_of_work():
                for a in range(3):
                    await database.execute("INSERT INTO t VALUES (%s)", [a])

        async def nothing() -> None:
            async with database.unit_of_work():
                """Does not need the database."""

        for function, expected in {
            query: 1,
            reads_once: 2,
            reads_twice: 3,
            transaction: 2,
            reads_in_a_transaction: 2,
            writes_three_times: 4,
            nothing: 0,
        }.items():
            for _ in range(3):
                await function()
            before = proxy.round_trips
            for _ in range(10):
                await function()
            assert proxy.round_trips - before == 10 * expected, function
        await database.close()


@pytest.mark.parametrize("name", VALUES)
async def test_every_built_in_type(name: str, config: dict[str, Any], observer: Observer, fast_path_hits: Hits) -> None:
    database = AsyncDatabase(prepared(config))
    query: Any = f"SELECT %s::{name} AS a, pg_typeof(%s)::text AS b"
    pairs: list[tuple[Any, Any]] = []

    @settings(
        max_examples=10,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        database=None,
    )
    @given(value=VALUES[name], other=small)
    def collect(value: Any, other: Any) -> None:
        pairs.append((value, other))

    collect()

    async def by_cursor(pair: Any) -> Any:
        async with database.transaction() as connection:
            cursor = await connection.execute(query, pair)
            assert [column.name for column in cursor.description or ()] == ["a", "b"]
            return await cursor.fetchone()

    async def by_query_method(pair: Any) -> Any:
        async with database.transaction():
            return await database.fetch_one(query, pair)

    for pair in pairs:
        expected = outcome(partial(first_row, observer, query, pair))
        for way in (by_cursor, by_query_method):
            assert repr(await run_to_end(partial(way, pair))) == repr(expected), pair
    assert fast_path_hits() > len(pairs) // 3
    await database.close()


async def test_cursors_are_psycopgs(config: dict[str, Any], observer: Observer, fast_path_hits: Hits) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = AsyncDatabase(prepared(config), row_factory=dict_row)
    numbers: Any = "SELECT a FROM generate_series(1, %s) AS a"
    for _ in range(3):
        async with database.transaction() as connection:
            first = await connection.execute(numbers, [3])
            second = await connection.execute(numbers, [2])
            assert first.rowcount == 3
            assert first.statusmessage == "SELECT 3"
            assert await second.fetchall() == [{"a": 1}, {"a": 2}]
            assert await first.fetchall() == [{"a": 1}, {"a": 2}, {"a": 3}]
            assert connection.info.transaction_status == TransactionStatus.INTRANS
            assert (await connection.execute(numbers.encode(), [2])).rowcount == 2
            scalars = connection.cursor(row_factory=scalar_row)
            await scalars.execute(numbers, [2])
            assert [row async for row in scalars] == [1, 2]
            await scalars.execute(numbers, [1], binary=True)
            assert await scalars.fetchall() == [1]
            await scalars.close()
            with pytest.raises(psycopg.InterfaceError):
                await scalars.execute(numbers, [1])
            written = await connection.execute("INSERT INTO t SELECT a FROM generate_series(1, %s) AS a", [4])
            assert written.rowcount == 4
            assert written.description is None
            with pytest.raises(psycopg.ProgrammingError):
                await written.fetchone()
            async with connection.pipeline():
                piped = await connection.execute(numbers, [1])
                assert await piped.fetchall() == [{"a": 1}]
            async with connection.transaction():
                await connection.execute(numbers, [1])
    assert (
        fast_path_hits() == 15
    )  # all but the first of each text, in binary, in the pipeline, and of the closed cursor
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (12,)
    await database.close()


async def test_types_of_a_borrower_are_the_borrowers(config: dict[str, Any], fast_path_hits: Hits) -> None:
    from psycopg.types.string import TextLoader

    database = AsyncDatabase(prepared(config))
    query: Any = "SELECT %s::int4"
    for _ in range(3):
        async with database.transaction() as connection:
            assert await (await connection.execute(query, [1])).fetchone() == (1,)
            assert await database.fetch_one(query, [1]) == (1,)
    taken = fast_path_hits()
    async with database.transaction() as connection:
        connection.adapters.register_loader("int4", TextLoader)
        assert await (await connection.execute(query, [1])).fetchone() == ("1",)
        assert await database.fetch_one(query, [1]) == ("1",)
    async with database.transaction() as connection:
        cursor = connection.cursor()
        cursor.adapters.register_loader("int4", TextLoader)
        assert await (await cursor.execute(query, [1])).fetchone() == ("1",)
    assert fast_path_hits() == taken
    async with database.transaction() as connection:
        assert await (await connection.execute(query, [1])).fetchone() == (1,)
        connection.row_factory = dict_row  # type: ignore[assignment]
        row: Any = await database.fetch_one(query, [1])
        assert row == {"int4": 1}
    assert fast_path_hits() == taken + 2
    await database.close()


async def test_an_error_of_the_first_statement_is_the_transactions(
    config: dict[str, Any], observer: Observer, fast_path_hits: Hits
) -> None:
    database = AsyncDatabase(prepared(config))
    divide: Any = "SELECT 1 / %s"
    for _ in range(3):
        await database.fetch_value(divide, [1])
    for _ in range(3):
        with pytest.raises(psycopg.errors.DivisionByZero):
            async with database.transaction() as connection:
                try:
                    await connection.execute(divide, [0])
                finally:
                    assert connection.info.transaction_status == TransactionStatus.INERROR
                    assert connection.pgconn.pipeline_status == pq.PipelineStatus.OFF
        assert await database.fetch_value(divide, [1]) == 1
        await database.fetch_value(divide, [1])
        async with database.transaction(isolation="serializable", read_only=True) as connection:
            cursor = await connection.execute(divide, [1])
            assert await cursor.fetchone() == (1,)
            assert await database.fetch_value("SHOW transaction_isolation") == "serializable"
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                async with connection.transaction():
                    await connection.execute("CREATE TABLE no (a int)")
    assert fast_path_hits() > 3
    stats = database.stats()
    assert stats["pool_available"] == stats["pool_size"] == 1
    await database.close()


async def test_notices_and_notifications(config: dict[str, Any], observer: Observer, fast_path_hits: Hits) -> None:
    observer.execute(
        "CREATE FUNCTION tell() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'hello'; RETURN 1; END $$"
    )
    database = AsyncDatabase(prepared(config))
    for _ in range(3):
        await database.fetch_value("SELECT tell()")
    heard: list[Any] = []
    async with database.connection() as connection:
        await connection.set_autocommit(True)
        for _ in range(2):
            await connection.execute("SELECT 1")
        connection.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))
        await connection.execute("SELECT tell()")
        assert heard == ["hello"]
        connection._notice_handlers.clear()
        await connection.execute("LISTEN news")
        observer.execute("NOTIFY news, 'one'")
        taken = fast_path_hits()
        await connection.execute("SELECT 1")
        assert fast_path_hits() == taken + 1
        async for notification in connection.notifies(timeout=2, stop_after=1):
            heard.append(notification.payload)
    # Before 3.3, psycopg forgot a notification that came with the answer to a statement.
    assert heard == ["hello", "one"] if psycopg.__version__ >= "3.3" else ["hello"]
    await database.close()


async def test_only_what_may_leave_something_is_cleaned(config: dict[str, Any], observer: Observer) -> None:
    observer.execute(
        "CREATE FUNCTION tenant(id text) RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant', id, false) $$"
    )
    connect = config["connection_settings"]
    with FaultProxy(connect["host"], int(connect["port"])) as proxy:
        manager = PGConnectionManager()
        handle = await manager.get_database_connection_from_dict(proxied(config, proxy), "async_pool")

        async def round_trips(*statements: Any) -> int:
            lease = await handle.borrow(autocommit=True)
            before = proxy.round_trips
            for statement in statements:
                await lease.connection.execute(statement)
            await lease.finish()
            return proxy.round_trips - before

        tenant = "SELECT current_setting('app.tenant', true)"
        for _ in range(4):
            await round_trips("SELECT 1", "SELECT 2", tenant)
        assert await round_trips("SELECT 1", "SELECT 2") == 2
        assert await round_trips("SELECT tenant('mine')", "SELECT 1") in (3, 4)  # prepared or not, cleaned
        assert await round_trips("SELECT 1", "SELECT 2") == 2
        async with handle as connection:
            await connection.execute("SELECT tenant('mine')")
        async with handle as connection:
            assert await (await connection.execute(tenant)).fetchone() in ((None,), ("",))
        async with handle as connection:
            connection.pgconn.send_query(b"SET app.tenant = 'mine'")
            await connection.wait(execute(connection.pgconn))
            await connection.execute("SELECT 77")
        async with handle as connection:
            assert await (await connection.execute(tenant)).fetchone() in ((None,), ("",))
        lease = await handle.borrow(autocommit=True)
        before = proxy.round_trips
        async with psycopg.AsyncClientCursor(lease.connection) as cursor:
            await cursor.execute("SELECT %s", ["not a -- comment"])
        await lease.finish()
        assert proxy.round_trips - before == 1
        async with handle as connection:
            async with psycopg.AsyncClientCursor(connection) as cursor:
                await cursor.execute("SELECT tenant(%s)", ["mine"])
        async with handle as connection:
            assert await (await connection.execute(tenant)).fetchone() in ((None,), ("",))
        await manager.clear_cache_async()
