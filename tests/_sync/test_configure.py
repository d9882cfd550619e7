# Generated from tests/_async/test_configure.py by tools/twins.py: change that file, then run the tool.

"""What ``configure`` makes is what every borrower finds, and what cleaning goes back to; ``check`` and ``reset``."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg import ClientCursor, Connection, IsolationLevel
from psycopg.errors import ReadOnlySqlTransaction, UniqueViolation
from psycopg.rows import dict_row, tuple_row

from pgmonkey import Database, PoolTimeoutError

from ..configs import pools, proxied
from ..faults.proxy import FaultProxy

Observer = psycopg.Connection[Any]
# More executions than it takes until psycopg prepares a statement, and the fast path executes it.
OFTEN = 9
# After this, a session is cleaned.
DIRT = "SET work_mem = '1MB'"


def test_the_row_factory(config: dict[str, Any]) -> None:
    def configure(connection: Connection[Any]) -> None:
        connection.row_factory = dict_row

    database: Database[Any] = Database(pools(config, max_size=1, configure=configure))
    for _ in range(OFTEN):
        assert database.fetch_one("SELECT 1 AS a") == {"a": 1}
        assert database.fetch_all("SELECT %s AS a", (2,)) == [{"a": 2}]
        assert database.fetch_value("SELECT 3") == 3
        with database.unit_of_work():
            assert database.fetch_one("SELECT 1 AS a") == {"a": 1}
        with database.connection() as connection:
            cursor = connection.execute("SELECT 1 AS a")
            assert cursor.fetchone() == {"a": 1}
            connection.row_factory = tuple_row  # this borrower's alone
            assert (connection.execute("SELECT 1 AS a")).fetchone() == (1,)
    assert [row for row in database.stream("SELECT 1 AS a")] == [{"a": 1}]
    database.close()
    mine = Database(pools(config, max_size=1, configure=configure), row_factory=tuple_row)
    assert [mine.fetch_one("SELECT 1 AS a") for _ in range(OFTEN)] == [(1,)] * OFTEN
    mine.close()


def test_a_configured_row_factory_takes_the_fast_path(config: dict[str, Any]) -> None:
    def configure(connection: Connection[Any]) -> None:
        connection.row_factory = dict_row

    database: Database[Any] = Database(pools(config, max_size=1, configure=configure))
    for _ in range(OFTEN):
        database.fetch_one("SELECT 1 AS a")
    with database.connection() as connection:
        assert connection.__dict__["pooled"]().plans._plans
    database.close()


def test_thresholds(config: dict[str, Any]) -> None:
    def configure(connection: Connection[Any]) -> None:
        connection.prepare_threshold, connection.prepared_max = 2, 7

    database: Database[Any] = Database(pools(config, max_size=1, configure=configure))
    for _ in range(3):
        with database.connection() as connection:
            assert (connection.prepare_threshold, connection.prepared_max) == (2, 7)
            connection.prepare_threshold, connection.prepared_max = None, 1
    database.close()


def test_autocommit(config: dict[str, Any], observer: Observer) -> None:
    def configure(connection: Connection[Any]) -> None:
        connection.set_autocommit(True)

    observer.execute("CREATE TABLE t (a int)")
    database: Database[Any] = Database(pools(config, max_size=1, configure=configure))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            with database.connection() as connection:
                assert connection.autocommit
                connection.execute("INSERT INTO t VALUES (1)")
                connection.set_autocommit(False)
                raise ZeroDivisionError
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (2,)
    with pytest.raises(ZeroDivisionError):
        with database.transaction() as connection:  # is one, whatever was configured
            connection.execute("INSERT INTO t VALUES (1)")
            raise ZeroDivisionError
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (2,)
    database.close()


def test_isolation_level_and_mode(config: dict[str, Any], observer: Observer) -> None:
    """They hold for query methods, too, which are a transaction then."""

    def configure(connection: Connection[Any]) -> None:
        connection.set_isolation_level(IsolationLevel.SERIALIZABLE)
        connection.set_read_only(True)

    observer.execute("CREATE TABLE t (a int)")
    database: Database[Any] = Database(pools(config, max_size=1, configure=configure))
    seen = "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
    for _ in range(OFTEN):
        assert database.fetch_one(seen) == ("serializable", "on")
        with database.unit_of_work():
            assert database.fetch_one(seen) == ("serializable", "on")
        with database.transaction(isolation="repeatable read"):
            assert database.fetch_one(seen) == ("repeatable read", "on")
        with database.connection() as connection:
            assert (connection.execute(seen)).fetchone() == ("serializable", "on")
        with pytest.raises(ReadOnlySqlTransaction):
            database.execute("INSERT INTO t VALUES (1)")
    database.close()


def test_cursor_factory_and_handlers(config: dict[str, Any]) -> None:
    notices: list[str | None] = []

    def heard(diagnostic: psycopg.errors.Diagnostic) -> None:
        notices.append(diagnostic.message_primary)

    def configure(connection: Connection[Any]) -> None:
        connection.cursor_factory = ClientCursor
        connection.add_notice_handler(heard)
        connection.execute("SET app.x = 'y'")

    database: Database[Any] = Database(pools(config, max_size=1, configure=configure))
    for round_ in range(3):
        with database.connection() as connection:
            assert isinstance(connection.cursor(), ClientCursor)
            connection.execute("DO $$ BEGIN RAISE NOTICE 'ho'; END $$")
        assert notices == ["ho"] * (round_ + 1)  # once each, however often it was configured
    for _ in range(OFTEN):
        assert database.fetch_one("SELECT %s AS a", (b"\0",)) == (b"\0",)
    database.close()


SEEN = """
    SELECT current_setting('search_path'), current_setting('statement_timeout'), current_setting('app.x'), current_user,
        (SELECT count(*) FROM pg_listening_channels()),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        (SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'), to_regclass('pg_temp.kept') IS NOT NULL
"""


@pytest.mark.parametrize("committing", ["itself", "not", "in autocommit"])
def test_the_session(config: dict[str, Any], observer: Observer, committing: str) -> None:
    """However a borrower ends that left something, the next one finds the session as it was configured."""
    role = f"reader_{observer.info.dbname}"
    observer.execute(f"CREATE ROLE {role}".encode())
    observer.execute("CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    observer.execute(f"GRANT INSERT ON t TO {role}".encode())

    def configure(connection: Connection[Any]) -> None:
        assert not connection.autocommit
        if committing == "in autocommit":
            connection.set_autocommit(True)
        connection.execute("CREATE TEMP TABLE kept (a int)")
        connection.execute("SET search_path TO pg_catalog, public")
        connection.execute("SET statement_timeout TO 4321")
        connection.execute("SELECT set_config('app.x', 'y', false)")
        connection.execute("SELECT pg_advisory_lock(1)")
        connection.execute("LISTEN news")
        connection.execute("PREPARE mine AS SELECT 1")
        connection.execute(f"SET ROLE {role}".encode())
        if committing == "itself":
            connection.commit()
        elif committing == "in autocommit":
            connection.set_autocommit(False)

    database: Database[Any] = Database(pools(config, max_size=1, configure=configure))
    right = ("pg_catalog, public", "4321ms", "y", role, 1, 1, 1, True)
    dirt = [DIRT, "RESET ROLE", "UNLISTEN *", "SELECT pg_advisory_unlock(1)", "SET app.x = 'z'", "DISCARD TEMP"]
    try:
        for _ in range(2):
            assert database.fetch_one(SEEN) == right
            database.execute(DIRT)
            assert database.fetch_one(SEEN) == right
            with database.connection() as connection:
                for statement in dirt:
                    connection.execute(statement.encode())
            assert database.fetch_one(SEEN) == right
            with pytest.raises(ZeroDivisionError):
                with database.transaction():
                    database.execute("DEALLOCATE mine")
                    raise ZeroDivisionError
            assert database.fetch_one(SEEN) == right
            with pytest.raises(ZeroDivisionError):
                with database.transaction():  # harmless, but rolled back, and psycopg deallocates then
                    database.fetch_one(SEEN)
                    raise ZeroDivisionError
            assert database.fetch_one(SEEN) == right
            with database.connection() as connection:
                connection.execute("SELECT 1", prepare=True)
                connection.rollback()
                connection.execute("SELECT 1")
            assert database.fetch_one(SEEN) == right
            with pytest.raises(UniqueViolation):
                with database.connection() as connection:
                    connection.execute("SELECT pg_advisory_lock(2)")
                    connection.execute("INSERT INTO t VALUES (1), (1)")
            assert database.fetch_one(SEEN) == right
        assert database.stats()["connections_num"] == 1
    finally:
        database.close()
        observer.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_a_session_that_was_not_dirtied_is_not_configured_again(config: dict[str, Any]) -> None:
    calls = 0

    def configure(connection: Connection[Any]) -> None:
        nonlocal calls
        calls += 1
        connection.execute("SET app.x = 'y'")

    def look_only(connection: Connection[Any]) -> None:
        nonlocal calls
        calls += 1
        psycopg.types.TypeInfo.fetch(connection, "text")

    for function, expected in ((configure, 2), (look_only, 1)):
        database = Database(pools(config, min_size=1, max_size=1, configure=function))
        for _ in range(3):
            with database.connection() as connection:
                connection.execute("SELECT lower('A')")
            database.fetch_one("SELECT 1")
        database.execute(DIRT)
        assert calls == expected
        calls = 0
        database.close()


def test_what_cannot_be_configured_again_is_not_lent(
    config: dict[str, Any], observer: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    def configure(connection: Connection[Any]) -> None:
        connection.execute("SET app.x = 'y'")
        if (connection.execute("SELECT FROM t")).fetchone() is not None:
            raise LookupError("not now")

    observer.execute("CREATE TABLE t (a int)")
    database: Database[Any] = Database(pools(config, max_size=1, configure=configure))
    with database.connection() as connection:
        connection.execute("INSERT INTO t VALUES (1)")
        connection.execute(DIRT)
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (1,)
    assert "LookupError('not now')" in caplog.text
    with pytest.raises(LookupError):
        database.fetch_value("SELECT 1")
    observer.execute("DELETE FROM t")
    assert database.fetch_value("SELECT current_setting('app.x')") == "y"
    database.close()


@pytest.mark.parametrize("error", [ValueError("no"), psycopg.OperationalError("no")])
def test_what_reset_refuses_is_closed(
    error: Exception, config: dict[str, Any], observer: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    """The borrower's work is committed: it is not its error."""
    refused = 0

    def reset(connection: Connection[Any]) -> None:
        nonlocal refused
        refused += 1
        raise error

    observer.execute("CREATE TABLE t (a int)")
    database: Database[Any] = Database(pools(config, max_size=1, reset=reset))
    backends = set()
    for _ in range(2):
        with database.connection() as connection:
            connection.execute("INSERT INTO t VALUES (1)")
            backends.add(connection.info.backend_pid)
    with pytest.raises(ZeroDivisionError):
        with database.connection() as connection:
            backends.add(connection.info.backend_pid)
            raise ZeroDivisionError
    assert refused == len(backends) == 3
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (2,)
    assert caplog.text.count("closing a connection that was given back") == 3
    database.close()


def test_what_reset_leaves_open_is_closed(config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    def reset(connection: Connection[Any]) -> None:
        connection.set_autocommit(False)
        connection.execute("SELECT 1")
        if leaving != "open":
            connection.commit()

    leaving = "open"
    database: Database[Any] = Database(pools(config, max_size=1, reset=reset, check_on_checkout=True))
    with database.connection():
        pass
    assert "the 'reset' function left a transaction open" in caplog.text
    leaving, pid = "nothing", 0
    for _ in range(2):
        with database.connection() as connection:
            assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            pid = connection.info.backend_pid
    assert database.fetch_value("SELECT pg_backend_pid()") == pid
    database.close()


@pytest.mark.parametrize("how", ["open", "failed", "closed"])
def test_what_check_leaves_open_is_not_lent(how: str, config: dict[str, Any]) -> None:
    refused: list[int] = []

    def check(connection: Connection[Any]) -> None:
        if refused:
            return
        refused.append(connection.info.backend_pid)
        connection.set_autocommit(False)
        connection.execute("SELECT 1")
        if how == "failed":
            with suppress(psycopg.Error):
                connection.execute("SELECT 1 / 0")
        elif how == "closed":
            connection.close()

    database: Database[Any] = Database(pools(config, max_size=1, check=check))
    with database.connection() as connection:
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert connection.info.backend_pid not in refused
    database.close()


@pytest.mark.parametrize("error", [ValueError("too old"), psycopg.OperationalError("too old")])
def test_what_check_refuses_is_never_lent(
    error: Exception, config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Also when it is new: the next one is tried, until the borrower's time is over."""
    caplog.set_level(logging.INFO, "pgmonkey")
    refused: list[object] = []
    limit = 2

    def check(connection: Connection[Any]) -> None:
        if len(refused) < limit:
            refused.append(connection.pgconn)
            raise error

    database: Database[Any] = Database(pools(config, min_size=0, max_size=1, check=check))
    with database.connection() as connection:
        assert connection.pgconn not in refused
    assert len(refused) == 2
    assert "too old" in caplog.text
    limit = 1000
    with pytest.raises(PoolTimeoutError, match=r"no connection passed the check within 0.5 s.*too old"):
        with database.connection(timeout=0.5):
            pass
    assert len(refused) < 10
    database.close()


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
def test_clean_on_return(setting: bool | str, config: dict[str, Any], observer: Observer) -> None:
    """Always: also what no text tells, and after query methods; true: what it tells; false: nothing."""
    observer.execute(BEHIND_A_VIEW.encode())
    database: Database[Any] = Database(pools(config, max_size=1, clean_on_return=setting))

    def left() -> bool:
        with database.transaction():
            found = database.fetch_value(f"SELECT {LEAK}")
        database.execute("SET app.leak = ''")
        return bool(found)

    for _ in range(OFTEN):
        database.execute("RESET app.leak")
        database.execute("SET app.leak = ''")
        database.execute(DIRT)
        assert database.fetch_value("SHOW work_mem") == ("1MB" if setting is False else "4MB")
        for statement in BEHIND:
            database.execute(statement)
            assert left() is (setting != "always")
            with database.connection() as connection:
                connection.execute(statement)
            known = setting is True and statement == "SELECT leak()"
            assert left() is (setting != "always" and not known), statement
    database.close()


def trips(database: Database[Any], proxy: FaultProxy, text: Any, *, together: bool = False) -> int:
    """Return how many round trips a statement takes at last, alone or in a transaction."""
    before = 0
    for _ in range(OFTEN):
        before = proxy.round_trips
        if together:
            with database.transaction():
                database.execute(text)
        else:
            database.execute(text)
    return proxy.round_trips - before


def test_round_trips_of_cleaning(config: dict[str, Any], observer: Observer) -> None:
    observer.execute(BEHIND_A_VIEW.encode())
    counted: dict[object, tuple[int, int, int]] = {}
    for setting in (True, "always"):
        with FaultProxy("127.0.0.1", config["connection_settings"]["port"]) as proxy:
            through = proxied(config, proxy)
            for kind in ("pool_settings", "async_pool_settings"):
                through[kind]["clean_on_return"] = setting
            database = Database(through)

            # One with an own function, and a long one, are as cheap as any.
            long = f"SELECT 1 WHERE 1 IN ({', '.join(['1'] * 10_000)})"
            alone = [trips(database, proxy, text) for text in ("SELECT 1", "SELECT leak()", long)]
            assert len(set(alone)) == 1
            together = trips(database, proxy, "SELECT 1", together=True)
            counted[setting] = alone[0], together, trips(database, proxy, DIRT)
            database.close()
    assert counted == {True: (1, 2, 2), "always": (2, 2, 2)}
