"""The handle that ``get_database_connection`` returns: its blocks, and borrowing and giving back."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InFailedSqlTransaction
from psycopg.rows import dict_row

from pgmonkey import (
    AsyncConnectionHandle,
    AsyncDatabase,
    GivenBackError,
    PGConnectionManager,
    PoolClosedError,
    PoolTimeoutError,
    ServerUnavailableError,
)
from pgmonkey._async.waiting import POOL_KIND, sleep
from pgmonkey._config.schema import Kind

from ..configs import prepared
from ..garbage import no_cycles

Backends = Callable[[], list[tuple[int, str]]]
Observer = psycopg.Connection[Any]

SINGLE: Any = "normal" if POOL_KIND == "pool" else "async"


async def get(config: dict[str, Any], kind: Kind = POOL_KIND) -> AsyncConnectionHandle:
    get_connection: Any = PGConnectionManager().get_database_connection_from_dict
    handle: AsyncConnectionHandle = await get_connection(config, kind)
    return handle


async def value(connection: Any, query: str) -> Any:
    cursor = await connection.execute(query)
    row = await cursor.fetchone()
    return row[0]


@pytest.fixture
def table(observer: Observer) -> str:
    observer.execute("CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    return "t"


def rows(observer: Observer) -> list[int]:
    return [row[0] for row in observer.execute("SELECT a FROM t ORDER BY a").fetchall()]


@pytest.mark.parametrize("kind", [POOL_KIND, SINGLE])
async def test_a_block_commits_and_gives_back(
    kind: Kind, config: dict[str, Any], table: str, observer: Observer
) -> None:
    handle = await get(config, kind)
    async with handle as connection:
        assert isinstance(connection, psycopg.AsyncConnection)
        await connection.execute("INSERT INTO t VALUES (1)")
        assert rows(observer) == []
    assert rows(observer) == [1]
    assert handle.stats()["pool_available"] == handle.stats()["pool_size"] == 1


@pytest.mark.parametrize("kind", [POOL_KIND, SINGLE])
async def test_a_block_that_raises_rolls_back_and_gives_back(
    kind: Kind, config: dict[str, Any], table: str, observer: Observer
) -> None:
    handle = await get(config, kind)
    with pytest.raises(ZeroDivisionError):
        async with handle as connection:
            await connection.execute("INSERT INTO t VALUES (1)")
            raise ZeroDivisionError
    assert rows(observer) == []
    assert handle.stats()["pool_available"] == 1


async def test_nested_blocks_have_connections_of_their_own(
    config: dict[str, Any], table: str, observer: Observer
) -> None:
    pool = await get(config)
    async with pool as one:
        await one.execute("INSERT INTO t VALUES (1)")
        async with pool as two:
            await two.execute("INSERT INTO t VALUES (2)")
            async with pool as three:
                await three.execute("INSERT INTO t VALUES (3)")
                assert len({connection.info.backend_pid for connection in (one, two, three)}) == 3
            assert rows(observer) == [3]
        assert rows(observer) == [2, 3]
    assert rows(observer) == [1, 2, 3]
    stats = pool.stats()
    assert stats["pool_available"] == stats["pool_size"] == 3


async def test_nested_blocks_of_a_single_connection_are_savepoints(
    config: dict[str, Any], table: str, observer: Observer
) -> None:
    handle = await get(config, SINGLE)
    async with handle as outer:
        await outer.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(ZeroDivisionError):
            async with handle as inner:
                assert inner is outer
                await inner.execute("INSERT INTO t VALUES (2)")
                raise ZeroDivisionError
        async with handle as inner:
            await inner.execute("INSERT INTO t VALUES (3)")
        assert rows(observer) == []
    assert rows(observer) == [1, 3]


async def test_a_single_connection_stays_open_between_blocks_and_reconnects_when_broken(
    config: dict[str, Any], observer: Observer
) -> None:
    handle = await get(config, SINGLE)
    pids = []
    for _ in range(3):
        async with handle as connection:
            pids.append(connection.info.backend_pid)
    assert len(set(pids)) == 1
    observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pids[0]])
    async with handle as connection:
        assert await value(connection, "SELECT pg_backend_pid()") != pids[0]


async def test_a_failing_commit_raises_and_gives_back(config: dict[str, Any], table: str, observer: Observer) -> None:
    pool = await get(config)
    with pytest.raises(psycopg.errors.UniqueViolation):
        async with pool as connection:
            await connection.execute("INSERT INTO t VALUES (1), (1)")
    assert rows(observer) == []
    assert pool.stats()["pool_available"] == 1


async def test_an_ignored_error_is_no_commit(config: dict[str, Any], table: str, observer: Observer) -> None:
    pool = await get(config)
    with pytest.raises(InFailedSqlTransaction, match="nothing was committed"):
        async with pool as connection:
            await connection.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(psycopg.errors.UndefinedTable):
                await connection.execute("SELECT * FROM missing")
    assert rows(observer) == []
    assert pool.stats()["pool_available"] == 1


async def test_a_lost_connection_is_no_commit(config: dict[str, Any], table: str, observer: Observer) -> None:
    pool = await get(config)
    with pytest.raises(psycopg.OperationalError):
        async with pool as connection:
            await connection.execute("INSERT INTO t VALUES (1)")
            observer.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
    assert rows(observer) == []
    assert pool._pool.lent == []
    assert pool.stats()["returns_bad"] == 1
    async with pool as connection:
        assert await value(connection, "SELECT 1") == 1


async def test_use_after_giving_back_is_an_error(config: dict[str, Any]) -> None:
    pool = await get(config)
    async with pool as connection:
        cursor = connection.cursor()
        await cursor.execute("SELECT generate_series(1, 3)")
        transaction = connection.transaction()
    for use in (connection.commit, connection.rollback, lambda: connection.execute("SELECT 1")):
        with pytest.raises(GivenBackError):
            await use()
    with pytest.raises(GivenBackError):
        await cursor.execute("SELECT 1")
    with pytest.raises(GivenBackError):
        async with transaction:
            pass
    with pytest.raises(GivenBackError):
        connection.cursor()
    connection.cancel()  # psycopg's does nothing when the connection is closed, and so does not reach another's query
    assert connection.closed
    assert "GIVEN BACK" in repr(connection)
    assert await cursor.fetchone() == (1,), "what was fetched is the borrower's"


async def test_what_a_borrower_leaves_does_not_reach_the_next(config: dict[str, Any], observer: Observer) -> None:
    role = sql.Identifier(f"other_{os.getpid()}")
    observer.execute(sql.SQL("CREATE ROLE {}").format(role))
    try:
        pool = await get(config)
        async with pool as connection:
            pid = connection.info.backend_pid
            connection.row_factory = dict_row
            connection.prepare_threshold = 0
            connection.add_notice_handler(print)
            await connection.execute("SET search_path TO pg_catalog")
            await connection.execute("SELECT set_config('pgm.who', 'me', false)")
            await connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
            await connection.execute("SELECT pg_advisory_lock(7)")
            await connection.execute("CREATE TEMPORARY TABLE mine (a int)")
            await connection.execute("LISTEN gossip")
            await connection.execute("DECLARE held CURSOR WITH HOLD FOR SELECT 1")
            await connection.execute(sql.SQL("SET ROLE {}").format(role))
        async with pool as connection:
            assert connection.info.backend_pid == pid
            assert await value(connection, "SHOW search_path") == '"$user", public'
            assert not await value(connection, "SELECT current_setting('pgm.who', true)")
            assert await value(connection, "SHOW default_transaction_read_only") == "off"
            assert (
                await value(
                    connection, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
                )
                == 0
            )
            assert await value(connection, "SELECT to_regclass('pg_temp.mine') IS NULL")
            assert await value(connection, "SELECT count(*) FROM pg_listening_channels()") == 0
            assert await value(connection, "SELECT count(*) FROM pg_cursors WHERE name = 'held'") == 0
            assert await value(connection, "SELECT current_user = session_user")
            assert connection.prepare_threshold == 5
            assert connection._notice_handlers == []
    finally:
        observer.execute(sql.SQL("DROP ROLE {}").format(role))


async def test_notifications_do_not_reach_the_next_borrower(config: dict[str, Any], observer: Observer) -> None:
    database: AsyncDatabase = AsyncDatabase(prepared(config))
    heard: list[psycopg.Notify] = []
    async with database.connection() as connection:
        await connection.execute("LISTEN gossip")
        await connection.commit()
        connection.add_notify_handler(heard.append)
        await connection.execute("NOTIFY gossip, 'at once'")
        await connection.commit()
        assert [one.payload for one in heard] == ["at once"]
    for _ in range(3):
        async with database.connection() as connection:
            await connection.set_autocommit(True)
            await connection.execute("LISTEN gossip")
            observer.execute("NOTIFY gossip, 'unread'")
            await sleep(0.1)
        async with database.connection() as connection:
            await connection.execute("SELECT 1")
            assert [one async for one in connection.notifies(timeout=0.1)] == []
    await database.close()


@pytest.mark.parametrize("text", ["DEALLOCATE ALL", "DO $$BEGIN EXECUTE 'deallocate all'; END$$", "DISCARD ALL"])
async def test_what_a_borrower_deallocates_is_prepared_anew(text: Any, config: dict[str, Any]) -> None:
    database: AsyncDatabase = AsyncDatabase(prepared(config))
    for _ in range(3):
        assert await database.fetch_value("SELECT %s::int", [1]) == 1
    async with database.connection() as connection:
        await connection.set_autocommit(True)
        await connection.execute(text)
    async with database.transaction():
        await database.execute("SELECT 2")
        assert await database.fetch_value("SELECT %s::int", [1]) == 1
    await database.close()


async def test_idle_connections_that_died_are_replaced_unnoticed(config: dict[str, Any], observer: Observer) -> None:
    pool = await get(config)
    async with pool as one, pool as two, pool as three:
        pids = [connection.info.backend_pid for connection in (one, two, three)]
    for pid in pids:
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    async with pool as connection:
        assert await value(connection, "SELECT 1") == 1
    assert pool.stats()["pool_size"] == 1


async def test_notifications_do_not_make_an_idle_connection_suspect(config: dict[str, Any], observer: Observer) -> None:
    pool = await get({**config, "connection_settings": {**config["connection_settings"], "autocommit": True}})
    lease = await pool.borrow()
    await lease.connection.execute("LISTEN gossip")
    pid = lease.connection.info.backend_pid
    await lease.finish(clean=False)
    observer.execute("NOTIFY gossip, 'psst'")
    async with pool as connection:
        assert connection.info.backend_pid == pid


async def test_an_exhausted_pool_names_who_holds_its_connections(config: dict[str, Any]) -> None:
    pool = await get({**config, "pool_settings": {"max_size": 1}, "async_pool_settings": {"max_size": 1}})
    async with pool:
        with pytest.raises(PoolTimeoutError) as caught:
            await pool.borrow(timeout=0.05)
    message = str(caught.value)
    assert "1 of at most 1 in use, 0 waiting" in message
    assert Path(__file__).name in message
    assert "test_an_exhausted_pool_names_who_holds_its_connections" in message
    async with pool as connection:
        assert await value(connection, "SELECT 1") == 1


async def test_the_first_error_is_in_the_servers_words(config: dict[str, Any]) -> None:
    settings = {**config["connection_settings"], "password": "wrong"}
    with pytest.raises(ServerUnavailableError, match="password authentication failed"):
        await get({**config, "connection_settings": settings})
    settings = {**config["connection_settings"], "dbname": "missing_db"}
    with pytest.raises(ServerUnavailableError, match='"missing_db" does not exist'):
        await get({**config, "connection_settings": settings})


async def test_a_dropped_lease_is_taken_back(config: dict[str, Any], table: str, observer: Observer) -> None:
    pool = await get(config)
    lease = await pool.borrow()
    await lease.connection.execute("INSERT INTO t VALUES (1)")
    assert pool.stats()["pool_size"] == 1
    del lease
    gc.collect()
    assert pool.stats()["pool_size"] == 0
    async with pool as connection:
        assert await value(connection, "SELECT count(*) FROM t") == 0


async def test_psycopgs_own_block_does_not_close_what_is_the_pools(
    config: dict[str, Any], table: str, observer: Observer
) -> None:
    pool = await get(config)
    async with pool as connection:
        async with connection:
            await connection.execute("INSERT INTO t VALUES (1)")
        assert rows(observer) == [1]
        assert await value(connection, "SELECT 1") == 1


async def test_a_lease_is_given_back_once(config: dict[str, Any]) -> None:
    pool = await get(config)
    lease = await pool.borrow()
    await lease.finish()
    await lease.finish()
    lease.abandon()
    assert pool.stats()["pool_available"] == pool.stats()["pool_size"] == 1


async def test_exit_stacks_and_wrapping_classes_exit_what_they_entered(
    config: dict[str, Any], table: str, observer: Observer
) -> None:
    pool = await get(config)

    class Wrapper:
        async def __aenter__(self) -> Any:
            self.connection = await pool.__aenter__()
            return self.connection

        async def __aexit__(self, *error: Any) -> None:
            await pool.__aexit__(*error)

    async with pool as outer:
        async with AsyncExitStack() as stack:
            await (await stack.enter_async_context(pool)).execute("INSERT INTO t VALUES (1)")
            async with Wrapper() as wrapped:
                await wrapped.execute("INSERT INTO t VALUES (2)")
            assert rows(observer) == [2]
        assert rows(observer) == [1, 2]
        await outer.execute("INSERT INTO t VALUES (3)")
    assert rows(observer) == [1, 2, 3]


async def test_an_exit_that_fits_several_blocks_is_an_error(config: dict[str, Any]) -> None:
    pool = await get(config)

    async def enter() -> Any:
        return await pool.__aenter__()

    async def leave() -> None:
        await pool.__aexit__(None, None, None)

    await enter()
    await leave()  # there is only one it could be
    await enter()
    await enter()
    with pytest.raises(RuntimeError, match=r"use 'with pool.connection\(\) as conn'"):
        await leave()


async def test_a_closed_pool_says_so_and_lets_work_finish(
    config: dict[str, Any], table: str, observer: Observer, backends: Backends
) -> None:
    pool = await get(config)
    async with pool as connection:
        pool.close()
        await connection.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(PoolClosedError, match=r"get_database_connection\(\)"):
            await pool.borrow()
    assert rows(observer) == [1]
    assert pool.stats()["pool_size"] == 0


async def test_session_settings_cost_no_round_trip_and_survive_cleaning(config: dict[str, Any]) -> None:
    parameters = {
        "search_path": ["a b", "c\\d", "public"],
        "statement_timeout": "30s",
        "application_name": "it's -c work_mem=64kB; SELECT 1",
        "jit": False,
    }
    parameters["search_path"] = '"a b", "c\\d", public'
    pool = await get({**config, "sync_settings": parameters, "async_settings": parameters})
    for _ in range(2):
        async with pool as connection:
            assert await value(connection, "SHOW search_path") == '"a b", "c\\d", public'
            assert await value(connection, "SHOW statement_timeout") == "30s"
            assert await value(connection, "SHOW application_name") == "it's -c work_mem=64kB; SELECT 1"
            assert await value(connection, "SHOW jit") == "off"
            await connection.execute("SET statement_timeout = 0")


async def test_a_setting_that_the_server_does_not_know_is_refused(config: dict[str, Any]) -> None:
    parameters = {"statement_timeot": "30s"}
    with pytest.raises(psycopg.OperationalError, match="statement_timeot"):
        await get({**config, "sync_settings": parameters, "async_settings": parameters})


async def test_functions_of_the_pool_settings_are_called(config: dict[str, Any]) -> None:
    calls: list[str] = []

    async def configure(connection: Any) -> None:
        calls.append("configure")

    async def check(connection: Any) -> None:
        calls.append("check")

    async def reset(connection: Any) -> None:
        calls.append("reset")

    functions = {"configure": configure, "check": check, "reset": reset, "max_size": 1}
    pool = await get({**config, "pool_settings": functions, "async_pool_settings": functions})
    async with pool:
        pass
    assert calls == ["configure", "check", "reset"]


async def test_close_returns_gives_back_instead_of_closing(config: dict[str, Any]) -> None:
    settings = {"close_returns": True, "max_size": 1}
    pool = await get({**config, "pool_settings": settings, "async_pool_settings": settings})
    lease = await pool.borrow()
    await lease.connection.close()
    assert pool.stats()["pool_available"] == pool.stats()["pool_size"] == 1


async def test_a_pool_leaves_nothing_to_the_garbage_collector(config: dict[str, Any]) -> None:
    config[f"{POOL_KIND}_settings"] = {"min_size": 3, "max_size": 4}
    manager = PGConnectionManager()

    async def use() -> None:
        get_connection: Any = manager.get_database_connection_from_dict
        handle: AsyncConnectionHandle = await get_connection(config, POOL_KIND)
        async with handle as connection:
            await connection.execute("SET work_mem = '1MB'")
        while handle.stats()["pool_size"] < 3:  # made in the background
            await sleep(0.01)
        await manager.clear_cache_async()

    await use()
    await sleep(0.1)
    with no_cycles():
        await use()
        await sleep(0.1)  # until what was being connected in the background is gone
