# Generated from tests/_async/test_leaks.py by tools/twins.py: change that file, then run the tool.

"""Connections that are borrowed for long, or never given back."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.pq import PipelineStatus

from pgmonkey import Database, PGConnectionManager
from pgmonkey._sync.handle import ConnectionHandle
from pgmonkey._sync.waiting import POOL_KIND, sleep

from ..configs import pools
from .concurrency import Beside, elsewhere
from .test_recovery import Observer, at_work, until


def test_a_connection_that_is_borrowed_for_long_is_reported_once(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def reports() -> list[str]:
        return [record.getMessage() for record in caplog.records if "possible leak" in record.getMessage()]

    database = Database(pools(config, leak_detection_threshold=0.2))
    with database.connection() as connection:
        connection.execute("SELECT 1")
        until(lambda: bool(reports()))
        sleep(0.5)
    (record,) = reports()
    assert Path(__file__).name in record
    assert "test_a_connection_that_is_borrowed_for_long_is_reported_once" in record
    assert f"by {'thread' if POOL_KIND == 'pool' else 'task'} '" in record
    assert 0.2 <= float(record.partition("checked out for ")[2].partition(" s")[0]) < 20
    caplog.clear()
    with database.connection():  # the same one, in other hands
        until(lambda: bool(reports()))
    database.close()


def test_without_a_threshold_nothing_is_reported(config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    database = Database(pools(config))
    with database.connection():
        sleep(0.5)
    assert not caplog.records
    database.close()


def test_closing_reports_what_is_still_borrowed(config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    database = Database(pools(config))
    with database.connection() as connection:
        database.close()
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert Path(__file__).name in caplog.text
        assert "still checked out" in caplog.text
        connection.execute("SELECT 1")


def test_a_block_that_was_refused_and_forgotten_refuses_nothing_more(
    config: dict[str, Any], observer: Observer
) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = Database(pools(config, max_size=1))

    def enter_by_hand() -> None:
        outer, left, kept = database.transaction(), database.transaction(), database.transaction()
        for block in (outer, left, kept):
            block.__enter__()
        with pytest.raises(psycopg.ProgrammingError, match="savepoints must nest"):
            left.__exit__(None, None, None)
        with pytest.raises(psycopg.ProgrammingError, match="savepoints must nest"):
            database.execute("INSERT INTO t VALUES (1)")

    gc.disable()
    try:
        enter_by_hand()
        assert database.execute("INSERT INTO t VALUES (2)") == 1
    finally:
        gc.enable()
    assert observer.execute("SELECT a FROM t").fetchall() == [(2,)]
    database.close()


def test_a_block_that_is_made_beside_the_first_statement_can_be_forgotten(config: dict[str, Any]) -> None:
    database, block = Database(pools(config)), None
    with pytest.raises(psycopg.ProgrammingError, match="savepoints must nest"):
        with database.transaction() as connection:
            first = Beside(lambda: database.fetch_value("SELECT pg_sleep(2) IS NULL"))
            while connection.pgconn.pipeline_status == PipelineStatus.OFF:
                sleep(0.001)
            block = connection.transaction()
            assert first.end() is False
            block.__enter__()
    del block
    gc.collect()  # psycopg's generator would miss its connection, and say so on stderr
    database.close()


def test_a_context_does_not_keep_the_connection_of_a_block_that_has_ended(config: dict[str, Any]) -> None:
    kind: Any = "normal" if POOL_KIND == "pool" else "async"
    get: Any = PGConnectionManager().get_database_connection_from_dict
    handle = get(config, kind)
    with handle as connection:
        connection.execute("SELECT 1")
    lent = weakref.ref(connection)
    del connection
    gc.collect()
    assert lent() is None


def test_a_connection_of_an_ended_task_is_taken_back(config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    get: Any = PGConnectionManager().get_database_connection_from_dict
    handle = get(pools(config, timeout=2), POOL_KIND)

    def forget() -> None:
        connection = handle.__enter__()
        connection.execute("SELECT 1")

    for _ in range(5):
        elsewhere(forget)
        with handle as connection:
            connection.execute("SELECT 1")
    assert "never given back" in caplog.text
    assert len(handle._open_blocks._blocks) <= 2
    assert handle.stats()["pool_size"] <= 2


def borrow_idle(handle: ConnectionHandle) -> tuple[Any, list[object]]:
    """Borrow a connection and use it; return it, and what alone refers to its lease."""
    lease = handle.borrow()
    lease.connection.execute("SELECT 1")
    lease.connection.commit()
    return lease.connection, [lease]


def in_another_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_what_another_thread_drops_is_closed_and_disturbs_nobody(config: dict[str, Any]) -> None:
    get: Any = PGConnectionManager().get_database_connection_from_dict
    handle = get(pools(config, max_size=2), POOL_KIND)
    with handle as used:
        for _ in range(10):
            dropped, leases = borrow_idle(handle)
            in_another_thread(leases.clear)
            assert dropped.closed
            with handle as connection:
                for number in range(3):
                    assert (connection.execute("SELECT %s::int", [number])).fetchone() == (number,)
            assert (used.execute("SELECT 1")).fetchone() == (1,)
    assert handle.stats()["pool_size"] == handle.stats()["pool_available"]


def test_what_is_collected_under_a_statement_is_hung_up(config: dict[str, Any], observer: Observer) -> None:
    """libpq must not lose a connection under whoever is inside it: it is freed when they have left it."""
    get: Any = PGConnectionManager().get_database_connection_from_dict
    handle = get(pools(config, max_size=1), POOL_KIND)
    gc.disable()
    try:
        connection, cycle = borrow_idle(handle)
        cycle.append(cycle)
        del cycle
        pgconn = connection.pgconn
        statement = Beside(lambda: connection.execute("SELECT pg_sleep(60)"))
        until(lambda: at_work(observer) == 1)
        in_another_thread(gc.collect)
    finally:
        gc.enable()
    assert isinstance(statement.end(), psycopg.Error)
    assert pgconn.pgconn_ptr is not None
    until(lambda: at_work(observer) == 0)
    with handle as connection:
        connection.execute("SELECT 1")


def test_closing_under_a_statement_waits_until_it_has_noticed(config: dict[str, Any], observer: Observer) -> None:
    get: Any = PGConnectionManager().get_database_connection_from_dict
    handle = get(pools(config, max_size=1), POOL_KIND)
    lease = handle.borrow()
    connection = lease.connection
    statement = Beside(lambda: connection.execute("SELECT pg_sleep(60)"))
    until(lambda: at_work(observer) == 1)
    connection.close()
    assert not connection.lock.locked()
    assert isinstance(statement.end(), psycopg.OperationalError)
    lease.finish(ZeroDivisionError())
    with handle as connection:
        connection.execute("SELECT 1")


def test_a_connection_that_is_referred_to_is_not_taken_back(config: dict[str, Any]) -> None:
    get: Any = PGConnectionManager().get_database_connection_from_dict
    handle = get(pools(config, max_size=1), POOL_KIND)
    kept = []

    def keep() -> None:
        kept.append(handle.__enter__())

    elsewhere(keep)
