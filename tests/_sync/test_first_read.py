# Generated from tests/_async/test_first_read.py by tools/twins.py: change that file, then run the tool.

"""The first query of a unit of work is part of its transaction, also when it looks like a plain read.

Each program runs more often than it takes to have its statements prepared: it must do the same each time.
"""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import Connection, sql
from psycopg.pq import TransactionStatus

from pgmonkey import CancelledUnitError, Database
from pgmonkey.embedded import Server

from ..configs import prepared, proxied
from ..faults.proxy import FaultProxy
from .test_fast_path import Observer

TIMES = 10
COUNT: Any = "SELECT count(*) FROM t"


@pytest.fixture
def table(observer: Observer) -> Observer:
    observer.execute("CREATE TABLE t (a int)")
    return observer


def warm(database: Database[Any], *statements: Any) -> None:
    """Have *statements* prepared."""
    for _ in range(3):
        for statement in statements:
            with database.unit_of_work():
                database.fetch_one(statement)


def status(database: Database[Any]) -> TransactionStatus:
    unit = database.current_unit()
    assert unit is not None
    return (unit.connection()).info.transaction_status


@pytest.mark.parametrize("text", ["SELECT count(*) FROM t", "SELECT now()", "VALUES (1)", "SELECT 1 FROM t FOR UPDATE"])
def test_it_begins_the_transaction(text: Any, config: dict[str, Any], table: Observer) -> None:
    database = Database(prepared(config))
    for _ in range(TIMES):
        with database.unit_of_work():
            database.fetch_one(text)
            assert status(database) == TransactionStatus.INTRANS
    database.close()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_it_fixes_the_snapshot_of_the_transaction(level: str, config: dict[str, Any], table: Observer) -> None:
    settings = prepared(config)
    for session in ("sync_settings", "async_settings"):
        settings[session] = {"default_transaction_isolation": level}
    database = Database(settings)
    for number in range(TIMES):
        with database.unit_of_work():
            assert database.fetch_value(COUNT) == number
            table.execute("INSERT INTO t VALUES (1)")
            assert database.fetch_value(COUNT) == number
    database.close()


def test_the_time_of_the_transaction_is_that_of_its_first_read(config: dict[str, Any], table: Observer) -> None:
    table.execute("CREATE VIEW clock AS SELECT now() AS a")
    database = Database(prepared(config))
    for _ in range(TIMES):
        with database.unit_of_work():
            assert database.fetch_value("SELECT a FROM clock") == database.fetch_value("SELECT now()")
    database.close()


def test_a_view_that_writes_an_audit_row_writes_it_each_time(config: dict[str, Any], table: Observer) -> None:
    # The function catches the error that it would get in a read-only transaction.
    table.execute(
        "CREATE FUNCTION note() RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t VALUES (1); RETURN 1; "
        "EXCEPTION WHEN read_only_sql_transaction THEN RETURN 1; END $$"
    )
    table.execute("CREATE VIEW noting AS SELECT note() AS a")
    database = Database(prepared(config))
    read: Any = "SELECT a FROM noting"
    for number in range(TIMES):
        with database.unit_of_work():
            assert database.fetch_value(read) == 1
            assert table.execute(COUNT).fetchone() == (number,)
        assert table.execute(COUNT).fetchone() == (number + 1,)
    with pytest.raises(ZeroDivisionError):
        with database.unit_of_work():
            assert database.fetch_value(read) == 1
            raise ZeroDivisionError
    assert table.execute(COUNT).fetchone() == (TIMES,)
    database.close()


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
def test_what_it_sets_holds_until_the_end(
    definition: Any, first: Any, holds: Any, config: dict[str, Any], table: Observer
) -> None:
    table.execute(definition)
    database = Database(prepared(config))
    for _ in range(TIMES):
        with database.unit_of_work():
            database.fetch_one(first)
            assert database.fetch_value(holds)
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


def test_two_round_trips_also_after_a_rollback(config: dict[str, Any], table: Observer) -> None:
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
        assert proxy.round_trips == before + 2
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


# -- before it is prepared ---------------------------------------------------------------------------------------------


def test_what_begins_a_transaction_takes_one_round_trip_however_it_is_written(
    config: dict[str, Any], table: Observer
) -> None:
    forms: list[tuple[Any, Any]] = [
        ("SELECT %s::int", (1,)),
        (b"SELECT %s::int + 0", (1,)),
        (sql.SQL("SELECT {}::int").format(sql.Placeholder("a")), {"a": 1}),
        ("SELECT 1", None),
        ("/* a */ SELECT 1 -- b", ()),
        ("INSERT INTO t VALUES (%s) RETURNING a", (1,)),
    ]
    connect = config["connection_settings"]
    with FaultProxy(connect["host"], int(connect["port"])) as proxy:
        through = proxied(config, proxy)
        through["connection_settings"]["prepare_threshold"] = 2
        database = Database(through)
        for query, params in forms:
            found = []
            for _ in range(5):  # not prepared, being prepared, and prepared
                with database.transaction() as connection:
                    before = proxy.round_trips
                    cursor = connection.execute(query, params)
                    found.append(proxy.round_trips - before)
                    assert cursor.fetchone() == (1,)
            assert found == [1] * 5, query
        database.close()


@pytest.mark.parametrize("threshold", [0, 1, None])
@pytest.mark.parametrize(
    ("query", "params", "error"),
    [
        ("SELECT no_such_column WHERE %s", (True,), psycopg.errors.UndefinedColumn),
        ("SELECT 1 / %s::int", (0,), psycopg.errors.DivisionByZero),
        ("SELECT %s::int", (1, 2), psycopg.ProgrammingError),
        ("SELECT a FROM t WHERE a = %s", (object(),), psycopg.ProgrammingError),
    ],
)
def test_a_transaction_that_begins_with_an_error(
    threshold: int | None, query: Any, params: Any, error: type[Exception], config: dict[str, Any], table: Observer
) -> None:
    settings = prepared(config)
    settings["connection_settings"]["prepare_threshold"] = threshold
    database = Database(settings)
    for number in range(4):
        with pytest.raises(error):
            with database.transaction() as connection:
                connection.execute(query, params)
        with database.transaction() as connection:
            connection.execute("INSERT INTO t VALUES (%s)", (1,))
            cursor = connection.execute(COUNT)
            assert cursor.fetchone() == (number + 1,)
    database.close()


@pytest.mark.parametrize("threshold", [0, 5])
@pytest.mark.parametrize(
    ("query", "params"),
    [
        *[("SELECT $1", None), ("SELECT 1", (1,)), ("SELECT %s", (object(),)), ("SELECT 1 / 0", None)],
        pytest.param(f"SELECT {', '.join(['%s'] * 65_536)}", [1] * 65_536, id="more parameters than there can be"),
    ],
)
def test_what_fails_first_fails_as_with_psycopg(
    threshold: int, query: Any, params: Any, config: dict[str, Any], server: Server, dbname: str
) -> None:
    def failing(connection: Connection[Any]) -> tuple[object, ...]:
        with pytest.raises(psycopg.Error) as caught:
            connection.execute(query, params)
        return type(caught.value), connection.info.transaction_status

    with Connection.connect(server.dsn(dbname), prepare_threshold=threshold) as connection:
        right = failing(connection)
        connection.rollback()
    database = Database(prepared(config, threshold=threshold))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            with database.transaction() as connection:
                assert failing(connection) == right
                raise ZeroDivisionError
    database.close()


def test_several_statements_at_the_beginning(config: dict[str, Any], table: Observer) -> None:
    database = Database(prepared(config, threshold=10))  # several cannot be prepared
    for number in range(1, 4):
        with database.transaction() as connection:
            cursor = connection.execute("INSERT INTO t VALUES (1); SELECT count(*) FROM t")
            assert cursor.nextset()
            assert cursor.fetchone() == (number,)
            # Without a parameter in it, psycopg sends it as it is, whatever it is called with.
            cursor = connection.execute("SELECT 1; SELECT 2", {"a": 1})
            assert cursor.fetchone() == (1,)
        with database.transaction() as connection:
            cursor = connection.execute("SELECT 1; SELECT 2", {"a": 1})
            assert cursor.fetchone() == (1,)
    database.close()


def test_a_unit_refuses_to_begin_with_its_end(config: dict[str, Any]) -> None:
    database = Database(prepared(config))
    with database.transaction() as connection:
        with pytest.raises(psycopg.ProgrammingError, match="forbidden in a unit of work"):
            connection.execute("ROLLBACK")
        assert connection.info.transaction_status == TransactionStatus.IDLE
    database.close()


def test_what_is_not_kept_prepared_is_deallocated(config: dict[str, Any]) -> None:
    def configure(connection: Any) -> None:
        connection.prepared_max = 3

    settings = prepared(config)
    settings["async_pool_settings"]["configure"] = settings["pool_settings"]["configure"] = configure
    database = Database(settings)
    for number in range(10):
        query: Any = f"SELECT {number}, %s::int"
        with database.transaction() as connection:
            connection.execute(query, (1,))
    known = "SELECT count(*) FROM pg_prepared_statements"
    assert database.fetch_value(known) <= 5
    database.close()


def test_statements_stay_known_where_the_session_is_cleaned(config: dict[str, Any], table: Observer) -> None:
    table.execute("CREATE FUNCTION own(int) RETURNS int LANGUAGE sql AS 'SELECT $1'")
    settings = prepared(config, threshold=2)
    database = Database(settings)
    for _ in range(5):
        with database.transaction() as connection:
            connection.execute("SELECT own(%s)", (1,))
    known = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%own%'"
    assert database.fetch_value(known) == 1
    # Nor has a rollback to be made up for by as many executions as before.
    with pytest.raises(ZeroDivisionError):
        with database.transaction():
            raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        with database.transaction() as connection:
            connection.execute("SELECT 1")
            raise ZeroDivisionError
    assert database.fetch_value(known) == 0
    with database.transaction() as connection:
        connection.execute("SELECT own(%s)", (1,))
    assert database.fetch_value(known) == 1
    database.close()
