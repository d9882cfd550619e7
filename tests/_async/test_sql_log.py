"""The loggers ``pgmonkey.sql`` and ``pgmonkey.pool``: each statement once, whichever way it was executed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgmonkey import AsyncDatabase, AsyncUnitOfWork, PGConnectionManager, telemetry
from pgmonkey._async.waiting import POOL_KIND

from ..configs import prepared


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "pgmonkey.sql")
    return caplog


def records(log: pytest.LogCaptureFixture, name: str = "pgmonkey.sql") -> list[Any]:
    return [record for record in log.records if record.name == name]


def statements(log: pytest.LogCaptureFixture) -> list[str]:
    """Return the statements that were logged since the last call, and forget them."""
    found = [record.statement for record in records(log) if hasattr(record, "statement")]
    log.clear()
    return found


def ends(log: pytest.LogCaptureFixture) -> list[tuple[str, str | None, int]]:
    return [(end.outcome, end.reason, end.statements) for end in records(log) if hasattr(end, "outcome")]


async def test_each_statement_of_a_query_method_is_logged_once(
    config: dict[str, Any], log: pytest.LogCaptureFixture
) -> None:
    database = AsyncDatabase(prepared(config, 2))
    await database.execute("CREATE TABLE t (a int)")
    assert statements(log) == ["CREATE TABLE t (a int)"]
    for _ in range(5):  # the last ones by the fast path
        await database.execute("INSERT INTO t VALUES (%s)", (1,))
        await database.fetch_all("SELECT a FROM t")
        await database.fetch_one("SELECT a FROM t WHERE a = %s", (1,))
        await database.fetch_value("SELECT count(*) FROM t")
    assert [record.rows for record in records(log)][-4:] == [1, 5, 5, 1]
    assert all(record.milliseconds > 0 for record in records(log))
    assert statements(log) == 5 * [
        "INSERT INTO t VALUES (%s)",
        "SELECT a FROM t",
        "SELECT a FROM t WHERE a = %s",
        "SELECT count(*) FROM t",
    ]
    await database.close()


@pytest.mark.parametrize("threshold", [0, 100])
async def test_each_statement_of_a_unit_of_work_is_logged_once(
    threshold: int, config: dict[str, Any], log: pytest.LogCaptureFixture
) -> None:
    database = AsyncDatabase(prepared(config, threshold))
    await database.execute("CREATE TABLE t (a int)")
    statements(log)
    for _ in range(3):
        async with database.unit_of_work():
            await database.execute("INSERT INTO t VALUES (%s)", (1,))
            assert statements(log) == ["INSERT INTO t VALUES (%s)"]  # at once, and not only at the end
            async with database.transaction() as connection:
                cursor = await connection.execute("SELECT a FROM t")
                await cursor.fetchall()
            assert statements(log) == ["SELECT a FROM t"]
            await database.execute_many("INSERT INTO t VALUES (%s)", [(1,), (2,)])
            assert [record.rows for record in records(log)] == [2]
            assert statements(log) == ["INSERT INTO t VALUES (%s)"]
        assert ends(log) == [("commit", None, 3)]
        log.clear()
    await database.close()


async def test_streams_and_copies_are_logged(config: dict[str, Any], log: pytest.LogCaptureFixture) -> None:
    database = AsyncDatabase(config)
    await database.execute("CREATE TABLE t (a int)")
    statements(log)
    async with database.connection() as connection:
        async with connection.cursor() as cursor:
            async with cursor.copy("COPY t FROM STDIN") as copy:
                await copy.write(b"1\n2\n3\n")
            assert [record.rows for record in records(log)] == [3]
            assert statements(log) == ["COPY t FROM STDIN"]
            assert [row async for row in cursor.stream("SELECT a FROM t")] == [(1,), (2,), (3,)]
            assert [record.rows for record in records(log)] == [3]
            assert statements(log) == ["SELECT a FROM t"]
            rows: Any = cursor.stream("SELECT a FROM t")
            async for _ in rows:
                break
            await rows.aclose()
            await cursor.executemany("INSERT INTO t VALUES (%s)", [(1,), (2,)])
    assert statements(log) == ["SELECT a FROM t", "INSERT INTO t VALUES (%s)"]
    assert [row async for row in database.stream("SELECT a FROM t WHERE a = %s", (3,))] == [(3,)]
    assert statements(log) == ["SELECT a FROM t WHERE a = %s"]
    assert await database.execute_many("INSERT INTO t VALUES (%s)", [(1,), (2,)]) == 2
    assert [record.rows for record in records(log) if hasattr(record, "statement")] == [2]
    assert statements(log) == ["INSERT INTO t VALUES (%s)"]
    assert await database.copy_rows("t", [(1,), (2,)]) == 2
    assert statements(log)[-1].startswith("COPY")
    await database.close()


async def test_each_kind_of_cursor_is_logged(config: dict[str, Any], log: pytest.LogCaptureFixture) -> None:
    database = AsyncDatabase(config)
    async with database.connection() as connection:
        kinds: tuple[Any, ...] = (psycopg.AsyncCursor, psycopg.AsyncClientCursor, psycopg.AsyncRawCursor)
        for kind in kinds:
            connection.cursor_factory = kind
            for _ in range(2):
                await connection.execute("SELECT 1 AS a")
            assert statements(log) == 2 * ["SELECT ? AS a"]
        async with connection.cursor("named") as cursor:
            await cursor.execute("SELECT 1 AS a")
            assert await cursor.fetchall() == [(1,)]
    assert statements(log) == ["SELECT ? AS a"]
    await database.close()


async def test_values_are_shown_only_when_asked_for(config: dict[str, Any], log: pytest.LogCaptureFixture) -> None:
    secret = "hunter2"
    ways: list[tuple[Any, Any]] = [
        ("SELECT %s::text", (secret,)),
        (f"SELECT '{secret}'", None),
        (f"SELECT $a${secret}$a$ -- {secret}", None),
        (f"SELECT '{secret}'".encode(), None),
        (sql.SQL("SELECT {}").format(sql.Literal(secret)), None),
    ]
    for shown in (False, True):
        settings = {**config, "connection_settings": {**config["connection_settings"], "log_parameters": shown}}
        database = AsyncDatabase(settings)
        for query, params in ways:
            log.clear()
            await database.fetch_one(query, params)
            (record,) = records(log)
            found = secret in record.getMessage() or secret in str(vars(record))
            # What psycopg's sql.Literal holds is never shown.
            assert found == (shown and not isinstance(query, sql.Composed)), record.getMessage()
        log.clear()
        with pytest.raises(psycopg.Error):
            await database.fetch_one("SELECT %s::int", (secret,))
        (record,) = records(log)
        assert record.error == "InvalidTextRepresentation (22P02)"
        assert (secret in str(vars(record))) == shown
        await database.close()


async def test_a_slow_statement_is_a_warning_with_its_place_and_route(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**config, "connection_settings": {**config["connection_settings"], "slow_statement_threshold": 0.2}}
    database = AsyncDatabase(prepared(settings))
    for _ in range(3):
        await database.fetch_one("SELECT pg_sleep(0.3)")
        unit: AsyncUnitOfWork[Any] = database.begin(label=lambda: "GET /reports")
        await database.fetch_one("SELECT pg_sleep(0.3)")
        await unit.finish()
        alone, in_unit = (record for record in caplog.records if "pg_sleep" in record.getMessage())
        for record in (alone, in_unit):
            assert (record.name, record.levelname) == ("pgmonkey.sql", "WARNING")
            fields: Any = record
            assert Path(__file__).name in fields.place
            assert f", at {fields.place}" in record.getMessage()
            assert "test_a_slow_statement_is_a_warning" in fields.place
            assert fields.milliseconds >= 200
            assert "SELECT pg_sleep(?)" in record.getMessage()
        assert ("GET /reports" in in_unit.getMessage(), vars(in_unit)["route"]) == (True, "GET /reports")
        caplog.clear()
    await database.close()


class RefusedError(Exception):
    pass


async def test_commit_and_rollback_are_logged_with_the_reason(
    config: dict[str, Any], log: pytest.LogCaptureFixture
) -> None:
    database = AsyncDatabase(config)
    await database.execute("CREATE TABLE t (a int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)")
    log.clear()

    async def end(block: Callable[[], Awaitable[object]]) -> tuple[str, str | None, int]:
        log.clear()
        with suppress(RefusedError, psycopg.Error):
            await block()
        (found,) = ends(log)
        return found

    async def commits() -> None:
        async with database.transaction():
            await database.execute("INSERT INTO t VALUES (1)")

    async def raises() -> None:
        async with database.transaction():
            await database.execute("INSERT INTO t VALUES (2)")
            raise RefusedError

    async def fails() -> None:
        async with database.transaction() as connection:
            await connection.execute("SELECT 1 / 0")

    async def fails_at_commit() -> None:
        async with database.transaction():
            await database.execute("INSERT INTO t VALUES (1)")

    async def commits_by_hand() -> None:
        async with database.connection() as connection:
            await connection.execute("INSERT INTO t VALUES (3)")
            await connection.commit()

    async def rolls_back_by_hand() -> None:
        async with database.connection() as connection:
            await connection.execute("INSERT INTO t VALUES (4)")
            await connection.rollback()

    async def commits_in_psycopgs_block() -> None:
        manager = PGConnectionManager()
        opened: Any = manager.get_database_connection_from_dict(config, POOL_KIND)
        handle = await opened
        async with handle as connection:
            await connection.set_autocommit(True)
            async with connection.transaction():
                await connection.execute("INSERT INTO t VALUES (5)")
        await manager.clear_cache_async()

    assert await end(commits) == ("commit", None, 1)
    assert await end(raises) == ("rollback", "RefusedError", 1)
    assert await end(fails) == ("rollback", "DivisionByZero (22012)", 1)
    assert await end(fails_at_commit) == ("rollback", "UniqueViolation (23505)", 1)
    assert await end(commits_by_hand) == ("commit", None, 1)
    assert await end(rolls_back_by_hand) == ("rollback", None, 1)
    assert await end(commits_in_psycopgs_block) == ("commit", None, 1)
    await database.close()


async def test_borrow_and_give_back_are_logged(config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "pgmonkey.pool")
    database = AsyncDatabase(prepared(config))
    for _ in range(3):
        await database.fetch_one("SELECT 1")
        async with database.transaction():
            await database.fetch_one("SELECT 1")
        found = [record.getMessage() for record in records(caplog, "pgmonkey.pool")]
        assert ["lent a connection" in message for message in found] == [True, False] * 2
        assert ["got a connection back" in message for message in found] == [False, True] * 2
        caplog.clear()
        async with database.connection():
            (record,) = records(caplog, "pgmonkey.pool")  # at once
            assert "lent a connection" in record.getMessage()
        caplog.clear()
    await database.close()


async def test_a_log_handler_may_use_the_unit_of_work_whose_statement_it_is_told_of(config: dict[str, Any]) -> None:
    """It runs when the statement's turn is over: under none of the locks."""
    database = AsyncDatabase(prepared(config))
    found: list[bool] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            unit = database.current_unit()
            lease = None if unit is None else unit._lease
            pooled = None if lease is None else lease.pooled
            found.append(unit is not None and unit.busy)
            found.append(pooled is not None and pooled.connection.lock.locked())

    logger, handler = logging.getLogger("pgmonkey.sql"), Handler()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        for _ in range(3):
            async with database.transaction() as connection:
                await database.fetch_one("SELECT 1")
                await connection.execute("SELECT 1")
                await database.execute_many("SELECT %s", [(1,)])
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert found == [False] * 24
    await database.close()


async def test_what_a_listener_raises_does_not_reach_the_program(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    class FailingListener(telemetry.Listener):
        def executed(self, event: telemetry.Execution) -> None:
            raise ZeroDivisionError

    database = AsyncDatabase(prepared(config))
    listener = FailingListener()
    telemetry.add(listener)
    try:
        for _ in range(3):
            assert await database.fetch_value("SELECT 1") == 1
    finally:
        telemetry.remove(listener)
    assert [record.getMessage() for record in caplog.records] == [
        "FailingListener failed (logged only once): ZeroDivisionError()"
    ]
    await database.close()
