"""Query methods, transactions, units of work and streams of a database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel, sql
from psycopg.errors import InFailedSqlTransaction
from psycopg.rows import dict_row

from pgmonkey import AsyncDatabase, ConfigError, GivenBackError

Observer = psycopg.Connection[Any]


@pytest.fixture
def database(config: dict[str, Any], observer: Observer) -> AsyncDatabase:
    observer.execute("CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    return AsyncDatabase(config)


def rows(observer: Observer) -> list[int]:
    return [row[0] for row in observer.execute("SELECT a FROM t ORDER BY a").fetchall()]


async def test_query_methods(database: AsyncDatabase) -> None:
    assert await database.execute("INSERT INTO t VALUES (1), (2)") == 2
    assert await database.execute_many("INSERT INTO t VALUES (%s)", [(3,), (4,)]) == 2
    assert await database.fetch_one("SELECT a, a * 2 FROM t WHERE a = %s", [2]) == (2, 4)
    assert await database.fetch_one("SELECT a FROM t WHERE a > %(a)s", {"a": 99}) is None
    assert await database.fetch_all("SELECT a FROM t ORDER BY a") == [(1,), (2,), (3,), (4,)]
    assert await database.fetch_value("SELECT max(a) FROM t") == 4
    assert await database.fetch_value("SELECT a FROM t WHERE a > 99") is None
    assert await database.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier("t"))) == 4
    assert await database.execute("CREATE TABLE u ()") == -1
    assert await database.ping() > 0


async def test_rows_as_the_row_factory_makes_them(config: dict[str, Any]) -> None:
    database = AsyncDatabase(config, row_factory=dict_row)
    assert await database.fetch_one("SELECT 1 AS a") == {"a": 1}
    assert await database.fetch_value("SELECT 1 AS a") == 1
    assert [row async for row in database.stream("SELECT 1 AS a")] == [{"a": 1}]
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT 1 AS a")
        assert await cursor.fetchone() == {"a": 1}


async def test_a_query_that_fails_raises_and_gives_back(database: AsyncDatabase) -> None:
    for _ in range(9):  # more often than the pool is large
        with pytest.raises(psycopg.errors.UndefinedTable):
            await database.fetch_one("SELECT * FROM missing")
    stats = database.stats()
    assert stats["pool_available"] == stats["pool_size"]


async def test_a_query_outside_a_transaction_is_its_own(database: AsyncDatabase, observer: Observer) -> None:
    await database.execute("INSERT INTO t VALUES (1)")
    assert rows(observer) == [1]
    with pytest.raises(psycopg.errors.UniqueViolation):
        await database.execute("INSERT INTO t VALUES (1)")
    assert rows(observer) == [1]


async def test_a_query_that_changes_the_session_leaves_nothing(database: AsyncDatabase) -> None:
    await database.execute("SET search_path TO pg_catalog")
    assert await database.fetch_value("SHOW search_path") == '"$user", public'
    await database.fetch_value("SELECT pg_advisory_lock(1)")
    here = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    query: Any = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND {here}"
    assert await database.fetch_value(query) == 0


async def test_query_methods_join_a_transaction(database: AsyncDatabase, observer: Observer) -> None:
    async with database.transaction() as connection:
        await database.execute("INSERT INTO t VALUES (1)")
        await connection.execute("INSERT INTO t VALUES (2)")
        assert await database.fetch_value("SELECT count(*) FROM t") == 2
        assert rows(observer) == []
    assert rows(observer) == [1, 2]
    await database.execute("INSERT INTO t VALUES (3)")
    assert rows(observer) == [1, 2, 3]


async def test_a_transaction_that_raises_is_rolled_back(database: AsyncDatabase, observer: Observer) -> None:
    with pytest.raises(ZeroDivisionError):
        async with database.transaction():
            await database.execute("INSERT INTO t VALUES (1)")
            raise ZeroDivisionError
    assert rows(observer) == []


async def test_nested_transactions_are_savepoints(database: AsyncDatabase, observer: Observer) -> None:
    async with database.transaction():
        await database.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(ZeroDivisionError):
            async with database.transaction():
                await database.execute("INSERT INTO t VALUES (2)")
                raise ZeroDivisionError
        async with database.transaction():
            await database.execute("INSERT INTO t VALUES (3)")
    assert rows(observer) == [1, 3]


async def test_a_failing_commit_raises(database: AsyncDatabase, observer: Observer) -> None:
    with pytest.raises(psycopg.errors.UniqueViolation):
        async with database.transaction():
            await database.execute("INSERT INTO t VALUES (1)")
            await database.execute("INSERT INTO t VALUES (1)")
    assert rows(observer) == []


async def test_an_ignored_error_is_no_commit(database: AsyncDatabase, observer: Observer) -> None:
    with pytest.raises(InFailedSqlTransaction):
        async with database.transaction():
            await database.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(psycopg.errors.UndefinedTable):
                await database.execute("SELECT * FROM missing")
    assert rows(observer) == []


@pytest.mark.parametrize("isolation", ["serializable", "SERIALIZABLE", IsolationLevel.SERIALIZABLE])
async def test_options_of_a_transaction(isolation: Any, database: AsyncDatabase) -> None:
    async with database.transaction(isolation=isolation, read_only=True, deferrable=True):
        assert await database.fetch_value("SHOW transaction_isolation") == "serializable"
        assert await database.fetch_value("SHOW transaction_read_only") == "on"
        assert await database.fetch_value("SHOW transaction_deferrable") == "on"
    async with database.transaction():
        assert await database.fetch_value("SHOW transaction_isolation") == "read committed"
        assert await database.fetch_value("SHOW transaction_read_only") == "off"


async def test_wrong_options_of_a_transaction(database: AsyncDatabase) -> None:
    with pytest.raises(psycopg.ProgrammingError, match="'chaos' is not an isolation level; use one of read"):
        async with database.transaction(isolation="chaos"):
            pass
    async with database.transaction():
        await database.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(psycopg.ProgrammingError, match="has begun already; give its isolation"):
            async with database.transaction(read_only=True):
                pass


async def test_a_unit_of_work_borrows_only_when_needed(database: AsyncDatabase, observer: Observer) -> None:
    async with database.unit_of_work() as unit:
        assert not unit.borrowed
        assert database.stats() == {}
    async with database.unit_of_work() as unit:
        await database.execute("INSERT INTO t VALUES (1)")
        first = await unit.connection()
        assert first is await unit.connection()
        assert rows(observer) == []
    assert rows(observer) == [1]
    assert database.current_unit() is None
    with pytest.raises(GivenBackError):
        await first.execute("SELECT 1")


async def test_a_finished_unit_lends_no_connection(database: AsyncDatabase) -> None:
    unit = database.begin()
    await unit.finish()
    with pytest.raises(GivenBackError):
        await unit.connection()


async def test_a_connection_block_is_a_transaction_of_its_own(database: AsyncDatabase, observer: Observer) -> None:
    with pytest.raises(ZeroDivisionError):
        async with database.transaction():
            await database.execute("INSERT INTO t VALUES (1)")
            async with database.connection() as connection:
                await connection.execute("INSERT INTO t VALUES (2)")
            raise ZeroDivisionError
    assert rows(observer) == [2]


async def test_two_databases_have_transactions_of_their_own(database: AsyncDatabase, config: dict[str, Any]) -> None:
    other = AsyncDatabase(config)
    async with database.transaction():
        await database.execute("INSERT INTO t VALUES (1)")
        assert await other.fetch_value("SELECT count(*) FROM t") == 0


async def test_a_stream_has_a_connection_of_its_own_and_gives_it_back(database: AsyncDatabase) -> None:
    stream = database.stream("SELECT generate_series(1, 2500)", size=1000)
    assert await stream.__anext__() == (1,)
    assert database.stats()["pool_available"] == 0
    assert [row[0] async for row in stream] == list(range(2, 2501))
    assert database.stats()["pool_available"] == 1


async def test_a_stream_that_is_closed_gives_back(database: AsyncDatabase) -> None:
    stream: Any = database.stream("SELECT generate_series(1, 100000)", size=10)
    assert await stream.__anext__() == (1,)
    await stream.aclose()
    stats = database.stats()
    assert stats["pool_available"] == stats["pool_size"] == 1
    assert stats["returns_bad"] == 0


async def test_a_stream_that_fails_raises_and_gives_back(database: AsyncDatabase) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        [row async for row in database.stream("SELECT 1 / (3 - a) FROM generate_series(1, 5) a")]
    assert database.stats()["pool_available"] == 1


async def test_closing_and_using_again(database: AsyncDatabase) -> None:
    await database.connect()
    assert await database.fetch_value("SELECT 1") == 1
    await database.disconnect()
    assert database.stats() == {}
    assert await database.fetch_value("SELECT 1") == 1
    await database.close()


async def test_databases_of_one_configuration_share_a_pool(config: dict[str, Any]) -> None:
    one, other = AsyncDatabase(config), AsyncDatabase(config)
    await one.fetch_value("SELECT 1")
    await other.fetch_value("SELECT 1")
    assert one.stats()["requests_num"] == other.stats()["requests_num"] > 2
    await one.close()
    assert await other.fetch_value("SELECT 1") == 1


def test_a_wrong_configuration_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        AsyncDatabase(tmp_path / "missing.yaml")


async def test_a_wrong_password_is_told_in_the_servers_words(config: dict[str, Any]) -> None:
    config["connection_settings"]["password"] = "wrong"
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        await AsyncDatabase(config).connect()
