"""What ``configure`` makes is what every borrower finds, and what cleaning goes back to; ``check`` and ``reset``."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg import AsyncClientCursor, AsyncConnection, IsolationLevel
from psycopg.errors import ReadOnlySqlTransaction, UniqueViolation
from psycopg.rows import dict_row, tuple_row

from pgmonkey import AsyncDatabase, PoolTimeoutError

from ..configs import pools, proxied
from ..faults.proxy import FaultProxy

Observer = psycopg.Connection[Any]
# More executions than it takes until psycopg prepares a statement, and the fast path executes it.
OFTEN = 9
# After this, a session is cleaned.
DIRT = "SET work_mem = '1MB'"


async def test_the_row_factory(config: dict[str, Any]) -> None:
    async def configure(connection: AsyncConnection[Any]) -> None:
        connection.row_factory = dict_row

    database: AsyncDatabase[Any] = AsyncDatabase(pools(config, max_size=1, configure=configure))
    for _ in range(OFTEN):
        assert await database.fetch_one("SELECT 1 AS a") == {"a": 1}
        assert await database.fetch_all("SELECT %s AS a", (2,)) == [{"a": 2}]
        assert await database.fetch_value("SELECT 3") == 3
        async with database.unit_of_work():
            assert await database.fetch_one("SELECT 1 AS a") == {"a": 1}
        async with database.connection() as connection:
            cursor = await connection.execute("SELECT 1 AS a")
            assert await cursor.fetchone() == {"a": 1}
            connection.row_factory = tuple_row  # this borrower's alone
            assert await (await connection.execute("SELECT 1 AS a")).fetchone() == (1,)
    assert [row async for row in database.stream("SELECT 1 AS a")] == [{"a": 1}]
    await database.close()
    mine = AsyncDatabase(pools(config, max_size=1, configure=configure), row_factory=tuple_row)
    assert [await mine.fetch_one("SELECT 1 AS a") for _ in range(OFTEN)] == [(1,)] * OFTEN
    await mine.close()


async def test_a_configured_row_factory_takes_the_fast_path(config: dict[str, Any]) -> None:
    async def configure(connection: AsyncConnection[Any]) -> None:
        connection.row_factory = dict_row

    database: AsyncDatabase[Any] = AsyncDatabase(pools(config, max_size=1, configure=configure))
    for _ in range(OFTEN):
        await database.fetch_one("SELECT 1 AS a")
    async with database.connection() as connection:
        assert connection.__dict__["pooled"]().plans._plans
    await database.close()


async def test_thresholds(config: dict[str, Any]) -> None:
    async def configure(connection: AsyncConnection[Any]) -> None:
        connection.prepare_threshold, connection.prepared_max = 2, 7

    database: AsyncDatabase[Any] = AsyncDatabase(pools(config, max_size=1, configure=configure))
    for _ in range(3):
        async with database.connection() as connection:
            assert (connection.prepare_threshold, connection.prepared_max) == (2, 7)
            connection.prepare_threshold, connection.prepared_max = None, 1
    await database.close()


async def test_autocommit(config: dict[str, Any], observer: Observer) -> None:
    async def configure(connection: AsyncConnection[Any]) -> None:
        await connection.set_autocommit(True)

    observer.execute("CREATE TABLE t (a int)")
    database: AsyncDatabase[Any] = AsyncDatabase(pools(config, max_size=1, configure=configure))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            async with database.connection() as connection:
                assert connection.autocommit
                await connection.execute("INSERT INTO t VALUES (1)")
                await connection.set_autocommit(False)
                raise ZeroDivisionError
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (2,)
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as connection:  # is one, whatever was configured
            await connection.execute("INSERT INTO t VALUES (1)")
            raise ZeroDivisionError
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (2,)
    await database.close()


async def test_isolation_level_and_mode(config: dict[str, Any], observer: Observer) -> None:
    """They hold for query methods, too, which are a transaction then."""

    async def configure(connection: AsyncConnection[Any]) -> None:
        await connection.set_isolation_level(IsolationLevel.SERIALIZABLE)
        await connection.set_read_only(True)

    observer.execute("CREATE TABLE t (a int)")
    database: AsyncDatabase[Any] = AsyncDatabase(pools(config, max_size=1, configure=configure))
    seen = "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
    for _ in range(OFTEN):
        assert await database.fetch_one(seen) == ("serializable", "on")
        async with database.unit_of_work():
            assert await database.fetch_one(seen) == ("serializable", "on")
        async with database.transaction(isolation="repeatable read"):
            assert await database.fetch_one(seen) == ("repeatable read", "on")
        async with database.connection() as connection:
            assert await (await connection.execute(seen)).fetchone() == ("serializable", "on")
        with pytest.raises(ReadOnlySqlTransaction):
            await database.execute("INSERT INTO t VALUES (1)")
    await database.close()


async def test_cursor_factory_and_handlers(config: dict[str, Any]) -> None:
    notices: list[str | None] = []

    def heard(diagnostic: psycopg.errors.Diagnostic) -> None:
        notices.append(diagnostic.message_primary)

    async def configure(connection: AsyncConnection[Any]) -> None:
        connection.cursor_factory = AsyncClientCursor
        connection.add_notice_handler(heard)
        await connection.execute("SET app.x = 'y'")

    database: AsyncDatabase[Any] = AsyncDatabase(pools(config, max_size=1, configure=configure))
    for round_ in range(3):
        async with database.connection() as connection:
            assert isinstance(connection.cursor(), AsyncClientCursor)
            await connection.execute("DO $$ BEGIN RAISE NOTICE 'ho'; END $$")
        assert notices == ["ho"] * (round_ + 1)  # once each, however often it was configured
    for _ in range(OFTEN):
        assert await database.fetch_one("SELECT %s AS a", (b"\0",)) == (b"\0",)
    await database.close()


SEEN = """
    SELECT current_setting('search_path'), current_setting('statement_timeout'), current_setting('app.x'), current_user,
        (SELECT count(*) FROM pg_listening_channels()),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        (SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'), to_regclass('pg_temp.kept') IS NOT NULL
"""


@pytest.mark.parametrize("committing", ["itself", "not", "in autocommit"])
async def test_the_session(config: dict[str, Any], observer: Observer, committing: str) -> None:
    """However a borrower ends that left something, the next one finds the session as it was configured."""
    role = f"reader_{observer.info.dbname}"
    observer.execute(f"CREATE ROLE {role}".encode())
    observer.execute("CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    observer.execute(f"GRANT INSERT ON t TO {role}".encode())

    async def configure(connection: AsyncConnection[Any]) -> None:
        assert not connection.autocommit
        if committing == "in autocommit":
            await connection.set_autocommit(True)
        await connection.execute("CREATE TEMP TABLE kept (a int)")
        await connection.execute("SET search_path TO pg_catalog, public")
        await connection.execute("SET statement_timeout TO 4321")
        await connection.execute("SELECT set_config('app.x', 'y', false)")
        await connection.execute("SELECT pg_advisory_lock(1)")
        await connection.execute("LISTEN news")
        await connection.execute("PREPARE mine AS SELECT 1")
        await connection.execute(f"SET ROLE {role}".encode())
        if committing == "itself":
            await connection.commit()
        elif committing == "in autocommit":
            await connection.set_autocommit(False)

    database: AsyncDatabase[Any] = AsyncDatabase(pools(config, max_size=1, configure=configure))
    right = ("pg_catalog, public", "4321ms", "y", role, 1, 1, 1, True)
    dirt = [DIRT, "RESET ROLE", "UNLISTEN *", "SELECT pg_advisory_unlock(1)", "SET app.x = 'z'", "DISCARD TEMP"]
    try:
        for _ in range(2):
            assert await database.fetch_one(SEEN) == right
            await database.execute(DIRT)
            assert await database.fetch_one(SEEN) == right
            async with database.connection() as connection:
                for statement in dirt:
                    await connection.execute(statement.encode())
            assert await database.fetch_one(SEEN) == right
            with pytest.raises(ZeroDivisionError):
                async with database.transaction():
                    await database.execute("DEALLOCATE mine")
                    raise ZeroDivisionError
            assert await database.fetch_one(SEEN) == right
            with pytest.raises(ZeroDivisionError):
                async with database.transaction():  # harmless, but rolled back, and psycopg deallocates then
                    await database.fetch_one(SEEN)
                    raise ZeroDivisionError
            assert await database.fetch_one(SEEN) == right
            async with database.connection() as connection:
                await connection.execute("SELECT 1", prepare=True)
                await connection.rollback()
                await connection.execute("SELECT 1")
            assert await database.fetch_one(SEEN) == right
            with pytest.raises(UniqueViolation):
                async with database.connection() as connection:
                    await connection.execute("SELECT pg_advisory_lock(2)")
                    await connection.execute("INSERT INTO t VALUES (1), (1)")
            assert await database.fetch_one(SEEN) == right
        assert database.stats()["connections_num"] == 1
    finally:
        await database.close()
        observer.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


async def test_a_session_that_was_not_dirtied_is_not_configured_again(config: dict[str, Any]) -> None:
    calls = 0

    async def configure(connection: AsyncConnection[Any]) -> None:
        nonlocal calls
        calls += 1
        await connection.execute("SET app.x = 'y'")

    async def look_only(connection: AsyncConnection[Any]) -> None:
        nonlocal calls
        calls += 1
        await psycopg.types.TypeInfo.fetch(connection, "text")

    for function, expected in ((configure, 2), (look_only, 1)):
        database = AsyncDatabase(pools(config, min_size=1, max_size=1, configure=function))
        for _ in range(3):
            async with database.connection() as connection:
                await connection.execute("SELECT lower('A')")
            await database.fetch_one("SELECT 1")
        await database.execute(DIRT)
        assert calls == expected
        calls = 0
        await database.close()


async def test_what_cannot_be_configured_again_is_not_lent(
    config: dict[str, Any], observer: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    async def configure(connection: AsyncConnection[Any]) -> None:
        await connection.execute("SET app.x = 'y'")
        if await (await connection.execute("SELECT FROM t")).fetchone() is not None:
            raise LookupError("not now")

    observer.execute("CREATE TABLE t (a int)")
    database: AsyncDatabase[Any] = AsyncDatabase(pools(config, max_size=1, configure=configure))
    async with database.connection() as connection:
        await connection.execute("INSERT INTO t VALUES (1)")
        await connection.execute(DIRT)
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (1,)
    assert "LookupError('not now')" in caplog.text
    with pytest.raises(LookupError):
        await database.fetch_value("SELECT 1")
    observer.execute("DELETE FROM t")
    assert await database.fetch_value("SELECT current_setting('app.x')") == "y"
    await database.close()


@pytest.mark.parametrize("error", [ValueError("no"), psycopg.OperationalError("no")])
async def test_what_reset_refuses_is_closed(
    error: Exception, config: dict[str, Any], observer: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    """The borrower's work is committed: it is not its error."""
    refused = 0

    async def reset(connection: AsyncConnection[Any]) -> None:
        nonlocal refused
        refused += 1
        raise error

    observer.execute("CREATE TABLE t (a int)")
    database: AsyncDatabase[Any] = AsyncDatabase(pools(config, max_size=1, reset=reset))
    backends = set()
    for _ in range(2):
        async with database.connection() as connection:
            await connection.execute("INSERT INTO t VALUES (1)")
            backends.add(connection.info.backend_pid)
    with pytest.raises(ZeroDivisionError):
        async with database.connection() as connection:
            backends.add(connection.info.backend_pid)
            raise ZeroDivisionError
    assert refused == len(backends) == 3
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (2,)
    assert caplog.text.count("closing a connection that was given back") == 3
    await database.close()


async def test_what_reset_leaves_open_is_closed(config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    async def reset(connection: AsyncConnection[Any]) -> None:
        await connection.set_autocommit(False)
        await connection.execute("SELECT 1")
        if leaving != "open":
            await connection.commit()

    leaving = "open"
    database: AsyncDatabase[Any] = AsyncDatabase(pools(config, max_size=1, reset=reset, check_on_checkout=True))
    async with database.connection():
        pass
    assert "the 'reset' function left a transaction open" in caplog.text
    leaving, pid = "nothing", 0
    for _ in range(2):
        async with database.connection() as connection:
            assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            pid = connection.info.backend_pid
    assert await database.fetch_value("SELECT pg_backend_pid()") == pid
    await database.close()


@pytest.mark.parametrize("how", ["open", "failed", "closed"])
async def test_what_check_leaves_open_is_not_lent(how: str, config: dict[str, Any]) -> None:
    refused: list[int] = []

    async def check(connection: AsyncConnection[Any]) -> None:
        if refused:
            return
        refused.append(connection.info.backend_pid)
        await connection.set_autocommit(False)
        await connection.execute("SELECT 1")
        if how == "failed":
            with suppress(psycopg.Error):
                await connection.execute("SELECT 1 / 0")
        elif how == "closed":
            await connection.close()

    database: AsyncDatabase[Any] = AsyncDatabase(pools(config, max_size=1, check=check))
    async with database.connection() as connection:
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert connection.info.backend_pid not in refused
    await database.close()


@pytest.mark.parametrize("error", [ValueError("too old"), psycopg.OperationalError("too old")])
async def test_what_check_refuses_is_never_lent(
    error: Exception, config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Also when it is new: the next one is tried, until the borrower's time is over."""
    caplog.set_level(logging.INFO, "pgmonkey")
    refused: list[object] = []
    limit = 2

    async def check(connection: AsyncConnection[Any]) -> None:
        if len(refused) < limit:
            refused.append(connection.pgconn)
            raise error

    database: AsyncDatabase[Any] = AsyncDatabase(pools(config, min_size=0, max_size=1, check=check))
    async with database.connection() as connection:
        assert connection.pgconn not in refused
    assert len(refused) == 2
    assert "too old" in caplog.text
    limit = 1000
    with pytest.raises(PoolTimeoutError, match=r"no connection passed the check within 0.5 s.*too old"):
        async with database.connection(timeout=0.5):
            pass
    assert len(refused) < 10
    await database.close()


LEAK = "current_setting('app.leak', true)"
BEHIND_A_VIEW = """
    CREATE FUNCTION leak() RETURNS text LANGUAGE sql VOLATILE AS $$ SELECT set_config('app.leak', 'x', false) $$;
    CREATE VIEW v AS SELECT leak();
    CREATE TABLE t (a int);
    CREATE FUNCTION trigger_() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM leak(); RETURN NEW; END $$;
    CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION trigger_();
    CREATE FUNCTION log(text) RETURNS text LANGUAGE sql VOLATILE AS 'SELECT leak()';
"""
BEHIND = ("SELECT * FROM v", "INSERT INTO t VALUES (1)", "SELECT log('x'::text)", "SELECT leak()")


@pytest.mark.parametrize("setting", ["always", True, False])
async def test_clean_on_return(setting: bool | str, config: dict[str, Any], observer: Observer) -> None:
    """Always: also what no text tells, and after query methods; true: what it tells; false: nothing."""
    observer.execute(BEHIND_A_VIEW.encode())
    database: AsyncDatabase[Any] = AsyncDatabase(pools(config, max_size=1, clean_on_return=setting))

    async def left() -> bool:
        async with database.transaction():
            found = await database.fetch_value(f"SELECT {LEAK}")
        await database.execute("SET app.leak = ''")
        return bool(found)

    for _ in range(OFTEN):
        await database.execute("RESET app.leak")
        await database.execute("SET app.leak = ''")
        await database.execute(DIRT)
        assert await database.fetch_value("SHOW work_mem") == ("1MB" if setting is False else "4MB")
        for statement in BEHIND:
            await database.execute(statement)
            assert await left() is (setting != "always")
            async with database.connection() as connection:
                await connection.execute(statement)
            known = setting is True and statement == "SELECT leak()"
            assert await left() is (setting != "always" and not known), statement
    await database.close()


async def trips(database: AsyncDatabase[Any], proxy: FaultProxy, text: Any, *, together: bool = False) -> int:
    """Return how many round trips a statement takes at last, alone or in a transaction."""
    before = 0
    for _ in range(OFTEN):
        before = proxy.round_trips
        if together:
            async with database.transaction():
                await database.execute(text)
        else:
            await database.execute(text)
    return proxy.round_trips - before


async def test_round_trips_of_cleaning(config: dict[str, Any], observer: Observer) -> None:
    observer.execute(BEHIND_A_VIEW.encode())
    counted: dict[object, tuple[int, int, int]] = {}
    for setting in (True, "always"):
        with FaultProxy("127.0.0.1", config["connection_settings"]["port"]) as proxy:
            through = proxied(config, proxy)
            for kind in ("pool_settings", "async_pool_settings"):
                through[kind]["clean_on_return"] = setting
            database = AsyncDatabase(through)

            # One with an own function, and a long one, are as cheap as any.
            long = f"SELECT 1 WHERE 1 IN ({', '.join(['1'] * 10_000)})"
            alone = [await trips(database, proxy, text) for text in ("SELECT 1", "SELECT leak()", long)]
            assert len(set(alone)) == 1
            together = await trips(database, proxy, "SELECT 1", together=True)
            counted[setting] = alone[0], together, await trips(database, proxy, DIRT)
            await database.close()
    assert counted == {True: (1, 2, 2), "always": (2, 2, 2)}
