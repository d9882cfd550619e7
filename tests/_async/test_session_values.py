"""`session_values`: when they are asked for, when they hold, and what they may use."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import AsyncClientCursor, AsyncConnection, AsyncCursor, sql

from pgmonkey import AsyncDatabase

from ..configs import pools, prepared, proxied
from ..faults.proxy import FaultProxy
from .test_unit import Observer, rows

TENANT = "SELECT current_setting('app.tenant', true)"


@pytest.fixture
def values() -> dict[str, Any]:
    return {}


@pytest.fixture
def database(config: dict[str, Any], values: dict[str, Any], observer: Observer) -> AsyncDatabase:
    observer.execute("CREATE TABLE t (a int)")
    return AsyncDatabase(pools(config, max_size=1, timeout=2), session_values=lambda: dict(values))


# The server's default is the first, so that nothing tells it from the value until the transaction has begun.
@pytest.mark.parametrize("by_statement", [False, True])
async def test_values_are_loaded_as_the_session_is_then(by_statement: bool, config: dict[str, Any]) -> None:
    settings = prepared(config)
    settings["connection_settings"]["options"] = "-c TimeZone=UTC"
    zone, query = "UTC", "SELECT '2024-02-01 12:00+00'::timestamptz, %s::text"
    if by_statement:
        query = "SELECT '2024-02-01 12:00+00'::timestamptz, set_config('TimeZone', %s, true)"
    database: AsyncDatabase[Any] = AsyncDatabase(
        settings, session_values=None if by_statement else lambda: {"TimeZone": zone}
    )
    found = []
    for zone in ("UTC", "UTC", "UTC", "UTC", "Asia/Tokyo", "America/New_York", "UTC"):
        async with database.transaction():
            row: Any = await database.fetch_one(query, [zone])
        assert str(row[0].tzinfo) == zone
        found.append(row[0].hour)
    assert found == [12, 12, 12, 12, 21, 7, 12]
    await database.close()


@pytest.mark.parametrize("cursor_factory", [AsyncCursor, AsyncClientCursor])
async def test_parameters_are_dumped_as_the_session_is_then(
    cursor_factory: type[AsyncCursor[Any]], config: dict[str, Any], observer: Observer
) -> None:
    values: dict[str, str] = {}

    async def use(connection: AsyncConnection[Any]) -> None:
        connection.cursor_factory = cursor_factory

    settings = pools(prepared(config), configure=use)
    database: AsyncDatabase[Any] = AsyncDatabase(settings, session_values=lambda: values)
    observer.execute("CREATE TABLE dumped (a text, b text)")
    seconds = "SELECT a, extract(epoch FROM b)::int::text FROM (SELECT %s::text, %s::interval) AS t(a, b)"
    negative, expected = timedelta(days=-1, seconds=-3), ("\u00e9", "-86403")
    with psycopg.connect(**config["connection_settings"]) as plain:
        for encoding, style in (("LATIN1", "postgres"), ("UTF8", "sql_standard"), ("UTF8", "postgres")) * 3:
            values.update({"client_Encoding": encoding, "intervalstyle": style})
            assert await database.fetch_one(seconds, ["\u00e9", negative]) == expected
            async with database.transaction() as connection:
                cursor = await connection.execute(seconds, ["\u00e9", negative])
                assert await cursor.fetchone() == expected
            async with database.unit_of_work():
                assert await database.fetch_one(seconds, ["\u00e9", negative]) == expected
            async with database.batch() as batch:
                found = batch.fetch_one(seconds, ["\u00e9", negative])
            assert found.result == expected
            async with database.connection() as connection:
                async with connection.pipeline():
                    cursor = await connection.execute(seconds, ["\u00e9", negative])
                assert await cursor.fetchone() == expected
            insert = "INSERT INTO dumped VALUES (%s, extract(epoch FROM %s::interval)::int::text)"
            await database.execute_many(insert, [["\u00e9", negative]] * 2)
            assert set(observer.execute("DELETE FROM dumped RETURNING *").fetchall()) == {expected}
        assert plain.execute(seconds, ["\u00e9", negative]).fetchone() == expected
    await database.close()


async def test_values_of_any_letters_where_the_database_has_no_encoding(
    config: dict[str, Any], observer: Observer
) -> None:
    name = f"{observer.info.dbname}_ascii"
    create = "CREATE DATABASE {} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"
    observer.execute(sql.SQL(create).format(sql.Identifier(name)))
    settings = {"connection_settings": {**config["connection_settings"], "dbname": name}}
    database: AsyncDatabase = AsyncDatabase(settings, session_values=lambda: {"app.tenant": "caf\u00e9"})
    assert await database.fetch_value(TENANT) == "caf\u00e9".encode()
    await database.close()
    observer.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


async def test_they_are_asked_for_before_each_query_method(database: AsyncDatabase, values: dict[str, Any]) -> None:
    unit = database.begin()
    # As by a hook that reads the user first, and then says whose the request is.
    assert await database.fetch_value("SELECT 7") == 7
    values["app.tenant"] = 1
    assert await database.fetch_value(TENANT) == "1"
    values["app.tenant"] = 2
    connection = await unit.connection()
    assert await (await connection.execute(TENANT)).fetchone() == ("2",)
    values["app.tenant"], values["app.user"] = "it's", None
    assert await database.fetch_one("SELECT current_setting('app.tenant'), current_setting('app.user')") == ("it's", "")
    del values["app.tenant"]
    async with database.transaction() as connection:
        assert await (await connection.execute(TENANT)).fetchone() == ("",)
    await unit.finish()


async def test_they_hold_again_after_a_savepoint_was_rolled_back(
    database: AsyncDatabase, values: dict[str, Any]
) -> None:
    values["app.tenant"] = 1
    async with database.transaction() as connection:
        for way in (ZeroDivisionError, None):
            values["app.tenant"] = 1
            assert await database.fetch_value(TENANT) == "1"
            try:
                async with connection.transaction(force_rollback=way is None):
                    values["app.tenant"] = 2
                    assert await database.fetch_value(TENANT) == "2"
                    if way is not None:
                        raise way
            except ZeroDivisionError:
                pass
            assert await (await connection.execute(TENANT)).fetchone() == ("1",)
            assert await database.fetch_value(TENANT) == "2"


BOTH = "SELECT current_setting('app.tenant', true), coalesce(current_setting('app.user', true), '')"


@pytest.mark.parametrize("cursor", [psycopg.AsyncCursor, psycopg.AsyncClientCursor])
@pytest.mark.parametrize("by_connection", [False, True])
async def test_they_hold_again_after_a_savepoint_was_rolled_back_by_a_statement(
    by_connection: bool, cursor: type[psycopg.AsyncCursor[Any]], database: AsyncDatabase, values: dict[str, Any]
) -> None:
    values["app.tenant"] = 1
    async with database.transaction() as connection:
        connection.cursor_factory = cursor
        execute: Any = connection.execute if by_connection else database.execute
        assert await database.fetch_one(BOTH) == ("1", "")
        await execute("SAVEPOINT a")
        values["app.tenant"] = 2
        assert await database.fetch_one(BOTH) == ("2", "")
        await execute("ROLLBACK TO a")
        assert await (await connection.execute(BOTH)).fetchone() == ("2", "")
        values.clear()
        values["app.user"] = 3
        assert await database.fetch_one(BOTH) == ("", "3")
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.execute("SELECT 1 / 0")
        await execute("rollback transaction to savepoint a")
        assert await database.fetch_one(BOTH) == ("", "3")
        assert await (await connection.execute(BOTH)).fetchone() == ("", "3")
    await database.close()


async def test_they_hold_in_each_transaction_of_a_borrowed_connection(
    database: AsyncDatabase, values: dict[str, Any]
) -> None:
    values["app.tenant"] = 1
    async with database.connection() as connection:
        for _ in range(2):
            assert await (await connection.execute(TENANT)).fetchone() == ("1",)
            await connection.commit()
        async with connection.pipeline():
            assert await (await connection.execute(TENANT)).fetchone() == ("1",)
    values.clear()
    assert await database.fetch_value(TENANT) in (None, "")


@pytest.mark.parametrize("way", ["alone", "transaction", "unit_of_work", "connection", "stream", "execute_many"])
async def test_they_may_use_the_database(way: str, config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a text)")
    asked: list[int] = []

    def look_up() -> dict[str, object]:
        asked.append(1)
        # In tasks, what a function that is not asynchronous can use is a Database for threads.
        return {"app.tenant": threads.fetch_value("SELECT 'of ' || current_user")}

    from pgmonkey import Database

    threads = Database(pools(config, max_size=1, timeout=2), session_values=look_up)
    in_threads = AsyncDatabase.__name__ == Database.__name__
    found: Any = threads if in_threads else AsyncDatabase(pools(config, max_size=1, timeout=2), session_values=look_up)
    database: AsyncDatabase = found
    write = "INSERT INTO t SELECT current_setting('app.tenant', true)"
    for _ in range(7):
        match way:
            case "alone":
                await database.execute(write)
            case "transaction" | "unit_of_work":
                async with getattr(database, way)():
                    await database.execute(write)
                    await database.execute(write)
            case "connection":
                async with database.connection() as connection:
                    await connection.execute(write)
            case "stream":
                assert [row async for row in database.stream(TENANT)] == [("of postgres",)]
            case "execute_many":
                await database.execute_many(write + " WHERE %s", [[True], [True]])
    assert asked
    assert {row[0] for row in observer.execute("SELECT a FROM t")} <= {"of postgres"}
    threads.release()
    database.release()


async def test_an_error_of_theirs_leaves_nothing(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")

    def fail() -> dict[str, object]:
        raise ZeroDivisionError

    database = AsyncDatabase(pools(config, max_size=1, timeout=2), session_values=fail)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await database.fetch_value("SELECT 1")
        with pytest.raises(ZeroDivisionError):
            async with database.transaction():
                pytest.fail("without its values")
        with pytest.raises(ZeroDivisionError):
            async with database.connection():
                pytest.fail("without its values")
        with pytest.raises(ZeroDivisionError):
            database.stream("SELECT 1")
    assert database.current_unit() is None
    async with database.unit_of_work() as unit:
        with pytest.raises(ZeroDivisionError):
            await database.execute("INSERT INTO t VALUES (1)")
        assert not unit.borrowed
    assert rows(observer) == []
    assert database.stats() == {}


@pytest.mark.parametrize("found", [5, [("app.tenant", "1")]])
async def test_what_is_no_mapping_is_an_error_that_says_so(found: Any, config: dict[str, Any]) -> None:
    database = AsyncDatabase(pools(config, max_size=1, timeout=2), session_values=lambda: found)
    with pytest.raises(TypeError, match=f"has to return a mapping, not {type(found).__name__}"):
        await database.fetch_value("SELECT 1")
    with pytest.raises(TypeError, match="has to return a mapping"):
        async with database.transaction():
            pass
    await database.close()


async def test_a_value_that_the_server_refuses_is_the_error_of_the_statement(
    database: AsyncDatabase, values: dict[str, Any], observer: Observer
) -> None:
    for name, value in (("TimeZone", "Mars/Olympus"), ("work_mem", "much"), ("app.tenant", "with\0NUL")):
        values[name] = value
        with pytest.raises(psycopg.Error):
            await database.execute("INSERT INTO t VALUES (1)")
        async with database.unit_of_work() as unit:
            with pytest.raises(psycopg.Error):
                await database.execute("INSERT INTO t VALUES (1)")
            await unit.roll_back(ZeroDivisionError())
            values.clear()
            await database.execute("INSERT INTO t VALUES (2)")
    assert rows(observer) == [2, 2, 2]


async def test_they_cost_no_round_trip(config: dict[str, Any], values: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    connect = config["connection_settings"]
    with FaultProxy(connect["host"], int(connect["port"])) as proxy:
        database = AsyncDatabase(proxied(config, proxy), session_values=lambda: dict(values))

        async def alone() -> None:
            assert await database.fetch_value(TENANT) == "it's"

        async def reads_once() -> None:
            async with database.unit_of_work():
                await alone()

        async def transaction() -> None:
            async with database.transaction() as connection:
                assert await (await connection.execute(TENANT)).fetchone() == ("it's",)

        async def writes_three_times() -> None:
            async with database.unit_of_work():
                for a in range(3):
                    await database.execute("INSERT INTO t VALUES (%s)", [a])

        values["app.tenant"] = "it's"
        for function, expected in {alone: 2, reads_once: 2, transaction: 2, writes_three_times: 4}.items():
            for _ in range(3):
                await function()
            before = proxy.round_trips
            for _ in range(10):
                await function()
            assert proxy.round_trips - before == 10 * expected, function
        await database.close()


async def test_another_database_is_asked_once_a_transaction(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    from pgmonkey import Database

    # Of the same pool, which has one connection: the unit of work holds it from its first statement on.
    tenants = Database(pools(config, max_size=1, timeout=2))
    database = AsyncDatabase(
        pools(config, max_size=1, timeout=2),
        session_values=lambda: {"app.tenant": tenants.fetch_value("SELECT 'one'")},
    )
    for _ in range(7):
        async with database.transaction():
            assert await database.fetch_value(TENANT) == "one"
            async with database.transaction():
                assert await database.fetch_value(TENANT) == "one"
        async with database.unit_of_work() as unit:
            assert await database.fetch_value(TENANT) == "one"
            await database.execute("INSERT INTO t VALUES (1)")
            await unit.roll_back(ZeroDivisionError())
            assert await database.fetch_value(TENANT) == "one"
    assert rows(observer) == []
    tenants.release()
    await database.close()


async def test_a_connection_that_has_them_cannot_be_in_autocommit(
    database: AsyncDatabase, values: dict[str, Any]
) -> None:
    async with database.connection() as connection:
        await connection.set_autocommit(True)  # there are none
        assert await (await connection.execute(TENANT)).fetchone() == (None,)
    values["app.tenant"] = 1
    async with database.connection() as connection:
        with pytest.raises(psycopg.ProgrammingError, match="session_values"):
            await connection.set_autocommit(True)
        assert await (await connection.execute(TENANT)).fetchone() == ("1",)
