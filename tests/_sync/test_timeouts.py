# Generated from tests/_async/test_timeouts.py by tools/twins.py: change that file, then run the tool.

"""The ``timeout`` of a call, a block and a request: what has not ended by then is cancelled, and the error names it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg.errors import SerializationFailure
from psycopg.rows import dict_row

from pgmonkey import (
    CommandTimeoutError,
    CommitUnknownError,
    Database,
    Deadline,
    DeadlineExceededError,
    PoolTimeoutError,
)
from pgmonkey._sync.waiting import sleep

from ..configs import pools, prepared, proxied
from ..faults.proxy import FaultProxy
from .concurrency import Beside

Observer = psycopg.Connection[Any]
# Seconds that a machine with much to do may be late.
LATE = 10
SLOW = "SELECT pg_sleep(%s::float8)"
LONG = 60.0


def calls(database: Database[Any], timeout: float) -> dict[str, Callable[[], object]]:
    def stream() -> None:
        for _ in database.stream(SLOW, [LONG], timeout=timeout):
            pass

    def transaction() -> None:
        with database.transaction(timeout=timeout):
            database.fetch_value("SELECT 1")
            database.execute(SLOW, [LONG])

    def cursor() -> None:
        with database.transaction(timeout=timeout) as connection:
            connection.execute(SLOW, [LONG])

    def connection() -> None:
        with database.connection(timeout=timeout) as connection:
            connection.execute("SELECT 1")
            connection.execute(SLOW, [LONG])

    def batch() -> None:
        with database.batch(timeout=timeout) as batch:
            batch.execute("SELECT 1")
            batch.execute(SLOW, [LONG])

    return {
        "fetch_one": lambda: database.fetch_one(SLOW, [LONG], timeout=timeout),
        "fetch_one of dict_row": lambda: database.fetch_one(SLOW, [LONG], row_factory=dict_row, timeout=timeout),
        "fetch_exactly_one": lambda: database.fetch_exactly_one(SLOW, [LONG], timeout=timeout),
        "fetch_all": lambda: database.fetch_all(SLOW, [LONG], timeout=timeout),
        "fetch_value": lambda: database.fetch_value(SLOW, [LONG], timeout=timeout),
        "fetch_values": lambda: database.fetch_values(SLOW, [LONG], timeout=timeout),
        "execute": lambda: database.execute(SLOW, [LONG], timeout=timeout),
        "execute_many": lambda: database.execute_many(SLOW, [[0], [LONG]], timeout=timeout),
        "stream": stream,
        "transaction": transaction,
        "cursor": cursor,
        "connection": connection,
        "batch": batch,
        "copy_to": lambda: database.copy_to(SLOW, io.BytesIO(), [LONG], timeout=timeout),
        "retry": lambda: database.retry(lambda: database.execute(SLOW, [LONG]), timeout=timeout),
    }


def sleeping(observer: Observer) -> int:
    """Return how many sessions execute the slow statement."""
    row = observer.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query ~ 'pg_sleep'"
        " AND datname = current_database() AND pid <> pg_backend_pid()"
    ).fetchone()
    assert row is not None
    return int(row[0])


def expect_late(call: Callable[[], object], observer: Observer) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError) as caught:
        call()
    assert 0.2 <= time.monotonic() - started < 0.2 + LATE
    assert "did not end within 0.25 s (timeout)" in str(caught.value)
    assert isinstance(caught.value, CommandTimeoutError)
    expect(lambda: sleeping(observer) == 0)


def side_by_side(works: Iterable[Callable[[], object]]) -> None:
    """Do them all at the same time: most of what they take is waiting."""
    for each in [Beside(work) for work in works]:
        if isinstance(error := each.end(), BaseException):
            raise error


def wide(config: dict[str, Any], **settings: Any) -> Database:
    """Return a database with a connection ready for each of the calls."""
    database = Database(pools(config, min_size=16, max_size=16, **settings))
    database.connect()
    expect(lambda: database.stats()["pool_available"] == 16)
    return database


def expect(what: Callable[[], bool]) -> None:
    """Wait until *what* is true, as it is to become."""
    deadline = time.monotonic() + LATE
    while not what():
        assert time.monotonic() < deadline
        sleep(0.01)


def test_calls_side_by_side_end_in_time_and_are_cancelled(config: dict[str, Any], observer: Observer) -> None:
    database = wide(config)
    side_by_side(partial(expect_late, call, observer) for call in calls(database, 0.25).values())
    assert database.fetch_value("SELECT 1") == 1
    expect(lambda: database.stats()["pool_available"] == 16)  # of which upkeep has made some anew
    database.close()


def test_every_call_ends_in_time_and_is_cancelled(config: dict[str, Any], observer: Observer) -> None:
    database = Database(prepared(config))
    for _ in range(3):
        assert database.fetch_one(SLOW, [0], timeout=LONG) == ("",)
        database.fetch_value(SLOW, [0])
    for call in calls(database, 0.25).values():
        expect_late(call, observer)
        assert database.fetch_value("SELECT 1") == 1
    # Two of them are beside each other in a unit of work, whose transaction is lost with its connection.
    for name in ("fetch_one", "fetch_one of dict_row", "fetch_exactly_one", "execute", "execute_many", "batch"):
        with pytest.raises(psycopg.OperationalError):
            with database.unit_of_work():
                database.fetch_value("SELECT 1")
                expect_late(calls(database, 0.25)[name], observer)
    stats = database.stats()
    assert stats["pool_available"] == stats["pool_size"]
    database.close()


def test_a_timeout_that_is_not_reached_costs_no_round_trip(config: dict[str, Any]) -> None:
    settings = config["connection_settings"]
    with FaultProxy(settings["host"], int(settings["port"])) as proxy:
        database = Database(proxied(config, proxy))

        def both() -> None:
            database.fetch_value("SELECT 1", timeout=LONG)
            with database.transaction(timeout=LONG):
                database.fetch_value("SELECT 1", timeout=LONG)

        for _ in range(3):
            both()
        before = proxy.round_trips
        both()
        assert proxy.round_trips - before == 3
        database.close()


def test_the_shorter_of_two_limits_counts(config: dict[str, Any]) -> None:
    config["connection_settings"]["command_timeout"] = 0.25
    database = wide(config)

    def expect_command_timeout(call: Callable[[], object]) -> None:
        with suppress(DeadlineExceededError):  # what the machine makes late, else
            with pytest.raises(CommandTimeoutError, match=r"0\.25 s \(command_timeout\)"):
                call()

    side_by_side(partial(expect_command_timeout, call) for call in calls(database, LONG).values())
    database.close()


@pytest.mark.parametrize("timeout", [0.0, -3.0])
def test_where_no_time_is_left_nothing_is_begun(timeout: float, config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = Database(pools(config))
    database.fetch_value("SELECT 1")
    for _ in range(3):
        with pytest.raises(DeadlineExceededError, match=rf"within {timeout:g} s \(timeout\)"):
            database.execute("INSERT INTO t VALUES (1)", timeout=timeout)
        with pytest.raises(DeadlineExceededError):
            with database.transaction(timeout=timeout):
                database.execute("INSERT INTO t VALUES (1)")
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (0,)
    assert database.stats()["pool_size"] == 1
    database.close()


def test_a_wait_for_a_connection_raises_what_the_pool_raises(config: dict[str, Any]) -> None:
    database = Database(pools(config, max_size=1, timeout=60))
    for _ in range(3):
        database.fetch_value(SLOW, [0])

    def expect_none(name: str, call: Callable[[], object]) -> None:
        started = time.monotonic()
        with pytest.raises(PoolTimeoutError, match=r"\(timeout\)"):
            call()
        assert time.monotonic() - started < LATE, name

    with database.connection():
        side_by_side(partial(expect_none, *each) for each in calls(database, 0.25).items())
    database.close()


def test_what_ends_too_late_is_not_committed(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = Database(pools(config))
    with pytest.raises(DeadlineExceededError, match=r"nothing was committed: .* within 1\.5 s \(timeout\)"):
        with database.transaction(timeout=1.5):
            database.execute("INSERT INTO t VALUES (1)")
            sleep(1.6)
    with pytest.raises(DeadlineExceededError, match="no statement was begun"):
        with database.transaction(timeout=1.5):
            sleep(1.6)
            database.execute("INSERT INTO t VALUES (2)")
    # An error that is more important stays what is raised.
    with pytest.raises(ZeroDivisionError):
        with database.transaction(timeout=1.5):
            database.execute("INSERT INTO t VALUES (3)")
            sleep(1.6)
            raise ZeroDivisionError
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (0,)
    assert database.fetch_value("SELECT 1") == 1
    database.close()


def test_a_block_in_a_transaction_has_a_time_of_its_own(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = Database(pools(config))
    with database.transaction(timeout=LONG) as connection:
        database.execute("INSERT INTO t VALUES (1)")
        with database.transaction(timeout=LONG):
            database.execute("INSERT INTO t VALUES (2)", timeout=LONG)
        # It ended too late: its savepoint is rolled back, and the rest goes on.
        with pytest.raises(DeadlineExceededError, match=r"the block did not end within 1\.5 s"):
            with database.transaction(timeout=1.5):
                database.execute("INSERT INTO t VALUES (3)")
                sleep(1.6)
        with pytest.raises(DeadlineExceededError, match="no statement was begun"):
            with database.transaction(timeout=1.5):
                sleep(1.6)
                connection.execute("INSERT INTO t VALUES (4)")
        connection.execute("INSERT INTO t VALUES (5)")
    assert observer.execute("SELECT a FROM t ORDER BY a").fetchall() == [(1,), (2,), (5,)]
    with pytest.raises(psycopg.OperationalError):  # the connection is lost, and so is the transaction
        with database.transaction():
            database.execute("INSERT INTO t VALUES (6)")
            with pytest.raises(DeadlineExceededError):
                with database.transaction(timeout=1.5):
                    database.execute(SLOW, [LONG])
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (3,)
    database.close()


def test_the_end_of_a_block_has_no_more_time_than_the_block(config: dict[str, Any]) -> None:
    settings = config["connection_settings"]
    with FaultProxy(settings["host"], int(settings["port"])) as proxy:
        database = Database(proxied(config, proxy))
        for late in (False, True):  # its savepoint is released, or rolled back
            with pytest.raises(psycopg.OperationalError):  # the connection is lost
                with database.transaction():
                    database.execute("SELECT 1")
                    started = time.monotonic()
                    with pytest.raises(DeadlineExceededError):
                        with database.transaction(timeout=1.5):
                            database.execute("SELECT 1")
                            proxy.silent = True
                            sleep(1.6 if late else 0)
                    assert time.monotonic() - started < LATE
            proxy.silent = False
            proxy.reset_all()
        assert database.fetch_value("SELECT 1") == 1
        database.close()


def test_a_copy_whose_rows_take_too_long(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = Database(pools(config))

    def rows() -> Iterator[tuple[int]]:
        for number in range(1000):
            yield (number,)
        sleep(1.6)
        yield (1000,)

    with pytest.raises(DeadlineExceededError):
        database.copy_rows("t", rows(), timeout=1.5)
    with pytest.raises(psycopg.OperationalError):  # the connection is lost, and so is the transaction
        with database.transaction():
            database.execute("INSERT INTO t VALUES (-1)")
            with pytest.raises(DeadlineExceededError):
                database.copy_rows("t", rows(), timeout=1.5)
            with pytest.raises(psycopg.OperationalError, match="closed"):
                database.execute("INSERT INTO t VALUES (-2)")
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (0,)
    assert database.fetch_value("SELECT 1") == 1
    database.close()


def test_all_attempts_of_a_transaction_have_one_limit(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = Database(pools(config))
    tried = 0

    def conflict() -> None:
        nonlocal tried
        tried += 1
        database.execute("INSERT INTO t VALUES (1)")
        raise SerializationFailure("another transaction was first")

    with pytest.raises(DeadlineExceededError, match=r"within 1 s \(timeout\)"):
        database.retry(conflict, attempts=10**6, timeout=1)
    assert tried > 1
    with pytest.raises(SerializationFailure):
        database.retry(conflict, attempts=2, timeout=LONG)
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (0,)
    database.close()


def test_the_attempts_in_a_unit_of_work_have_a_limit_of_their_own(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = Database(prepared(config))  # of one connection

    def insert() -> int:
        return database.execute("INSERT INTO t VALUES (1)")

    with database.unit_of_work():
        assert database.retry(insert, timeout=2) == 1
        sleep(2.1)
        insert()  # not limited any more
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (2,)
    with pytest.raises(DeadlineExceededError):
        with database.unit_of_work():
            database.retry(lambda: database.execute(SLOW, [LONG]), timeout=0.25)
    with database.connection():
        started = time.monotonic()
        with pytest.raises(PoolTimeoutError):
            with database.unit_of_work():
                database.retry(insert, timeout=0.25)
        assert time.monotonic() - started < LATE
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (2,)
    database.close()


def test_a_timeout_does_not_lengthen_the_wait_for_a_connection(config: dict[str, Any]) -> None:
    database = Database(pools(config, max_size=1, timeout=0.25))
    database.fetch_value("SELECT 1")
    with database.connection():
        started = time.monotonic()
        with pytest.raises(PoolTimeoutError):
            with database.unit_of_work():
                database.fetch_value("SELECT 1", timeout=LONG)
        with pytest.raises(PoolTimeoutError):
            with database.unit_of_work(), database.transaction(timeout=LONG):
                pass
        assert time.monotonic() - started < LATE
    database.close()


def test_a_wait_for_its_turn_ends_in_time(config: dict[str, Any]) -> None:
    database = Database(pools(config))
    with database.transaction() as connection:
        ready = Beside(lambda: database.execute(SLOW, [5.0]))
        while connection.pgconn.transaction_status != psycopg.pq.TransactionStatus.ACTIVE:
            sleep(0.01)
        with pytest.raises(DeadlineExceededError, match="another statement of this transaction did not end"):
            database.fetch_value("SELECT 1", timeout=0.25)
        assert ready.end() == 1
        assert database.fetch_value("SELECT 1", timeout=LONG) == 1
    database.close()


def test_the_next_borrower_has_all_the_time(config: dict[str, Any]) -> None:
    database = Database(prepared(config))  # of one connection
    with database.transaction(timeout=2):
        database.fetch_value("SELECT 1")
    with suppress(ZeroDivisionError):
        with database.transaction(timeout=2):
            database.fetch_value("SELECT 1")
            raise ZeroDivisionError
    with database.connection(timeout=2) as connection:
        connection.execute("SELECT 1")
    database.fetch_value("SELECT 2", timeout=2)
    sleep(2.1)
    with database.transaction():
        database.fetch_value("SELECT 1")
    assert database.fetch_value("SELECT 1") == 1
    database.close()


def test_a_commit_that_does_not_end_in_time(config: dict[str, Any], observer: Observer) -> None:
    body = "BEGIN PERFORM pg_sleep(60); RETURN NULL; END"
    observer.execute(f"CREATE FUNCTION slow() RETURNS trigger AS '{body}' LANGUAGE plpgsql".encode())
    observer.execute("CREATE TABLE t (a int)")
    deferred = "AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
    observer.execute(f"CREATE CONSTRAINT TRIGGER slow {deferred} EXECUTE FUNCTION slow()".encode())
    database = Database(pools(config))
    with pytest.raises(CommitUnknownError, match=r"within 2 s \(timeout\)"):
        with database.transaction(timeout=2):
            database.execute("INSERT INTO t VALUES (1)")
    database.close()


def test_the_deadline_of_a_request(config: dict[str, Any], observer: Observer) -> None:
    database = wide(config, timeout=60)
    deadline: list[Deadline | None] = [None]
    database.deadline = lambda: deadline[0]
    causes: list[type] = []

    def expect_late(call: Callable[[], object]) -> None:
        with pytest.raises(DeadlineExceededError, match=r"within 0\.25 s \(PGMONKEY_DEADLINE\)") as caught:
            call()
        causes.append(type(caught.value.__cause__))

    def ask_all() -> None:
        deadline[0] = Deadline.after(0.25, "PGMONKEY_DEADLINE")
        side_by_side(partial(expect_late, call) for call in calls(database, LONG).values())
        expect(lambda: sleeping(observer) == 0)
        deadline[0] = None

    ask_all()
    assert database.fetch_value("SELECT 1") == 1
    causes.clear()
    leases = [database.borrow() for _ in range(16)]
    ask_all()
    assert PoolTimeoutError in causes  # of all, on a machine that has time for them
    for lease in leases:
        lease.finish()
    assert database.fetch_value("SELECT 1") == 1
    database.close()
