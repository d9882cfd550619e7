# Generated from tests/_async/test_session_values.py by tools/twins.py: change that file, then run the tool.

"""`session_values`: when they are asked for, when they hold, and what they may use."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import ClientCursor, Connection, Cursor, sql

from pgmonkey import Database

from ..configs import pools, prepared, proxied
from ..faults.proxy import FaultProxy
from .test_unit import Observer, rows

TENANT = "SELECT current_setting('app.tenant', true)"


@pytest.fixture
def values() -> dict[str, Any]:
    return {}


@pytest.fixture
def database(config: dict[str, Any], values: dict[str, Any], observer: Observer) -> Database:
    observer.execute("CREATE TABLE t (a int)")
    return Database(pools(config, max_size=1, timeout=2), session_values=lambda: dict(values))


# The server's default is the first, so that nothing tells it from the value until the transaction has begun.
@pytest.mark.parametrize("by_statement", [False, True])
def test_values_are_loaded_as_the_session_is_then(by_statement: bool, config: dict[str, Any]) -> None:
    settings = prepared(config)
    settings["connection_settings"]["options"] = "-c TimeZone=UTC"
    zone, query = "UTC", "SELECT '2024-02-01 12:00+00'::timestamptz, %s::text"
    if by_statement:
        query = "SELECT '2024-02-01 12:00+00'::timestamptz, set_config('TimeZone', %s, true)"
    database: Database[Any] = Database(settings, session_values=None if by_statement else lambda: {"TimeZone": zone})
    found = []
    for zone in ("UTC", "UTC", "UTC", "UTC", "Asia/Tokyo", "America/New_York", "UTC"):
        with database.transaction():
            row: Any = database.fetch_one(query, [zone])
        assert str(row[0].tzinfo) == zone
        found.append(row[0].hour)
    assert found == [12, 12, 12, 12, 21, 7, 12]
    database.close()


@pytest.mark.parametrize("cursor_factory", [Cursor, ClientCursor])
def test_parameters_are_dumped_as_the_session_is_then(
    cursor_factory: type[Cursor[Any]], config: dict[str, Any], observer: Observer
) -> None:
    values: dict[str, str] = {}

    def use(connection: Connection[Any]) -> None:
        connection.cursor_factory = cursor_factory

    settings = pools(prepared(config), configure=use)
    database: Database[Any] = Database(settings, session_values=lambda: values)
    observer.execute("CREATE TABLE dumped (a text, b text)")
    seconds = "SELECT a, extract(epoch FROM b)::int::text FROM (SELECT %s::text, %s::interval) AS t(a, b)"
    negative, expected = timedelta(days=-1, seconds=-3), ("\u00e9", "-86403")
    with psycopg.connect(**config["connection_settings"]) as plain:
        for encoding, style in (("LATIN1", "postgres"), ("UTF8", "sql_standard"), ("UTF8", "postgres")) * 3:
            values.update({"client_Encoding": encoding, "intervalstyle": style})
            assert database.fetch_one(seconds, ["\u00e9", negative]) == expected
            with database.transaction() as connection:
                cursor = connection.execute(seconds, ["\u00e9", negative])
                assert cursor.fetchone() == expected
            with database.unit_of_work():
                assert database.fetch_one(seconds, ["\u00e9", negative]) == expected
            with database.batch() as batch:
                found = batch.fetch_one(seconds, ["\u00e9", negative])
            assert found.result == expected
            with database.connection() as connection:
                with connection.pipeline():
                    cursor = connection.execute(seconds, ["\u00e9", negative])
                assert cursor.fetchone() == expected
            insert = "INSERT INTO dumped VALUES (%s, extract(epoch FROM %s::interval)::int::text)"
            database.execute_many(insert, [["\u00e9", negative]] * 2)
            assert set(observer.execute("DELETE FROM dumped RETURNING *").fetchall()) == {expected}
        assert plain.execute(seconds, ["\u00e9", negative]).fetchone() == expected
    database.close()


def test_values_of_any_letters_where_the_database_has_no_encoding(config: dict[str, Any], observer: Observer) -> None:
    name = f"{observer.info.dbname}_ascii"
    create = "CREATE DATABASE {} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"
    observer.execute(sql.SQL(create).format(sql.Identifier(name)))
    settings = {"connection_settings": {**config["connection_settings"], "dbname": name}}
    database: Database = Database(settings, session_values=lambda: {"app.tenant": "caf\u00e9"})
    assert database.fetch_value(TENANT) == "caf\u00e9".encode()
    database.close()
    observer.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_they_are_asked_for_before_each_query_method(database: Database, values: dict[str, Any]) -> None:
    unit = database.begin()
    # As by a hook that reads the user first, and then says whose the request is.
    assert database.fetch_value("SELECT 7") == 7
    values["app.tenant"] = 1
    assert database.fetch_value(TENANT) == "1"
    values["app.tenant"] = 2
    connection = unit.connection()
    assert (connection.execute(TENANT)).fetchone() == ("2",)
    values["app.tenant"], values["app.user"] = "it's", None
    assert database.fetch_one("SELECT current_setting('app.tenant'), current_setting('app.user')") == ("it's", "")
    del values["app.tenant"]
    with database.transaction() as connection:
        assert (connection.execute(TENANT)).fetchone() == ("",)
    unit.finish()


def test_they_hold_again_after_a_savepoint_was_rolled_back(database: Database, values: dict[str, Any]) -> None:
    values["app.tenant"] = 1
    with database.transaction() as connection:
        for way in (ZeroDivisionError, None):
            values["app.tenant"] = 1
            assert database.fetch_value(TENANT) == "1"
            try:
                with connection.transaction(force_rollback=way is None):
                    values["app.tenant"] = 2
                    assert database.fetch_value(TENANT) == "2"
                    if way is not None:
                        raise way
            except ZeroDivisionError:
                pass
            assert (connection.execute(TENANT)).fetchone() == ("1",)
            assert database.fetch_value(TENANT) == "2"


BOTH = "SELECT current_setting('app.tenant', true), coalesce(current_setting('app.user', true), '')"


@pytest.mark.parametrize("cursor", [psycopg.Cursor, psycopg.ClientCursor])
@pytest.mark.parametrize("by_connection", [False, True])
def test_they_hold_again_after_a_savepoint_was_rolled_back_by_a_statement(
    by_connection: bool, cursor: type[psycopg.Cursor[Any]], database: Database, values: dict[str, Any]
) -> None:
    values["app.tenant"] = 1
    with database.transaction() as connection:
        connection.cursor_factory = cursor
        execute: Any = connection.execute if by_connection else database.execute
        assert database.fetch_one(BOTH) == ("1", "")
        execute("SAVEPOINT a")
        values["app.tenant"] = 2
        assert database.fetch_one(BOTH) == ("2", "")
        execute("ROLLBACK TO a")
        assert (connection.execute(BOTH)).fetchone() == ("2", "")
        values.clear()
        values["app.user"] = 3
        assert database.fetch_one(BOTH) == ("", "3")
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1 / 0")
        execute("rollback transaction to savepoint a")
        assert database.fetch_one(BOTH) == ("", "3")
        assert (connection.execute(BOTH)).fetchone() == ("", "3")
    database.close()


def test_they_hold_in_each_transaction_of_a_borrowed_connection(database: Database, values: dict[str, Any]) -> None:
    values["app.tenant"] = 1
    with database.connection() as connection:
        for _ in range(2):
            assert (connection.execute(TENANT)).fetchone() == ("1",)
            connection.commit()
        with connection.pipeline():
            assert (connection.execute(TENANT)).fetchone() == ("1",)
    values.clear()
    assert database.fetch_value(TENANT) in (None, "")


@pytest.mark.parametrize("way", ["alone", "transaction", "unit_of_work", "connection", "stream", "execute_many"])
def test_they_may_use_the_database(way: str, config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a text)")
    asked: list[int] = []

    def look_up() -> dict[str, object]:
        asked.append(1)
        # In tasks, what a function that is not asynchronous can use is a Database for threads.
        return {"app.tenant": threads.fetch_value("SELECT 'of ' || current_user")}

    from pgmonkey import Database

    threads = Database(pools(config, max_size=1, timeout=2), session_values=look_up)
    in_threads = Database.__name__ == Database.__name__
    found: Any = threads if in_threads else Database(pools(config, max_size=1, timeout=2), session_values=look_up)
    database: Database = found
    write = "INSERT INTO t SELECT current_setting('app.tenant', true)"
    for _ in range(7):
        match way:
            case "alone":
                database.execute(write)
            case "transaction" | "unit_of_work":
                with getattr(database, way)():
                    database.execute(write)
                    database.execute(write)
            case "connection":
                with database.connection() as connection:
                    connection.execute(write)
            case "stream":
                assert [row for row in database.stream(TENANT)] == [("of postgres",)]
            case "execute_many":
                database.execute_many(write + " WHERE %s", [[True], [True]])
    assert asked
    assert {row[0] for row in observer.execute("SELECT a FROM t")} <= {"of postgres"}
    threads.release()
    database.release()


def test_an_error_of_theirs_leaves_nothing(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")

    def fail() -> dict[str, object]:
        raise ZeroDivisionError

    database = Database(pools(config, max_size=1, timeout=2), session_values=fail)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            database.fetch_value("SELECT 1")
        with pytest.raises(ZeroDivisionError):
            with database.transaction():
                pytest.fail("without its values")
        with pytest.raises(ZeroDivisionError):
            with database.connection():
                pytest.fail("without its values")
        with pytest.raises(ZeroDivisionError):
            database.stream("SELECT 1")
    assert database.current_unit() is None
    with database.unit_of_work() as unit:
        with pytest.raises(ZeroDivisionError):
            database.execute("INSERT INTO t VALUES (1)")
        assert not unit.borrowed
    assert rows(observer) == []
    assert database.stats() == {}


@pytest.mark.parametrize("found", [5, [("app.tenant", "1")]])
def test_what_is_no_mapping_is_an_error_that_says_so(found: Any, config: dict[str, Any]) -> None:
    database = Database(pools(config, max_size=1, timeout=2), session_values=lambda: found)
    with pytest.raises(TypeError, match=f"has to return a mapping, not {type(found).__name__}"):
        database.fetch_value("SELECT 1")
    with pytest.raises(TypeError, match="has to return a mapping"):
        with database.transaction():
            pass
    database.close()


def test_a_value_that_the_server_refuses_is_the_error_of_the_statement(
    database: Database, values: dict[str, Any], observer: Observer
) -> None:
    for name, value in (("TimeZone", "Mars/Olympus"), ("work_mem", "much"), ("app.tenant", "with\0NUL")):
        values[name] = value
        with pytest.raises(psycopg.Error):
            database.execute("INSERT INTO t VALUES (1)")
        with database.unit_of_work() as unit:
            with pytest.raises(psycopg.Error):
                database.execute("INSERT INTO t VALUES (1)")
            unit.roll_back(ZeroDivisionError())
            values.clear()
            database.execute("INSERT INTO t VALUES (2)")
    assert rows(observer) == [2, 2, 2]


def test_they_cost_no_round_trip(config: dict[str, Any], values: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    connect = config["connection_settings"]
    with FaultProxy(connect["host"], int(connect["port"])) as proxy:
        database = Database(proxied(config, proxy), session_values=lambda: dict(values))

        def alone() -> None:
            assert database.fetch_value(TENANT) == "it's"

        def reads_once() -> None:
            with database.unit_of_work():
                alone()

        def transaction() -> None:
            with database.transaction() as connection:
                assert (connection.execute(TENANT)).fetchone() == ("it's",)

        def writes_three_times() -> None:
            with database.unit_of_work():
                for a in range(3):
                    database.execute("INSERT INTO t VALUES (%s)", [a])

        values["app.tenant"] = "it's"
        for function, expected in {alone: 2, reads_once: 2, transaction: 2, writes_three_times: 4}.items():
            for _ in range(3):
                function()
            before = proxy.round_trips
            for _ in range(10):
                function()
            assert proxy.round_trips - before == 10 * expected, function
        database.close()


def test_another_database_is_asked_once_a_transaction(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    from pgmonkey import Database

    # Of the same pool, which has one connection: the unit of work holds it from its first statement on.
    tenants = Database(pools(config, max_size=1, timeout=2))
    database = Database(
        pools(config, max_size=1, timeout=2),
        session_values=lambda: {"app.tenant": tenants.fetch_value("SELECT 'one'")},
    )
    for _ in range(7):
        with database.transaction():
            assert database.fetch_value(TENANT) == "one"
            with database.transaction():
                assert database.fetch_value(TENANT) == "one"
        with database.unit_of_work() as unit:
            assert database.fetch_value(TENANT) == "one"
            database.execute("INSERT INTO t VALUES (1)")
            unit.roll_back(ZeroDivisionError())
            assert database.fetch_value(TENANT) == "one"
    assert rows(observer) == []
    tenants.release()
    database.close()


def test_a_connection_that_has_them_cannot_be_in_autocommit(database: Database, values: dict[str, Any]) -> None:
    with database.connection() as connection:
        connection.set_autocommit(True)  # there are none
        assert (connection.execute(TENANT)).fetchone() == (None,)
    values["app.tenant"] = 1
    with database.connection() as connection:
        with pytest.raises(psycopg.ProgrammingError, match="session_values"):
            connection.set_autocommit(True)
        assert (connection.execute(TENANT)).fetchone() == ("1",)
