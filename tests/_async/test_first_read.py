"""The first query of a unit of work, when it only reads: a read-only transaction of its own, in one round trip."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from pgmonkey import AsyncDatabase, CancelledUnitError

from ..configs import prepared, proxied
from ..faults.proxy import FaultProxy
from .test_fast_path import Observer

COUNT: Any = "SELECT count(*) FROM t"


@pytest.fixture
def table(observer: Observer) -> Observer:
    observer.execute("CREATE TABLE t (a int)")
    return observer


async def warm(database: AsyncDatabase[Any], *statements: Any) -> None:
    """Have *statements* prepared, and the server's isolation level known."""
    for _ in range(3):
        for statement in statements:
            async with database.unit_of_work():
                await database.fetch_one(statement)


async def status(database: AsyncDatabase[Any]) -> TransactionStatus:
    unit = database.current_unit()
    assert unit is not None
    return (await unit.connection()).info.transaction_status


async def test_only_the_first_read_has_a_transaction_of_its_own(config: dict[str, Any], table: Observer) -> None:
    database = AsyncDatabase(prepared(config))
    await warm(database, COUNT)
    async with database.unit_of_work() as unit:
        assert await database.fetch_value(COUNT) == 0
        assert unit.borrowed
        assert database.stats()["pool_available"] == 0, "it keeps the connection for what follows"
        assert await status(database) == TransactionStatus.IDLE
        assert await database.fetch_value(COUNT) == 0
        assert await status(database) == TransactionStatus.INTRANS
        await database.execute("INSERT INTO t VALUES (1)")
        assert table.execute(COUNT).fetchone() == (0,)
    assert table.execute(COUNT).fetchone() == (1,)
    async with database.transaction():
        assert await database.fetch_value(COUNT) == 1
        assert await status(database) == TransactionStatus.INTRANS
    unit = database.begin(isolation="repeatable read")
    assert await database.fetch_value(COUNT) == 1
    assert await status(database) == TransactionStatus.INTRANS
    await unit.finish()
    await database.close()


async def test_later_statements_are_committed_or_rolled_back(config: dict[str, Any], table: Observer) -> None:
    database = AsyncDatabase(prepared(config), row_factory=dict_row)
    insert: Any = "INSERT INTO t VALUES (%s)"
    for number in range(4):
        async with database.unit_of_work():
            assert await database.fetch_one(COUNT) == {"count": number}
            await database.execute(insert, [number])
    with pytest.raises(ZeroDivisionError):
        async with database.unit_of_work():
            assert await database.fetch_all(COUNT) == [{"count": 4}]
            await database.execute(insert, [99])
            raise ZeroDivisionError
    assert table.execute(COUNT).fetchone() == (4,)
    stats = database.stats()
    assert stats["pool_available"] == stats["pool_size"] == 1
    await database.close()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_not_in_repeatable_read_and_serializable_transactions(
    level: str, config: dict[str, Any], table: Observer
) -> None:
    settings = prepared(config)
    for session in ("sync_settings", "async_settings"):
        settings[session] = {"default_transaction_isolation": level}
    database = AsyncDatabase(settings)
    await warm(database, COUNT)
    async with database.unit_of_work():
        assert await database.fetch_value(COUNT) == 0
        table.execute("INSERT INTO t VALUES (1)")
        assert await database.fetch_value(COUNT) == 0
    await database.close()


@pytest.mark.parametrize(
    "text",
    [
        "SELECT now()",
        "SELECT current_timestamp",
        "SELECT 1 FROM t FOR UPDATE",
        "SELECT pg_current_xact_id_if_assigned()",
    ],
)
async def test_not_for_statements_that_notice_their_transaction(
    text: Any, config: dict[str, Any], table: Observer
) -> None:
    database = AsyncDatabase(prepared(config))
    await warm(database, text)
    async with database.unit_of_work():
        await database.fetch_one(text)
        assert await status(database) == TransactionStatus.INTRANS
    await database.close()


async def test_a_view_that_writes_is_part_of_the_transaction(config: dict[str, Any], table: Observer) -> None:
    table.execute("CREATE FUNCTION note() RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (1) RETURNING a'")
    table.execute("CREATE VIEW noting AS SELECT note() AS a")
    database = AsyncDatabase(prepared(config))
    read: Any = "SELECT a FROM noting"
    await warm(database, COUNT)
    for number in range(1, 6):
        async with database.unit_of_work():
            assert await database.fetch_value(read) == 1
            assert table.execute(COUNT).fetchone() == (number - 1,)
        assert table.execute(COUNT).fetchone() == (number,)
    with pytest.raises(ZeroDivisionError):
        async with database.unit_of_work():
            assert await database.fetch_value(read) == 1
            raise ZeroDivisionError
    assert table.execute(COUNT).fetchone() == (5,)
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


async def test_one_round_trip_again_after_a_rollback(config: dict[str, Any], table: Observer) -> None:
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
        assert proxy.round_trips == before + 1
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
