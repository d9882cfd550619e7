"""Client-side cursors, `commit` and autocommit of lent connections: as psycopg's, in fewer round trips."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import AsyncClientCursor, AsyncRawCursor, pq
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from pgmonkey import AsyncDatabase
from pgmonkey._async import cursor as cursors
from pgmonkey._async import fastpath as fast

from ..configs import prepared, proxied
from ..faults.proxy import FaultProxy
from .concurrency import run_to_end
from .test_fast_path import Hits, Observer


@pytest.fixture
def fast_path_hits(monkeypatch: pytest.MonkeyPatch) -> Hits:
    """A function that returns how many statements took the fast path so far."""
    taken = 0
    usual = fast.execute_text

    async def counted(*arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        return await usual(*arguments)

    monkeypatch.setattr(cursors, "execute_text", counted)
    return lambda: taken


def with_client_cursors(config: dict[str, Any]) -> dict[str, Any]:
    through = prepared(config)
    for kind in ("pool_settings", "async_pool_settings"):
        through[kind]["kwargs"] = {"cursor_factory": AsyncClientCursor}
    return through


CASES: list[tuple[str, Any]] = [
    ("SELECT %s, %s::text, 'a;b' || %s", (1, "x;y", "z")),
    ("SELECT %s AS a, %s AS b, %s AS c", (Decimal("1.50"), dt.datetime(2026, 1, 2, 3, 4), [1, 2])),
    ("SELECT %(a)s + %(a)s", {"a": 2}),
    ("SELECT 5 %% 3", ()),
    ("SELECT 5 % 3", None),
    ("VALUES (1, NULL), (2, 'b')", None),
    ("SELECT 1 / %s", (0,)),
    ("SELECT nothing FROM nowhere", None),
    ("SELECT %s", ()),
    ("SELECT 1; SELECT 2", None),
    ("INSERT INTO t VALUES (%s) RETURNING a", (1,)),
    ("INSERT INTO t VALUES (%s)", ("no number",)),
    ("UPDATE t SET a = %s WHERE false", (2,)),
    ("SELECT a FROM t ORDER BY a", None),
    ("", None),
]


async def seen(connection: Any, query: str, params: Any) -> Any:
    """Return all that a program can see of what *connection* makes of *query*."""
    cursor = await connection.execute(query, params)
    described = None if cursor.description is None else [(c.name, c.type_code) for c in cursor.description]
    rows = None if described is None else await cursor.fetchall()
    return rows, described, cursor.rowcount, cursor.statusmessage, cursor._query.query, cursor.nextset()


def told(result: Any) -> Any:
    if isinstance(result, psycopg.Error):
        return type(result), str(result), result.sqlstate, result.diag.statement_position
    return repr(result)


@pytest.mark.parametrize("autocommit", [True, False])
async def test_results_and_errors_are_psycopgs(
    autocommit: bool, config: dict[str, Any], observer: Observer, fast_path_hits: Hits
) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = AsyncDatabase(with_client_cursors(config))
    arguments: Any = {**config["connection_settings"], "cursor_factory": AsyncClientCursor, "autocommit": autocommit}
    peer = await psycopg.AsyncConnection.connect(**arguments)
    async with database.connection() as connection:
        await connection.set_autocommit(autocommit)
        assert type(connection.cursor()).__name__ == "AsyncClientCursor"
        assert connection.cursor_factory is AsyncClientCursor
        for case in CASES:
            mine = await run_to_end(partial(seen, connection, *case))
            observer.execute("TRUNCATE t") if autocommit else await connection.rollback()
            theirs = await run_to_end(partial(seen, peer, *case))
            observer.execute("TRUNCATE t") if autocommit else await peer.rollback()
            assert told(mine) == told(theirs), case
            assert connection.pgconn.pipeline_status == pq.PipelineStatus.OFF
    await peer.close()
    assert fast_path_hits() == len(CASES) - 3  # not what is two, or nothing, or no parameters for it
    await database.close()


async def test_round_trips(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    connect = config["connection_settings"]
    with FaultProxy(connect["host"], int(connect["port"])) as proxy:
        settings = proxied(with_client_cursors(config), proxy)
        settings["pool_settings"] = with_client_cursors(config)["pool_settings"]
        settings["async_pool_settings"] = with_client_cursors(config)["async_pool_settings"]
        database = AsyncDatabase(settings)
        async with database.connection() as connection:
            await connection.execute("SELECT 1")
            await connection.commit()
            before = proxy.round_trips
            await connection.execute("INSERT INTO t VALUES (%s)", [1])
            assert connection.info.transaction_status == TransactionStatus.INTRANS
            assert proxy.round_trips - before == 1
            await connection.execute("INSERT INTO t VALUES (%s)", [2])
            await connection.commit()
            assert proxy.round_trips - before == 3
            await connection.commit()
            await connection.set_autocommit(True)
            assert proxy.round_trips - before == 3
            await connection.execute("INSERT INTO t VALUES (%s)", [3])
            assert observer.execute("SELECT count(*) FROM t").fetchone() == (3,)
            await connection.set_autocommit(False)
            await connection.execute("INSERT INTO t VALUES (%s)", [4])
            with pytest.raises(psycopg.ProgrammingError):
                await connection.set_autocommit(True)
            await connection.rollback()
        assert observer.execute("SELECT count(*) FROM t").fetchone() == (3,)
        await database.close()


async def test_commit_does_what_psycopgs_does(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    database = AsyncDatabase(prepared(config))
    async with database.connection() as connection:
        await connection.execute("INSERT INTO t VALUES (1), (1)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            await connection.commit()
        assert connection.info.transaction_status == TransactionStatus.IDLE
        async with connection.transaction():
            with pytest.raises(psycopg.ProgrammingError, match="forbidden"):
                await connection.commit()
        await connection.execute("INSERT INTO t VALUES (2)")
        await connection.commit()
        await connection.execute("INSERT INTO t VALUES (3)")
        async with connection.pipeline():
            await connection.commit()
        await connection.tpc_begin("pgmonkey")
        with pytest.raises(psycopg.ProgrammingError):
            await connection.commit()
        await connection.tpc_rollback()
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.execute("SELECT 1 / 0")
        await connection.commit()  # which rolls back, as psycopg's does
        await connection.close()
        with pytest.raises(psycopg.OperationalError):
            await connection.commit()
    assert observer.execute("SELECT a FROM t ORDER BY a").fetchall() == [(2,), (3,)]
    await database.close()


async def test_cursors_of_other_classes(config: dict[str, Any], observer: Observer, fast_path_hits: Hits) -> None:
    class Mine(AsyncClientCursor[Any]):
        """Somebody's own."""

        async def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
            return await super().execute(b"SELECT 42", *arguments, **options)

    class Plain(AsyncClientCursor[Any]):
        """Somebody's own, which executes as psycopg's do."""

    database = AsyncDatabase(prepared(config), row_factory=dict_row)
    async with database.connection() as lent:
        connection: Any = lent
        connection.cursor_factory = Mine
        row: Any = await (await connection.execute("SELECT 1 AS a")).fetchone()
        assert row == {"?column?": 42}
        connection.cursor_factory = AsyncRawCursor
        for _ in range(3):
            row = await (await connection.execute("SELECT $1::int AS a", [7])).fetchone()
            assert row == {"a": 7}
        assert fast_path_hits() == 0
        connection.cursor_factory = Plain
        cursor = connection.cursor()
        assert isinstance(cursor, Plain)
        await cursor.execute("SELECT %s AS a", [8])
        assert await cursor.fetchone() == {"a": 8}
        assert fast_path_hits() == 1
        await cursor.close()
        failure = await run_to_end(partial(cursor.execute, "SELECT 1"))
        assert isinstance(failure, psycopg.InterfaceError)
    await database.close()


async def test_what_they_leave_in_the_session_is_cleaned(config: dict[str, Any], observer: Observer) -> None:
    observer.execute(
        "CREATE FUNCTION tenant(id text) RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant', id, false) $$"
    )
    database = AsyncDatabase(with_client_cursors(config))
    async with database.connection() as connection:
        await connection.execute("SELECT tenant(%s)", ["mine"])
    assert await database.fetch_value("SELECT current_setting('app.tenant', true)") in (None, "")
    await database.close()
