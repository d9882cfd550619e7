# Generated from tests/_async/test_transactions.py by tools/twins.py: change that file, then run the tool.

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

from pgmonkey import Database, PGConnectionManager
from pgmonkey._sync import cursor as cursors
from pgmonkey._sync import fastpath as fast

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

    def counted(*arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        return usual(*arguments)

    monkeypatch.setattr(fast, "execute_plan", counted)
    monkeypatch.setattr(cursors, "execute_plan", counted)
    return lambda: taken


def test_round_trips(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    connect = config["connection_settings"]
    with FaultProxy(connect["host"], int(connect["port"])) as proxy:
        database = Database(proxied(config, proxy))

        def query() -> None:
            assert database.fetch_one("SELECT 1") == (1,)

        def reads_once() -> None:
            with database.unit_of_work():
                assert database.fetch_one("SELECT 1") == (1,)

        def reads_twice() -> None:
            with database.unit_of_work():
                assert database.fetch_one("SELECT 1") == (1,)
                assert database.fetch_value("SELECT 1") == 1

        def transaction() -> None:
            with database.transaction() as connection:
                cursor = connection.execute("SELECT 1")
                assert cursor.fetchone() == (1,)

        def reads_in_a_transaction() -> None:
            with database.transaction():
                assert database.fetch_one("SELECT 1") == (1,)

        def writes_three_times() -> None:
            with database.unit_of_work():
                for a in range(3):
                    database.execute("INSERT INTO t VALUES (%s)", [a])

        def nothing() -> None:
            with database.unit_of_work():
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
                function()
            before = proxy.round_trips
            for _ in range(10):
                function()
            assert proxy.round_trips - before == 10 * expected, function
        database.close()


@pytest.mark.parametrize("name", VALUES)
def test_every_built_in_type(name: str, config: dict[str, Any], observer: Observer, fast_path_hits: Hits) -> None:
    database = Database(prepared(config))
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

    def by_cursor(pair: Any) -> Any:
        with database.transaction() as connection:
            cursor = connection.execute(query, pair)
            assert [column.name for column in cursor.description or ()] == ["a", "b"]
            return cursor.fetchone()

    def by_query_method(pair: Any) -> Any:
        with database.transaction():
            return database.fetch_one(query, pair)

    for pair in pairs:
        expected = outcome(partial(first_row, observer, query, pair))
        for way in (by_cursor, by_query_method):
            assert repr(run_to_end(partial(way, pair))) == repr(expected), pair
    assert fast_path_hits() > len(pairs) // 3
    database.close()


def test_cursors_are_psycopgs(config: dict[str, Any], observer: Observer, fast_path_hits: Hits) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = Database(prepared(config), row_factory=dict_row)
    numbers: Any = "SELECT a FROM generate_series(1, %s) AS a"
    for _ in range(3):
        with database.transaction() as connection:
            first = connection.execute(numbers, [3])
            second = connection.execute(numbers, [2])
            assert first.rowcount == 3
            assert first.statusmessage == "SELECT 3"
            assert second.fetchall() == [{"a": 1}, {"a": 2}]
            assert first.fetchall() == [{"a": 1}, {"a": 2}, {"a": 3}]
            assert connection.info.transaction_status == TransactionStatus.INTRANS
            assert (connection.execute(numbers.encode(), [2])).rowcount == 2
            scalars = connection.cursor(row_factory=scalar_row)
            scalars.execute(numbers, [2])
            assert [row for row in scalars] == [1, 2]
            scalars.execute(numbers, [1], binary=True)
            assert scalars.fetchall() == [1]
            scalars.close()
            with pytest.raises(psycopg.InterfaceError):
                scalars.execute(numbers, [1])
            written = connection.execute("INSERT INTO t SELECT a FROM generate_series(1, %s) AS a", [4])
            assert written.rowcount == 4
            assert written.description is None
            with pytest.raises(psycopg.ProgrammingError):
                written.fetchone()
            with connection.pipeline():
                piped = connection.execute(numbers, [1])
                assert piped.fetchall() == [{"a": 1}]
            with connection.transaction():
                connection.execute(numbers, [1])
    assert (
        fast_path_hits() == 15
    )  # all but the first of each text, in binary, in the pipeline, and of the closed cursor
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (12,)
    database.close()


def test_types_of_a_borrower_are_the_borrowers(config: dict[str, Any], fast_path_hits: Hits) -> None:
    from psycopg.types.string import TextLoader

    database = Database(prepared(config))
    query: Any = "SELECT %s::int4"
    for _ in range(3):
        with database.transaction() as connection:
            assert (connection.execute(query, [1])).fetchone() == (1,)
            assert database.fetch_one(query, [1]) == (1,)
    taken = fast_path_hits()
    with database.transaction() as connection:
        connection.adapters.register_loader("int4", TextLoader)
        assert (connection.execute(query, [1])).fetchone() == ("1",)
        assert database.fetch_one(query, [1]) == ("1",)
    with database.transaction() as connection:
        cursor = connection.cursor()
        cursor.adapters.register_loader("int4", TextLoader)
        assert (cursor.execute(query, [1])).fetchone() == ("1",)
    assert fast_path_hits() == taken
    with database.transaction() as connection:
        assert (connection.execute(query, [1])).fetchone() == (1,)
        connection.row_factory = dict_row  # type: ignore[assignment]
        row: Any = database.fetch_one(query, [1])
        assert row == {"int4": 1}
    assert fast_path_hits() == taken + 2
    database.close()


def test_an_error_of_the_first_statement_is_the_transactions(
    config: dict[str, Any], observer: Observer, fast_path_hits: Hits
) -> None:
    database = Database(prepared(config))
    divide: Any = "SELECT 1 / %s"
    for _ in range(3):
        database.fetch_value(divide, [1])
    for _ in range(3):
        with pytest.raises(psycopg.errors.DivisionByZero):
            with database.transaction() as connection:
                try:
                    connection.execute(divide, [0])
                finally:
                    assert connection.info.transaction_status == TransactionStatus.INERROR
                    assert connection.pgconn.pipeline_status == pq.PipelineStatus.OFF
        assert database.fetch_value(divide, [1]) == 1
        database.fetch_value(divide, [1])
        with database.transaction(isolation="serializable", read_only=True) as connection:
            cursor = connection.execute(divide, [1])
            assert cursor.fetchone() == (1,)
            assert database.fetch_value("SHOW transaction_isolation") == "serializable"
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                with connection.transaction():
                    connection.execute("CREATE TABLE no (a int)")
    assert fast_path_hits() > 3
    stats = database.stats()
    assert stats["pool_available"] == stats["pool_size"] == 1
    database.close()


def test_notices_and_notifications(config: dict[str, Any], observer: Observer, fast_path_hits: Hits) -> None:
    observer.execute(
        "CREATE FUNCTION tell() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'hello'; RETURN 1; END $$"
    )
    database = Database(prepared(config))
    for _ in range(3):
        database.fetch_value("SELECT tell()")
    heard: list[Any] = []
    with database.connection() as connection:
        connection.set_autocommit(True)
        for _ in range(2):
            connection.execute("SELECT 1")
        connection.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))
        connection.execute("SELECT tell()")
        assert heard == ["hello"]
        connection._notice_handlers.clear()
        connection.execute("LISTEN news")
        observer.execute("NOTIFY news, 'one'")
        taken = fast_path_hits()
        connection.execute("SELECT 1")
        assert fast_path_hits() == taken + 1
        for notification in connection.notifies(timeout=2, stop_after=1):
            heard.append(notification.payload)
    # Before 3.3, psycopg forgot a notification that came with the answer to a statement.
    assert heard == ["hello", "one"] if psycopg.__version__ >= "3.3" else ["hello"]
    database.close()


def test_only_what_may_leave_something_is_cleaned(config: dict[str, Any], observer: Observer) -> None:
    observer.execute(
        "CREATE FUNCTION tenant(id text) RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant', id, false) $$"
    )
    connect = config["connection_settings"]
    with FaultProxy(connect["host"], int(connect["port"])) as proxy:
        manager = PGConnectionManager()
        handle = manager.get_database_connection_from_dict(proxied(config, proxy), "pool")

        def round_trips(*statements: Any) -> int:
            lease = handle.borrow(autocommit=True)
            before = proxy.round_trips
            for statement in statements:
                lease.connection.execute(statement)
            lease.finish()
            return proxy.round_trips - before

        tenant = "SELECT current_setting('app.tenant', true)"
        for _ in range(4):
            round_trips("SELECT 1", "SELECT 2", tenant)
        assert round_trips("SELECT 1", "SELECT 2") == 2
        assert round_trips("SELECT tenant('mine')", "SELECT 1") in (3, 4)  # prepared or not, cleaned
        assert round_trips("SELECT 1", "SELECT 2") == 2
        with handle as connection:
            connection.execute("SELECT tenant('mine')")
        with handle as connection:
            assert (connection.execute(tenant)).fetchone() in ((None,), ("",))
        with handle as connection:
            connection.pgconn.send_query(b"SET app.tenant = 'mine'")
            connection.wait(execute(connection.pgconn))
            connection.execute("SELECT 77")
        with handle as connection:
            assert (connection.execute(tenant)).fetchone() in ((None,), ("",))
        lease = handle.borrow(autocommit=True)
        before = proxy.round_trips
        with psycopg.ClientCursor(lease.connection) as cursor:
            cursor.execute("SELECT %s", ["not a -- comment"])
        lease.finish()
        assert proxy.round_trips - before == 1
        with handle as connection:
            with psycopg.ClientCursor(connection) as cursor:
                cursor.execute("SELECT tenant(%s)", ["mine"])
        with handle as connection:
            assert (connection.execute(tenant)).fetchone() in ((None,), ("",))
        manager.clear_cache()
