# Generated from tests/_async/test_database.py by tools/twins.py: change that file, then run the tool.

"""Query methods, transactions, units of work and streams of a database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel, sql
from psycopg.errors import InFailedSqlTransaction
from psycopg.rows import dict_row

from pgmonkey import ConfigError, Database, GivenBackError

Observer = psycopg.Connection[Any]


@pytest.fixture
def database(config: dict[str, Any], observer: Observer) -> Database:
    observer.execute("CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    return Database(config)


def rows(observer: Observer) -> list[int]:
    return [row[0] for row in observer.execute("SELECT a FROM t ORDER BY a").fetchall()]


def test_query_methods(database: Database) -> None:
    assert database.execute("INSERT INTO t VALUES (1), (2)") == 2
    assert database.execute_many("INSERT INTO t VALUES (%s)", [(3,), (4,)]) == 2
    assert database.fetch_one("SELECT a, a * 2 FROM t WHERE a = %s", [2]) == (2, 4)
    assert database.fetch_one("SELECT a FROM t WHERE a > %(a)s", {"a": 99}) is None
    assert database.fetch_all("SELECT a FROM t ORDER BY a") == [(1,), (2,), (3,), (4,)]
    assert database.fetch_value("SELECT max(a) FROM t") == 4
    assert database.fetch_value("SELECT a FROM t WHERE a > 99") is None
    assert database.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier("t"))) == 4
    assert database.execute("CREATE TABLE u ()") == -1
    assert database.ping() > 0


def test_rows_as_the_row_factory_makes_them(config: dict[str, Any]) -> None:
    database = Database(config, row_factory=dict_row)
    assert database.fetch_one("SELECT 1 AS a") == {"a": 1}
    assert database.fetch_value("SELECT 1 AS a") == 1
    assert [row for row in database.stream("SELECT 1 AS a")] == [{"a": 1}]
    with database.connection() as connection:
        cursor = connection.execute("SELECT 1 AS a")
        assert cursor.fetchone() == {"a": 1}


def test_a_query_that_fails_raises_and_gives_back(database: Database) -> None:
    for _ in range(9):  # more often than the pool is large
        with pytest.raises(psycopg.errors.UndefinedTable):
            database.fetch_one("SELECT * FROM missing")
    stats = database.stats()
    assert stats["pool_available"] == stats["pool_size"]


def test_a_query_outside_a_transaction_is_its_own(database: Database, observer: Observer) -> None:
    database.execute("INSERT INTO t VALUES (1)")
    assert rows(observer) == [1]
    with pytest.raises(psycopg.errors.UniqueViolation):
        database.execute("INSERT INTO t VALUES (1)")
    assert rows(observer) == [1]


def test_a_query_that_changes_the_session_leaves_nothing(database: Database) -> None:
    database.execute("SET search_path TO pg_catalog")
    assert database.fetch_value("SHOW search_path") == '"$user", public'
    database.fetch_value("SELECT pg_advisory_lock(1)")
    here = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    query: Any = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND {here}"
    assert database.fetch_value(query) == 0


def test_query_methods_join_a_transaction(database: Database, observer: Observer) -> None:
    with database.transaction() as connection:
        database.execute("INSERT INTO t VALUES (1)")
        connection.execute("INSERT INTO t VALUES (2)")
        assert database.fetch_value("SELECT count(*) FROM t") == 2
        assert rows(observer) == []
    assert rows(observer) == [1, 2]
    database.execute("INSERT INTO t VALUES (3)")
    assert rows(observer) == [1, 2, 3]


def test_a_transaction_that_raises_is_rolled_back(database: Database, observer: Observer) -> None:
    with pytest.raises(ZeroDivisionError):
        with database.transaction():
            database.execute("INSERT INTO t VALUES (1)")
            raise ZeroDivisionError
    assert rows(observer) == []


def test_nested_transactions_are_savepoints(database: Database, observer: Observer) -> None:
    with database.transaction():
        database.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(ZeroDivisionError):
            with database.transaction():
                database.execute("INSERT INTO t VALUES (2)")
                raise ZeroDivisionError
        with database.transaction():
            database.execute("INSERT INTO t VALUES (3)")
    assert rows(observer) == [1, 3]


def test_a_failing_commit_raises(database: Database, observer: Observer) -> None:
    with pytest.raises(psycopg.errors.UniqueViolation):
        with database.transaction():
            database.execute("INSERT INTO t VALUES (1)")
            database.execute("INSERT INTO t VALUES (1)")
    assert rows(observer) == []


def test_an_ignored_error_is_no_commit(database: Database, observer: Observer) -> None:
    with pytest.raises(InFailedSqlTransaction):
        with database.transaction():
            database.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(psycopg.errors.UndefinedTable):
                database.execute("SELECT * FROM missing")
    assert rows(observer) == []


@pytest.mark.parametrize("isolation", ["serializable", "SERIALIZABLE", IsolationLevel.SERIALIZABLE])
def test_options_of_a_transaction(isolation: Any, database: Database) -> None:
    with database.transaction(isolation=isolation, read_only=True, deferrable=True):
        assert database.fetch_value("SHOW transaction_isolation") == "serializable"
        assert database.fetch_value("SHOW transaction_read_only") == "on"
        assert database.fetch_value("SHOW transaction_deferrable") == "on"
    with database.transaction():
        assert database.fetch_value("SHOW transaction_isolation") == "read committed"
        assert database.fetch_value("SHOW transaction_read_only") == "off"


def test_wrong_options_of_a_transaction(database: Database) -> None:
    with pytest.raises(psycopg.ProgrammingError, match="'chaos' is not an isolation level; use one of read"):
        with database.transaction(isolation="chaos"):
            pass
    with database.transaction():
        database.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(psycopg.ProgrammingError, match="has begun already; give its isolation"):
            with database.transaction(read_only=True):
                pass


def test_a_unit_of_work_borrows_only_when_needed(database: Database, observer: Observer) -> None:
    with database.unit_of_work() as unit:
        assert not unit.borrowed
        assert database.stats() == {}
    with database.unit_of_work() as unit:
        database.execute("INSERT INTO t VALUES (1)")
        first = unit.connection()
        assert first is unit.connection()
        assert rows(observer) == []
    assert rows(observer) == [1]
    assert database.current_unit() is None
    with pytest.raises(GivenBackError):
        first.execute("SELECT 1")


def test_a_finished_unit_lends_no_connection(database: Database) -> None:
    unit = database.begin()
    unit.finish()
    with pytest.raises(GivenBackError):
        unit.connection()


def test_a_connection_block_is_a_transaction_of_its_own(database: Database, observer: Observer) -> None:
    with pytest.raises(ZeroDivisionError):
        with database.transaction():
            database.execute("INSERT INTO t VALUES (1)")
            with database.connection() as connection:
                connection.execute("INSERT INTO t VALUES (2)")
            raise ZeroDivisionError
    assert rows(observer) == [2]


def test_two_databases_have_transactions_of_their_own(database: Database, config: dict[str, Any]) -> None:
    other = Database(config)
    with database.transaction():
        database.execute("INSERT INTO t VALUES (1)")
        assert other.fetch_value("SELECT count(*) FROM t") == 0


def test_a_stream_has_a_connection_of_its_own_and_gives_it_back(database: Database) -> None:
    stream = database.stream("SELECT generate_series(1, 2500)", size=1000)
    assert stream.__next__() == (1,)
    assert database.stats()["pool_available"] == 0
    assert [row[0] for row in stream] == list(range(2, 2501))
    assert database.stats()["pool_available"] == 1


def test_a_stream_that_is_closed_gives_back(database: Database) -> None:
    stream: Any = database.stream("SELECT generate_series(1, 100000)", size=10)
    assert stream.__next__() == (1,)
    stream.close()
    stats = database.stats()
    assert stats["pool_available"] == stats["pool_size"] == 1
    assert stats["returns_bad"] == 0


def test_a_stream_that_fails_raises_and_gives_back(database: Database) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        [row for row in database.stream("SELECT 1 / (3 - a) FROM generate_series(1, 5) a")]
    assert database.stats()["pool_available"] == 1


def test_closing_and_using_again(database: Database) -> None:
    database.connect()
    assert database.fetch_value("SELECT 1") == 1
    database.disconnect()
    assert database.stats() == {}
    assert database.fetch_value("SELECT 1") == 1
    database.close()


def test_databases_of_one_configuration_share_a_pool(config: dict[str, Any]) -> None:
    one, other = Database(config), Database(config)
    one.fetch_value("SELECT 1")
    other.fetch_value("SELECT 1")
    assert one.stats()["requests_num"] == other.stats()["requests_num"] > 2
    one.close()
    assert other.fetch_value("SELECT 1") == 1


def test_a_wrong_configuration_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        Database(tmp_path / "missing.yaml")


def test_a_wrong_password_is_told_in_the_servers_words(config: dict[str, Any]) -> None:
    config["connection_settings"]["password"] = "wrong"
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        Database(config).connect()
