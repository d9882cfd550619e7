"""Timeouts, lost connections and statements that are outdated; tests/faults does the same on a larger scale."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgmonkey import AsyncDatabase, CommandTimeoutError, CommitUnknownError
from pgmonkey._async.waiting import sleep

from ..configs import pools
from ..faults.proxy import FaultProxy

Backends = Callable[[], list[tuple[int, str]]]
Observer = psycopg.Connection[Any]


async def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        await sleep(0.01)


def at_work(observer: Observer) -> int:
    row = observer.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND state = 'active' AND query LIKE '%pg_sleep%'"
    ).fetchone()
    assert row is not None
    return int(row[0])


async def test_a_command_timeout_ends_the_statement_here_and_there(config: dict[str, Any], observer: Observer) -> None:
    config["connection_settings"]["command_timeout"] = 0.3
    database = AsyncDatabase(pools(config))
    with pytest.raises(CommandTimeoutError, match=r"0\.3 s \(command_timeout\)"):
        await database.fetch_value("SELECT pg_sleep(30)")
    await until(lambda: at_work(observer) == 0)
    assert await database.fetch_value("SELECT 1") == 1
    with pytest.raises(psycopg.OperationalError, match="the connection was lost"):
        async with database.connection() as connection:
            with pytest.raises(CommandTimeoutError):
                await connection.execute("SELECT pg_sleep(30)")
            with pytest.raises(psycopg.OperationalError):
                await connection.execute("SELECT 1")
    await until(lambda: database.stats()["pool_size"] == database.stats()["pool_available"])
    await database.close()


async def test_waiting_for_notifications_has_no_command_timeout(config: dict[str, Any], observer: Observer) -> None:
    config["connection_settings"]["command_timeout"] = 0.2
    database = AsyncDatabase(pools(config))
    async with database.connection() as connection:
        await connection.execute("LISTEN news")
        await connection.commit()
        threading.Timer(0.6, lambda: observer.execute("NOTIFY news, 'late'")).start()
        async for notification in connection.notifies(timeout=3, stop_after=1):
            assert notification.payload == "late"
            break
        else:
            raise AssertionError("nothing came")
    await database.close()


async def test_opening_is_tried_again_until_open_timeout(
    config: dict[str, Any], observer: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    late = f"late_{observer.info.dbname}"
    config["connection_settings"]["dbname"] = late
    with pytest.raises(psycopg.OperationalError, match=late):
        await AsyncDatabase(pools(config)).connect()
    started = time.monotonic()
    with pytest.raises(psycopg.OperationalError, match=late):
        await AsyncDatabase(pools(config, open_timeout=0.5)).connect()
    assert 0.1 < time.monotonic() - started < 2
    threading.Timer(0.4, lambda: observer.execute(f"CREATE DATABASE {late}".encode())).start()
    database = AsyncDatabase(pools(config, open_timeout=20))
    try:
        await database.connect()
        assert await database.fetch_value("SELECT current_database()") == late
    finally:
        await database.close()
        await sleep(0.1)
        observer.execute(f"DROP DATABASE {late} WITH (FORCE)".encode())
    assert "trying again" in caplog.text


async def test_a_shutdown_of_the_server_replaces_all_connections(config: dict[str, Any]) -> None:
    database = AsyncDatabase(pools(config, min_size=2))
    async with database.connection() as first, database.connection() as second:
        pids = {first.info.backend_pid, second.info.backend_pid}
    terminating = "SELECT pg_terminate_backend(CASE WHEN %s THEN pg_backend_pid() ELSE 0 END), pg_sleep(%s)"
    for _ in range(8):  # an old psycopg loses the server's words, the fast path does not
        await database.execute(terminating, [False, 0])
    with pytest.raises(psycopg.errors.AdminShutdown):  # which the server says with FATAL, as at its end
        await database.execute(terminating, [True, 5])
    async with database.connection() as first, database.connection() as second:
        assert not pids & {first.info.backend_pid, second.info.backend_pid}
    await database.close()


async def test_a_lost_connection_is_replaced_without_a_borrower(config: dict[str, Any], backends: Backends) -> None:
    database = AsyncDatabase(pools(config, min_size=2))
    await database.fetch_value("SELECT 1")
    await until(lambda: database.stats()["pool_available"] == 2)
    async with database.connection() as connection:
        await connection.close()
    await until(lambda: database.stats()["pool_available"] == 2 == len(backends()))
    await database.close()


async def test_a_prepared_statement_of_sql_does_not_reach_the_next(config: dict[str, Any]) -> None:
    database = AsyncDatabase(pools(config, max_size=1))
    count = "SELECT count(*) FROM pg_prepared_statements WHERE from_sql"
    for _ in range(8):
        await database.fetch_value("SELECT 1")
    prepared = await database.fetch_value("SELECT count(*) FROM pg_prepared_statements")
    assert prepared > 0
    async with database.connection() as connection:
        await connection.execute("PREPARE left_over AS SELECT 1")
    assert await database.fetch_value(count) == 0
    await database.execute("PREPARE left_over AS SELECT 1")
    assert await database.fetch_value(count) == 0
    assert await database.fetch_value("SELECT 1") == 1
    await database.close()


async def test_cleaning_can_be_switched_off(config: dict[str, Any]) -> None:
    database = AsyncDatabase(pools(config, max_size=1, clean_on_return=False))
    async with database.connection() as connection:
        await connection.execute("SET work_mem = '123kB'")
    assert await database.fetch_value("SHOW work_mem") == "123kB"
    await database.close()


async def test_a_query_survives_a_changed_table(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t AS SELECT 1 AS a")
    database = AsyncDatabase(pools(config, max_size=1))
    for change in ("ALTER TABLE t ADD b int", "ALTER TABLE t ALTER b TYPE text", "ALTER TABLE t DROP b"):
        for _ in range(8):
            await database.fetch_all("SELECT * FROM t")
        observer.execute(change)
        assert len(await database.fetch_all("SELECT * FROM t")) == 1
        for _ in range(8):
            await database.fetch_all("SELECT * FROM t")
        observer.execute("ALTER TABLE t ADD c int; ALTER TABLE t DROP c; ALTER TABLE t ADD d int")
        async with database.transaction():
            assert len(await database.fetch_all("SELECT * FROM t")) == 1
        observer.execute("ALTER TABLE t DROP d")
    await database.close()


async def test_a_changed_table_in_the_middle_of_a_transaction_is_an_error(
    config: dict[str, Any], observer: Observer
) -> None:
    observer.execute("CREATE TABLE t AS SELECT 1 AS a")
    database = AsyncDatabase(pools(config, max_size=1))
    for _ in range(8):
        await database.fetch_all("SELECT * FROM t")
    observer.execute("ALTER TABLE t ADD b int")
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        async with database.transaction():
            await database.execute("INSERT INTO t (a) VALUES (2)")
            await database.fetch_all("SELECT * FROM t")
    assert len(await database.fetch_all("SELECT * FROM t")) == 1
    await database.close()


async def test_a_prepared_statement_that_is_gone_is_prepared_again(config: dict[str, Any]) -> None:
    database = AsyncDatabase(pools(config, max_size=1))
    for _ in range(8):
        await database.fetch_value("SELECT 1")
    async with database.connection() as connection:
        connection.pgconn.exec_(b"DEALLOCATE ALL")
    assert await database.fetch_value("SELECT 1") == 1
    await database.close()


async def test_a_connection_that_is_left_in_pipeline_mode_is_not_lent_again(config: dict[str, Any]) -> None:
    database = AsyncDatabase(pools(config, max_size=1))
    lease = await database.borrow()
    lease.connection.pgconn.enter_pipeline_mode()
    await lease.finish()
    assert await database.fetch_value("SELECT 1") == 1
    await database.close()


# None; what is no message of the protocol; that the server is ready; and what another statement has done.
ANSWERS = [b"", b"HTTP/1.1 502 Bad Gateway\r\n", b"Z\0\0\0\5I", b"C\0\0\0\rSELECT 1\0Z\0\0\0\5I"]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("how", ["transaction", "commit", "psycopg", "retry"])
async def test_a_commit_whose_answer_is_lost_has_an_error_of_its_own(
    how: str, answer: bytes, config: dict[str, Any], observer: Observer
) -> None:
    observer.execute("CREATE TABLE t (a int)")
    connect = config["connection_settings"]
    with FaultProxy(connect["host"], int(connect["port"])) as proxy:
        through = {**config, "connection_settings": {**connect, "host": "127.0.0.1", "port": proxy.port}}
        database = AsyncDatabase(pools(through, max_size=1))

        async def insert(connection: Any) -> None:
            await connection.execute("INSERT INTO t VALUES (1)")
            proxy.cut_after, proxy.garbage = int(not answer), answer

        async def work() -> None:
            if how == "retry":
                await database.retry(lambda: insert(database))
            elif how == "transaction":
                async with database.transaction() as connection:
                    await insert(connection)
            else:
                async with database.connection() as connection:
                    if how == "commit":
                        await insert(connection)
                        await connection.commit()
                    else:
                        async with connection.transaction():
                            await insert(connection)

        with pytest.raises(CommitUnknownError, match="may have been committed") as caught:
            await work()
        assert isinstance(caught.value, psycopg.errors.TransactionResolutionUnknown)
        assert caught.value.sqlstate == "08007"
        assert isinstance(caught.value.__cause__, psycopg.Error)
        proxy.cut_after, proxy.garbage = 0, b""
        assert await database.fetch_value("SELECT count(*) FROM t") == 1, "it was committed, once"
        await database.close()


async def test_a_connection_that_is_lost_before_commit_is_not_an_unknown_commit(
    config: dict[str, Any], observer: Observer
) -> None:
    database = AsyncDatabase(config)
    with pytest.raises(psycopg.OperationalError) as caught:
        async with database.transaction() as connection:
            observer.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
            await connection.execute("SELECT 1")
    assert not isinstance(caught.value, CommitUnknownError)
    await database.close()
