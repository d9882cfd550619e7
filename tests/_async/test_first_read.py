"""The first query of a unit of work is part of its transaction, also when it looks like a plain read.

Each program runs more often than it takes to have its statements prepared: it must do the same each time.
"""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from pgmonkey import AsyncDatabase, CancelledUnitError

from ..configs import prepared, proxied
from ..faults.proxy import FaultProxy
from .test_fast_path import Observer

TIMES = 10
COUNT: Any = "SELECT count(*) FROM t"


@pytest.fixture
def table(observer: Observer) -> Observer:
    observer.execute("CREATE TABLE t (a int)")
    return observer


async def warm(database: AsyncDatabase[Any], *statements: Any) -> None:
    """Have *statements* prepared."""
    for _ in range(3):
        for statement in statements:
            async with database.unit_of_work():
                await database.fetch_one(statement)


async def status(database: AsyncDatabase[Any]) -> TransactionStatus:
    unit = database.current_unit()
    assert unit is not None
    return (await unit.connection()).info.transaction_status


@pytest.mark.parametrize("text", ["SELECT count(*) FROM t", "SELECT now()", "VALUES (1)", "SELECT 1 FROM t FOR UPDATE"])
async def test_it_begins_the_transaction(text: Any, config: dict[str, Any], table: Observer) -> None:
    database = AsyncDatabase(prepared(config))
    for _ in range(TIMES):
        async with database.unit_of_work():
            await database.fetch_one(text)
            assert await status(database) == TransactionStatus.INTRANS
    await database.close()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_it_fixes_the_snapshot_of_the_transaction(level: str, config: dict[str, Any], table: Observer) -> None:
    settings = prepared(config)
    for session in ("sync_settings", "async_settings"):
        settings[session] = {"default_transaction_isolation": level}
    database = AsyncDatabase(settings)
    for number in range(TIMES):
        async with database.unit_of_work():
            assert await database.fetch_value(COUNT) == number
            table.execute("INSERT INTO t VALUES (1)")
            assert await database.fetch_value(COUNT) == number
    await database.close()


async def test_the_time_of_the_transaction_is_that_of_its_first_read(config: dict[str, Any], table: Observer) -> None:
    table.execute("CREATE VIEW clock AS SELECT now() AS a")
    database = AsyncDatabase(prepared(config))
    for _ in range(TIMES):
        async with database.unit_of_work():
            assert await database.fetch_value("SELECT a FROM clock") == await database.fetch_value("SELECT now()")
    await database.close()


async def test_a_view_that_writes_an_audit_row_writes_it_each_time(config: dict[str, Any], table: Observer) -> None:
    # The function catches the error that it would get in a read-only transaction.
    table.execute(
        "CREATE FUNCTION note() RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t VALUES (1); RETURN 1; "
        "EXCEPTION WHEN read_only_sql_transaction THEN RETURN 1; END $$"
    )
    table.execute("CREATE VIEW noting AS SELECT note() AS a")
    database = AsyncDatabase(prepared(config))
    read: Any = "SELECT a FROM noting"
    for number in range(TIMES):
        async with database.unit_of_work():
            assert await database.fetch_value(read) == 1
            assert table.execute(COUNT).fetchone() == (number,)
        assert table.execute(COUNT).fetchone() == (number + 1,)
    with pytest.raises(ZeroDivisionError):
        async with database.unit_of_work():
            assert await database.fetch_value(read) == 1
            raise ZeroDivisionError
    assert table.execute(COUNT).fetchone() == (TIMES,)
    await database.close()


@pytest.mark.parametrize(
    ("definition", "first", "holds"),
    [
        (
            "CREATE VIEW locking AS SELECT pg_advisory_xact_lock(7)::text AS a",
            "SELECT a FROM locking",
            "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        ),
        (
            "CREATE VIEW setting AS SELECT set_config('app.tenant', '7', true) AS a",
            "SELECT a FROM setting",
            "SELECT current_setting('app.tenant', true) = '7'",
        ),
        (
            "CREATE FUNCTION log(text) RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant', $1, true) $$",
            "SELECT log('7')",
            "SELECT current_setting('app.tenant', true) = '7'",
        ),
        (
            "CREATE FUNCTION set_it(int, text) RETURNS text LANGUAGE sql "
            "AS $$ SELECT set_config('app.tenant', $2, true) $$; "
            "CREATE OPERATOR === (LEFTARG = int, RIGHTARG = text, FUNCTION = set_it)",
            "SELECT 1 === '7'::text",
            "SELECT current_setting('app.tenant', true) = '7'",
        ),
    ],
    ids=["lock behind a view", "parameter behind a view", "own function of a known name", "own operator"],
)
async def test_what_it_sets_holds_until_the_end(
    definition: Any, first: Any, holds: Any, config: dict[str, Any], table: Observer
) -> None:
    table.execute(definition)
    database = AsyncDatabase(prepared(config))
    for _ in range(TIMES):
        async with database.unit_of_work():
            await database.fetch_one(first)
            assert await database.fetch_value(holds)
    await database.close()


async def test_a_cancelled_unit_of_work_reads_nothing(config: dict[str, Any], table: Observer) -> None:
    database = AsyncDatabase(prepared(config))
    await warm(database, COUNT)
    async with database.unit_of_work() as unit:
        await unit.cancel("the client is gone")
        with pytest.raises(CancelledUnitError):
            await database.fetch_value(COUNT)
        await unit.finish(ZeroDivisionError())
    await database.close()


async def test_an_error_of_the_first_read_fails_the_transaction(config: dict[str, Any], table: Observer) -> None:
    database = AsyncDatabase(prepared(config))
    divide: Any = "SELECT 1 / %s"
    for _ in range(3):
        async with database.unit_of_work():
            await database.fetch_value(divide, [1])
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        async with database.unit_of_work():
            with pytest.raises(psycopg.errors.DivisionByZero):
                await database.fetch_value(divide, [0])
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                await database.execute("INSERT INTO t VALUES (1)")
    assert table.execute(COUNT).fetchone() == (0,)
    async with database.unit_of_work():
        assert await database.fetch_value(divide, [1]) == 1
    await database.close()


async def test_deallocated_statements_are_prepared_again(config: dict[str, Any], table: Observer) -> None:
    database = AsyncDatabase(prepared(config))
    await warm(database, COUNT)
    for statement in ("DEALLOCATE ALL", "DISCARD ALL"):
        async with database.connection() as connection:
            await connection.set_autocommit(True)
            await connection.execute(statement.encode())
        await warm(database, COUNT)
        async with database.connection() as connection:  # where psycopg cannot know
            connection.pgconn.exec_(statement.encode())
        await warm(database, COUNT)
    table.execute("ALTER TABLE t ADD COLUMN b int")
    await warm(database, COUNT, "SELECT * FROM t")
    table.execute("ALTER TABLE t ADD COLUMN c int")
    await warm(database, COUNT, "SELECT * FROM t")
    await database.close()


async def test_two_round_trips_also_after_a_rollback(config: dict[str, Any], table: Observer) -> None:
    connect = config["connection_settings"]
    with FaultProxy(connect["host"], int(connect["port"])) as proxy:
        database = AsyncDatabase(proxied(config, proxy))
        await warm(database, COUNT)
        with pytest.raises(ZeroDivisionError):
            async with database.transaction():
                await database.execute("INSERT INTO t VALUES (1)")
                raise ZeroDivisionError
        await warm(database, COUNT)
        before = proxy.round_trips
        async with database.unit_of_work():
            assert await database.fetch_value(COUNT) == 0
        assert proxy.round_trips == before + 2
        await database.close()


async def test_a_notice_handler_hears_nothing_of_the_next_borrower(
    config: dict[str, Any], table: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    table.execute("CREATE FUNCTION tell() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'x'; RETURN 1; END $$")
    database = AsyncDatabase(prepared(config))
    tell: Any = "SELECT tell()"
    await warm(database, tell)
    heard: list[Any] = []
    async with database.connection() as kept:
        kept.add_notice_handler(heard.append)
        await kept.execute(tell)
    assert len(heard) == 1
    await database.fetch_value(tell)
    async with database.unit_of_work():
        await database.fetch_value(tell)
    assert len(heard) == 1
    assert not caplog.records  # of psycopg's, about a handler that failed
    assert kept.closed
    await database.close()
