# Generated from tests/_async/test_connection.py by tools/twins.py: change that file, then run the tool.

"""The handle that ``get_database_connection`` returns: its blocks, and borrowing and giving back."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InFailedSqlTransaction
from psycopg.rows import dict_row

from pgmonkey import (
    ConnectionHandle,
    Database,
    GivenBackError,
    PGConnectionManager,
    PoolClosedError,
    PoolTimeoutError,
    ServerUnavailableError,
)
from pgmonkey._config.schema import Kind
from pgmonkey._sync.waiting import POOL_KIND, sleep

from ..configs import prepared
from ..garbage import no_cycles

Backends = Callable[[], list[tuple[int, str]]]
Observer = psycopg.Connection[Any]

SINGLE: Any = "normal" if POOL_KIND == "pool" else "async"


def get(config: dict[str, Any], kind: Kind = POOL_KIND) -> ConnectionHandle:
    get_connection: Any = PGConnectionManager().get_database_connection_from_dict
    handle: ConnectionHandle = get_connection(config, kind)
    return handle


def value(connection: Any, query: str) -> Any:
    cursor = connection.execute(query)
    row = cursor.fetchone()
    return row[0]


@pytest.fixture
def table(observer: Observer) -> str:
    observer.execute("CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    return "t"


def rows(observer: Observer) -> list[int]:
    return [row[0] for row in observer.execute("SELECT a FROM t ORDER BY a").fetchall()]


@pytest.mark.parametrize("kind", [POOL_KIND, SINGLE])
def test_a_block_commits_and_gives_back(kind: Kind, config: dict[str, Any], table: str, observer: Observer) -> None:
    handle = get(config, kind)
    with handle as connection:
        assert isinstance(connection, psycopg.Connection)
        connection.execute("INSERT INTO t VALUES (1)")
        assert rows(observer) == []
    assert rows(observer) == [1]
    assert handle.stats()["pool_available"] == handle.stats()["pool_size"] == 1


@pytest.mark.parametrize("kind", [POOL_KIND, SINGLE])
def test_a_block_that_raises_rolls_back_and_gives_back(
    kind: Kind, config: dict[str, Any], table: str, observer: Observer
) -> None:
    handle = get(config, kind)
    with pytest.raises(ZeroDivisionError):
        with handle as connection:
            connection.execute("INSERT INTO t VALUES (1)")
            raise ZeroDivisionError
    assert rows(observer) == []
    assert handle.stats()["pool_available"] == 1


def test_nested_blocks_have_connections_of_their_own(config: dict[str, Any], table: str, observer: Observer) -> None:
    pool = get(config)
    with pool as one:
        one.execute("INSERT INTO t VALUES (1)")
        with pool as two:
            two.execute("INSERT INTO t VALUES (2)")
            with pool as three:
                three.execute("INSERT INTO t VALUES (3)")
                assert len({connection.info.backend_pid for connection in (one, two, three)}) == 3
            assert rows(observer) == [3]
        assert rows(observer) == [2, 3]
    assert rows(observer) == [1, 2, 3]
    stats = pool.stats()
    assert stats["pool_available"] == stats["pool_size"] == 3


def test_nested_blocks_of_a_single_connection_are_savepoints(
    config: dict[str, Any], table: str, observer: Observer
) -> None:
    handle = get(config, SINGLE)
    with handle as outer:
        outer.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(ZeroDivisionError):
            with handle as inner:
                assert inner is outer
                inner.execute("INSERT INTO t VALUES (2)")
                raise ZeroDivisionError
        with handle as inner:
            inner.execute("INSERT INTO t VALUES (3)")
        assert rows(observer) == []
    assert rows(observer) == [1, 3]


def test_a_single_connection_stays_open_between_blocks_and_reconnects_when_broken(
    config: dict[str, Any], observer: Observer
) -> None:
    handle = get(config, SINGLE)
    pids = []
    for _ in range(3):
        with handle as connection:
            pids.append(connection.info.backend_pid)
    assert len(set(pids)) == 1
    observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pids[0]])
    with handle as connection:
        assert value(connection, "SELECT pg_backend_pid()") != pids[0]


def test_a_failing_commit_raises_and_gives_back(config: dict[str, Any], table: str, observer: Observer) -> None:
    pool = get(config)
    with pytest.raises(psycopg.errors.UniqueViolation):
        with pool as connection:
            connection.execute("INSERT INTO t VALUES (1), (1)")
    assert rows(observer) == []
    assert pool.stats()["pool_available"] == 1


def test_an_ignored_error_is_no_commit(config: dict[str, Any], table: str, observer: Observer) -> None:
    pool = get(config)
    with pytest.raises(InFailedSqlTransaction, match="nothing was committed"):
        with pool as connection:
            connection.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(psycopg.errors.UndefinedTable):
                connection.execute("SELECT * FROM missing")
    assert rows(observer) == []
    assert pool.stats()["pool_available"] == 1


def test_a_lost_connection_is_no_commit(config: dict[str, Any], table: str, observer: Observer) -> None:
    pool = get(config)
    with pytest.raises(psycopg.OperationalError):
        with pool as connection:
            connection.execute("INSERT INTO t VALUES (1)")
            observer.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
    assert rows(observer) == []
    assert pool._pool.lent == []
    assert pool.stats()["returns_bad"] == 1
    with pool as connection:
        assert value(connection, "SELECT 1") == 1


def test_use_after_giving_back_is_an_error(config: dict[str, Any]) -> None:
    pool = get(config)
    with pool as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT generate_series(1, 3)")
        transaction = connection.transaction()
    for use in (connection.commit, connection.rollback, lambda: connection.execute("SELECT 1")):
        with pytest.raises(GivenBackError):
            use()
    with pytest.raises(GivenBackError):
        cursor.execute("SELECT 1")
    with pytest.raises(GivenBackError):
        with transaction:
            pass
    with pytest.raises(GivenBackError):
        connection.cursor()
    connection.cancel()  # psycopg's does nothing when the connection is closed, and so does not reach another's query
    assert connection.closed
    assert "GIVEN BACK" in repr(connection)
    assert cursor.fetchone() == (1,), "what was fetched is the borrower's"


def test_what_a_borrower_leaves_does_not_reach_the_next(config: dict[str, Any], observer: Observer) -> None:
    role = sql.Identifier(f"other_{os.getpid()}")
    observer.execute(sql.SQL("CREATE ROLE {}").format(role))
    try:
        pool = get(config)
        with pool as connection:
            pid = connection.info.backend_pid
            connection.row_factory = dict_row
            connection.prepare_threshold = 0
            connection.add_notice_handler(print)
            connection.execute("SET search_path TO pg_catalog")
            connection.execute("SELECT set_config('pgm.who', 'me', false)")
            connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
            connection.execute("SELECT pg_advisory_lock(7)")
            connection.execute("CREATE TEMPORARY TABLE mine (a int)")
            connection.execute("LISTEN gossip")
            connection.execute("DECLARE held CURSOR WITH HOLD FOR SELECT 1")
            connection.execute(sql.SQL("SET ROLE {}").format(role))
        with pool as connection:
            assert connection.info.backend_pid == pid
            assert value(connection, "SHOW search_path") == '"$user", public'
            assert not value(connection, "SELECT current_setting('pgm.who', true)")
            assert value(connection, "SHOW default_transaction_read_only") == "off"
            assert (
                value(
                    connection, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
                )
                == 0
            )
            assert value(connection, "SELECT to_regclass('pg_temp.mine') IS NULL")
            assert value(connection, "SELECT count(*) FROM pg_listening_channels()") == 0
            assert value(connection, "SELECT count(*) FROM pg_cursors WHERE name = 'held'") == 0
            assert value(connection, "SELECT current_user = session_user")
            assert connection.prepare_threshold == 5
            assert connection._notice_handlers == []
    finally:
        observer.execute(sql.SQL("DROP ROLE {}").format(role))


def test_notifications_do_not_reach_the_next_borrower(config: dict[str, Any], observer: Observer) -> None:
    database: Database = Database(prepared(config))
    heard: list[psycopg.Notify] = []
    with database.connection() as connection:
        connection.execute("LISTEN gossip")
        connection.commit()
        connection.add_notify_handler(heard.append)
        connection.execute("NOTIFY gossip, 'at once'")
        connection.commit()
        assert [one.payload for one in heard] == ["at once"]
    for _ in range(3):
        with database.connection() as connection:
            connection.set_autocommit(True)
            connection.execute("LISTEN gossip")
            observer.execute("NOTIFY gossip, 'unread'")
            sleep(0.1)
        with database.connection() as connection:
            connection.execute("SELECT 1")
            assert [one for one in connection.notifies(timeout=0.1)] == []
    database.close()


@pytest.mark.parametrize("text", ["DEALLOCATE ALL", "DO $$BEGIN EXECUTE 'deallocate all'; END$$", "DISCARD ALL"])
def test_what_a_borrower_deallocates_is_prepared_anew(text: Any, config: dict[str, Any]) -> None:
    database: Database = Database(prepared(config))
    for _ in range(3):
        assert database.fetch_value("SELECT %s::int", [1]) == 1
    with database.connection() as connection:
        connection.set_autocommit(True)
        connection.execute(text)
    with database.transaction():
        database.execute("SELECT 2")
        assert database.fetch_value("SELECT %s::int", [1]) == 1
    database.close()


def test_idle_connections_that_died_are_replaced_unnoticed(config: dict[str, Any], observer: Observer) -> None:
    pool = get(config)
    with pool as one, pool as two, pool as three:
        pids = [connection.info.backend_pid for connection in (one, two, three)]
    for pid in pids:
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    with pool as connection:
        assert value(connection, "SELECT 1") == 1
    assert pool.stats()["pool_size"] == 1


def test_notifications_do_not_make_an_idle_connection_suspect(config: dict[str, Any], observer: Observer) -> None:
    pool = get({**config, "connection_settings": {**config["connection_settings"], "autocommit": True}})
    lease = pool.borrow()
    lease.connection.execute("LISTEN gossip")
    pid = lease.connection.info.backend_pid
    lease.finish(clean=False)
    observer.execute("NOTIFY gossip, 'psst'")
    with pool as connection:
        assert connection.info.backend_pid == pid


def test_an_exhausted_pool_names_who_holds_its_connections(config: dict[str, Any]) -> None:
    pool = get({**config, "pool_settings": {"max_size": 1}, "async_pool_settings": {"max_size": 1}})
    with pool:
        with pytest.raises(PoolTimeoutError) as caught:
            pool.borrow(timeout=0.05)
    message = str(caught.value)
    assert "1 of at most 1 in use, 0 waiting" in message
    assert Path(__file__).name in message
    assert "test_an_exhausted_pool_names_who_holds_its_connections" in message
    with pool as connection:
        assert value(connection, "SELECT 1") == 1


def test_the_first_error_is_in_the_servers_words(config: dict[str, Any]) -> None:
    settings = {**config["connection_settings"], "password": "wrong"}
    with pytest.raises(ServerUnavailableError, match="password authentication failed"):
        get({**config, "connection_settings": settings})
    settings = {**config["connection_settings"], "dbname": "missing_db"}
    with pytest.raises(ServerUnavailableError, match='"missing_db" does not exist'):
        get({**config, "connection_settings": settings})


def test_a_dropped_lease_is_taken_back(config: dict[str, Any], table: str, observer: Observer) -> None:
    pool = get(config)
    lease = pool.borrow()
    lease.connection.execute("INSERT INTO t VALUES (1)")
    assert pool.stats()["pool_size"] == 1
    del lease
    gc.collect()
    assert pool.stats()["pool_size"] == 0
    with pool as connection:
        assert value(connection, "SELECT count(*) FROM t") == 0


def test_psycopgs_own_block_does_not_close_what_is_the_pools(
    config: dict[str, Any], table: str, observer: Observer
) -> None:
    pool = get(config)
    with pool as connection:
        with connection:
            connection.execute("INSERT INTO t VALUES (1)")
        assert rows(observer) == [1]
        assert value(connection, "SELECT 1") == 1


def test_a_lease_is_given_back_once(config: dict[str, Any]) -> None:
    pool = get(config)
    lease = pool.borrow()
    lease.finish()
    lease.finish()
    lease.abandon()
    assert pool.stats()["pool_available"] == pool.stats()["pool_size"] == 1


def test_exit_stacks_and_wrapping_classes_exit_what_they_entered(
    config: dict[str, Any], table: str, observer: Observer
) -> None:
    pool = get(config)

    class Wrapper:
        def __enter__(self) -> Any:
            self.connection = pool.__enter__()
            return self.connection

        def __exit__(self, *error: Any) -> None:
            pool.__exit__(*error)

    with pool as outer:
        with ExitStack() as stack:
            (stack.enter_context(pool)).execute("INSERT INTO t VALUES (1)")
            with Wrapper() as wrapped:
                wrapped.execute("INSERT INTO t VALUES (2)")
            assert rows(observer) == [2]
        assert rows(observer) == [1, 2]
        outer.execute("INSERT INTO t VALUES (3)")
    assert rows(observer) == [1, 2, 3]


def test_an_exit_that_fits_several_blocks_is_an_error(config: dict[str, Any]) -> None:
    pool = get(config)

    def enter() -> Any:
        return pool.__enter__()

    def leave() -> None:
        pool.__exit__(None, None, None)

    enter()
    leave()  # there is only one it could be
    enter()
    enter()
    with pytest.raises(RuntimeError, match=r"use 'with pool.connection\(\) as conn'"):
        leave()


def test_a_closed_pool_says_so_and_lets_work_finish(
    config: dict[str, Any], table: str, observer: Observer, backends: Backends
) -> None:
    pool = get(config)
    with pool as connection:
        pool.close()
        connection.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(PoolClosedError, match=r"get_database_connection\(\)"):
            pool.borrow()
    assert rows(observer) == [1]
    assert pool.stats()["pool_size"] == 0


def test_session_settings_cost_no_round_trip_and_survive_cleaning(config: dict[str, Any]) -> None:
    parameters = {
        "search_path": ["a b", "c\\d", "public"],
        "statement_timeout": "30s",
        "application_name": "it's -c work_mem=64kB; SELECT 1",
        "jit": False,
    }
    parameters["search_path"] = '"a b", "c\\d", public'
    pool = get({**config, "sync_settings": parameters, "async_settings": parameters})
    for _ in range(2):
        with pool as connection:
            assert value(connection, "SHOW search_path") == '"a b", "c\\d", public'
            assert value(connection, "SHOW statement_timeout") == "30s"
            assert value(connection, "SHOW application_name") == "it's -c work_mem=64kB; SELECT 1"
            assert value(connection, "SHOW jit") == "off"
            connection.execute("SET statement_timeout = 0")


def test_a_setting_that_the_server_does_not_know_is_refused(config: dict[str, Any]) -> None:
    parameters = {"statement_timeot": "30s"}
    with pytest.raises(psycopg.OperationalError, match="statement_timeot"):
        get({**config, "sync_settings": parameters, "async_settings": parameters})


def test_functions_of_the_pool_settings_are_called(config: dict[str, Any]) -> None:
    calls: list[str] = []

    def configure(connection: Any) -> None:
        calls.append("configure")

    def check(connection: Any) -> None:
        calls.append("check")

    def reset(connection: Any) -> None:
        calls.append("reset")

    functions = {"configure": configure, "check": check, "reset": reset, "max_size": 1}
    pool = get({**config, "pool_settings": functions, "async_pool_settings": functions})
    with pool:
        pass
    assert calls == ["configure", "check", "reset"]


def test_close_returns_gives_back_instead_of_closing(config: dict[str, Any]) -> None:
    settings = {"close_returns": True, "max_size": 1}
    pool = get({**config, "pool_settings": settings, "async_pool_settings": settings})
    lease = pool.borrow()
    lease.connection.close()
    assert pool.stats()["pool_available"] == pool.stats()["pool_size"] == 1


def test_a_pool_leaves_nothing_to_the_garbage_collector(config: dict[str, Any]) -> None:
    config[f"{POOL_KIND}_settings"] = {"min_size": 3, "max_size": 4}
    manager = PGConnectionManager()

    def use() -> None:
        get_connection: Any = manager.get_database_connection_from_dict
        handle: ConnectionHandle = get_connection(config, POOL_KIND)
        with handle as connection:
            connection.execute("SET work_mem = '1MB'")
        while handle.stats()["pool_size"] < 3:  # made in the background
            sleep(0.01)
        manager.clear_cache()

    use()
    sleep(0.1)
    with no_cycles():
        use()
        sleep(0.1)  # until what was being connected in the background is gone
