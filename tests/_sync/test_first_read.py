# Generated from tests/_async/test_first_read.py by tools/twins.py: change that file, then run the tool.

"""The first query of a unit of work, when it only reads: a read-only transaction of its own, in one round trip."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from pgmonkey import CancelledUnitError, Database

from ..configs import prepared, proxied
from ..faults.proxy import FaultProxy
from .test_fast_path import Observer

COUNT: Any = "SELECT count(*) FROM t"


@pytest.fixture
def table(observer: Observer) -> Observer:
    observer.execute("CREATE TABLE t (a int)")
    return observer


def warm(database: Database[Any], *statements: Any) -> None:
    """Have *statements* prepared, and the server's isolation level known."""
    for _ in range(3):
        for statement in statements:
            with database.unit_of_work():
                database.fetch_one(statement)


def status(database: Database[Any]) -> TransactionStatus:
    unit = database.current_unit()
    assert unit is not None
    return (unit.connection()).info.transaction_status


def test_only_the_first_read_has_a_transaction_of_its_own(config: dict[str, Any], table: Observer) -> None:
    database = Database(prepared(config))
    warm(database, COUNT)
    with database.unit_of_work() as unit:
        assert database.fetch_value(COUNT) == 0
        assert unit.borrowed
        assert database.stats()["pool_available"] == 0, "it keeps the connection for what follows"
        assert status(database) == TransactionStatus.IDLE
        assert database.fetch_value(COUNT) == 0
        assert status(database) == TransactionStatus.INTRANS
        database.execute("INSERT INTO t VALUES (1)")
        assert table.execute(COUNT).fetchone() == (0,)
    assert table.execute(COUNT).fetchone() == (1,)
    with database.transaction():
        assert database.fetch_value(COUNT) == 1
        assert status(database) == TransactionStatus.INTRANS
    unit = database.begin(isolation="repeatable read")
    assert database.fetch_value(COUNT) == 1
    assert status(database) == TransactionStatus.INTRANS
    unit.finish()
    database.close()


def test_later_statements_are_committed_or_rolled_back(config: dict[str, Any], table: Observer) -> None:
    database = Database(prepared(config), row_factory=dict_row)
    insert: Any = "INSERT INTO t VALUES (%s)"
    for number in range(4):
        with database.unit_of_work():
            assert database.fetch_one(COUNT) == {"count": number}
            database.execute(insert, [number])
    with pytest.raises(ZeroDivisionError):
        with database.unit_of_work():
            assert database.fetch_all(COUNT) == [{"count": 4}]
            database.execute(insert, [99])
            raise ZeroDivisionError
    assert table.execute(COUNT).fetchone() == (4,)
    stats = database.stats()
    assert stats["pool_available"] == stats["pool_size"] == 1
    database.close()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_not_in_repeatable_read_and_serializable_transactions(
    level: str, config: dict[str, Any], table: Observer
) -> None:
    settings = prepared(config)
    for session in ("sync_settings", "async_settings"):
        settings[session] = {"default_transaction_isolation": level}
    database = Database(settings)
    warm(database, COUNT)
    with database.unit_of_work():
        assert database.fetch_value(COUNT) == 0
        table.execute("INSERT INTO t VALUES (1)")
        assert database.fetch_value(COUNT) == 0
    database.close()


@pytest.mark.parametrize(
    "text",
    [
        "SELECT now()",
        "SELECT current_timestamp",
        "SELECT 1 FROM t FOR UPDATE",
        "SELECT pg_current_xact_id_if_assigned()",
    ],
)
def test_not_for_statements_that_notice_their_transaction(text: Any, config: dict[str, Any], table: Observer) -> None:
    database = Database(prepared(config))
    warm(database, text)
    with database.unit_of_work():
        database.fetch_one(text)
        assert status(database) == TransactionStatus.INTRANS
    database.close()


def test_a_view_that_writes_is_part_of_the_transaction(config: dict[str, Any], table: Observer) -> None:
    table.execute("CREATE FUNCTION note() RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (1) RETURNING a'")
    table.execute("CREATE VIEW noting AS SELECT note() AS a")
    database = Database(prepared(config))
    read: Any = "SELECT a FROM noting"
    warm(database, COUNT)
    for number in range(1, 6):
        with database.unit_of_work():
            assert database.fetch_value(read) == 1
            assert table.execute(COUNT).fetchone() == (number - 1,)
        assert table.execute(COUNT).fetchone() == (number,)
    with pytest.raises(ZeroDivisionError):
        with database.unit_of_work():
            assert database.fetch_value(read) == 1
            raise ZeroDivisionError
    assert table.execute(COUNT).fetchone() == (5,)
    database.close()


def test_a_cancelled_unit_of_work_reads_nothing(config: dict[str, Any], table: Observer) -> None:
    database = Database(prepared(config))
    warm(database, COUNT)
    with database.unit_of_work() as unit:
        unit.cancel("the client is gone")
        with pytest.raises(CancelledUnitError):
            database.fetch_value(COUNT)
        unit.finish(ZeroDivisionError())
    database.close()


def test_an_error_of_the_first_read_fails_the_transaction(config: dict[str, Any], table: Observer) -> None:
    database = Database(prepared(config))
    divide: Any = "SELECT 1 / %s"
    for _ in range(3):
        with database.unit_of_work():
            database.fetch_value(divide, [1])
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        with database.unit_of_work():
            with pytest.raises(psycopg.errors.DivisionByZero):
                database.fetch_value(divide, [0])
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                database.execute("INSERT INTO t VALUES (1)")
    assert table.execute(COUNT).fetchone() == (0,)
    with database.unit_of_work():
        assert database.fetch_value(divide, [1]) == 1
    database.close()


def test_deallocated_statements_are_prepared_again(config: dict[str, Any], table: Observer) -> None:
    database = Database(prepared(config))
    warm(database, COUNT)
    for statement in ("DEALLOCATE ALL", "DISCARD ALL"):
        with database.connection() as connection:
            connection.set_autocommit(True)
            connection.execute(statement.encode())
        warm(database, COUNT)
        with database.connection() as connection:  # where psycopg cannot know
            connection.pgconn.exec_(statement.encode())
        warm(database, COUNT)
    table.execute("ALTER TABLE t ADD COLUMN b int")
    warm(database, COUNT, "SELECT * FROM t")
    table.execute("ALTER TABLE t ADD COLUMN c int")
    warm(database, COUNT, "SELECT * FROM t")
    database.close()


def test_one_round_trip_again_after_a_rollback(config: dict[str, Any], table: Observer) -> None:
    connect = config["connection_settings"]
    with FaultProxy(connect["host"], int(connect["port"])) as proxy:
        database = Database(proxied(config, proxy))
        warm(database, COUNT)
        with pytest.raises(ZeroDivisionError):
            with database.transaction():
                database.execute("INSERT INTO t VALUES (1)")
                raise ZeroDivisionError
        warm(database, COUNT)
        before = proxy.round_trips
        with database.unit_of_work():
            assert database.fetch_value(COUNT) == 0
        assert proxy.round_trips == before + 1
        database.close()


def test_a_notice_handler_hears_nothing_of_the_next_borrower(
    config: dict[str, Any], table: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    table.execute("CREATE FUNCTION tell() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'x'; RETURN 1; END $$")
    database = Database(prepared(config))
    tell: Any = "SELECT tell()"
    warm(database, tell)
    heard: list[Any] = []
    with database.connection() as kept:
        kept.add_notice_handler(heard.append)
        kept.execute(tell)
    assert len(heard) == 1
    database.fetch_value(tell)
    with database.unit_of_work():
        database.fetch_value(tell)
    assert len(heard) == 1
    assert not caplog.records  # of psycopg's, about a handler that failed
    assert kept.closed
    database.close()
