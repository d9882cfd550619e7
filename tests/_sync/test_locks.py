# Generated from tests/_async/test_locks.py by tools/twins.py: change that file, then run the tool.

"""Advisory locks of `lock`: who holds them, for how long, and what is said to whoever waits in vain."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgmonkey import Database, LockNotAvailableError
from pgmonkey._sync.waiting import sleep

from ..configs import pools
from .concurrency import Beside

if TYPE_CHECKING:
    from typing_extensions import LiteralString

Observer = psycopg.Connection[Any]
NAMES: list[Any] = ["import:orders", "ä'%s", 7, -7, 2**62, (1, 2), (-1, -2)]
DATABASE: LiteralString = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
BY_HAND = {str: "hashtextextended(%s, 0)", int: "%s::bigint", tuple: "%s::int, %s::int"}


def free(observer: Observer, name: Any, *, shared: bool = False) -> bool:
    """Tell whether another session could take the lock, shared or alone."""
    function = f"pg_try_advisory_xact_lock{'_shared' if shared else ''}({BY_HAND[type(name)]})"
    row = observer.execute(f"SELECT {function}".encode(), name if isinstance(name, tuple) else (name,)).fetchone()
    assert row is not None
    return bool(row[0])


@pytest.mark.parametrize("session", [False, True])
@pytest.mark.parametrize("name", NAMES, ids=str)
def test_it_is_held_for_the_block(name: Any, session: bool, config: dict[str, Any], observer: Observer) -> None:
    database = Database(pools(config))
    for wait in (True, False, 5.0):
        with database.lock(name, session=session, wait=wait):
            assert not free(observer, name)
            assert not free(observer, name, shared=True)
        assert free(observer, name)
        with database.lock(name, session=session, wait=wait, shared=True):
            assert not free(observer, name)
            assert free(observer, name, shared=True)
        assert free(observer, name)
        with pytest.raises(ZeroDivisionError):
            with database.lock(name, session=session, wait=wait):
                raise ZeroDivisionError
        assert free(observer, name)
    database.close()


@pytest.mark.parametrize("session", [False, True])
@pytest.mark.parametrize("name", NAMES, ids=str)
def test_the_error_says_who_holds_it(
    name: Any, session: bool, config: dict[str, Any], server: Any, dbname: str
) -> None:
    database = Database(pools(config))
    with psycopg.connect(server.dsn(dbname), application_name="the holder", autocommit=True) as holder:
        holder.execute(
            f"SELECT pg_advisory_lock({BY_HAND[type(name)]})".encode(), name if isinstance(name, tuple) else (name,)
        )
        for wait, tried in ((False, ""), (0.0, ""), (0.2, r" within 0\.2 s \(wait\)")):
            started = time.monotonic()
            held = rf"was not free{tried}: it is held by session {holder.info.backend_pid} 'the holder'"
            with pytest.raises(LockNotAvailableError, match=held) as caught:
                with database.lock(name, session=session, wait=wait):
                    raise AssertionError
            assert time.monotonic() - started >= wait
            assert caught.value.sqlstate == "55P03"
            assert isinstance(caught.value, psycopg.errors.LockNotAvailable)
            assert repr(name) in str(caught.value)
    with database.lock(name, session=session, wait=60):  # the server takes its time to end a session
        pass
    database.close()


@pytest.mark.parametrize("session", [False, True])
@pytest.mark.parametrize("wait", [True, 60.0])
def test_whoever_waits_gets_it(session: bool, wait: Any, config: dict[str, Any], observer: Observer) -> None:
    database, other = Database(pools(config, max_size=4)), Database(pools(config, max_size=4))
    seen: list[str] = []

    def second() -> None:
        with other.lock("a", session=session, wait=wait):
            seen.append("second")

    with database.lock("a", session=session):
        waiting = Beside(second)
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND " + DATABASE
        deadline = time.monotonic() + 30
        while observer.execute(query).fetchone() == (0,):
            assert time.monotonic() < deadline
            sleep(0.01)
        seen.append("first")
    assert waiting.end() is None
    assert seen == ["first", "second"]
    database.close()
    other.close()


def test_in_a_transaction_it_is_held_until_the_end(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = Database(pools(config))
    with database.lock("a"):  # which is a transaction
        database.execute("INSERT INTO t VALUES (1)")
        assert observer.execute("SELECT count(*) FROM t").fetchone() == (0,)
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (1,)
    with database.transaction():
        database.execute("INSERT INTO t VALUES (2)")
        with database.lock("a"):
            database.execute("INSERT INTO t VALUES (3)")
        assert not free(observer, "a")
    assert free(observer, "a")
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (3,)
    database.close()


def test_a_transaction_goes_on_where_a_lock_is_not_free(
    config: dict[str, Any], observer: Observer, server: Any, dbname: str
) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = Database(pools(config))
    with psycopg.connect(server.dsn(dbname)) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(7)")
        with database.transaction() as connection:
            connection.execute("SET LOCAL lock_timeout = '77s'")
            database.execute("INSERT INTO t VALUES (1)")
            for wait in (False, 0.2):
                with pytest.raises(LockNotAvailableError):
                    with database.lock(7, wait=wait):
                        raise AssertionError
            assert database.fetch_value("SHOW lock_timeout") == "77s"
            waiting = Beside(lambda: _release_soon(holder))
            with database.lock(7, wait=60):
                assert database.fetch_value("SHOW lock_timeout") == "77s"
            waiting.end()
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (1,)
    database.close()


def _release_soon(holder: psycopg.Connection[Any]) -> None:
    sleep(0.3)
    holder.rollback()


def test_a_lock_of_a_session_is_no_transaction(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = Database(pools(config))
    with database.lock("a", session=True):
        database.execute("INSERT INTO t VALUES (1)")
        assert observer.execute("SELECT count(*) FROM t").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="the lock 'a' was lost with its session"):
        with database.lock("a", session=True):
            observer.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND " + DATABASE
            )
            while not free(observer, "a"):
                sleep(0.01)
    assert database.fetch_value("SELECT 1") == 1
    stats = database.stats()
    assert stats["pool_available"] == stats["pool_size"]
    database.close()


def test_a_lock_of_a_session_ends_with_its_block(config: dict[str, Any], observer: Observer) -> None:
    """Also where it ends by an error, on a connection that nobody cleans."""
    for clean in (True, False):
        database = Database(pools(config, clean_on_return=clean))
        with pytest.raises(ZeroDivisionError):
            with database.lock("a", session=True):
                raise ZeroDivisionError
        with database.lock("a", session=True):
            assert not free(observer, "a")
        end = time.monotonic() + 30  # a server that is busy takes its time to end a session
        while not free(observer, "a"):
            assert time.monotonic() < end
            sleep(0.01)
        assert database.stats()["pool_available"] == database.stats()["pool_size"]
        database.close()


def test_a_lock_of_a_session_is_refused_behind_pgbouncer(config: dict[str, Any], observer: Observer) -> None:
    config["connection_settings"]["pgbouncer"] = True
    database = Database(pools(config))
    with pytest.raises(psycopg.NotSupportedError, match="PgBouncer shares them"):
        with database.lock("a", session=True):
            raise AssertionError
    with database.lock("a"):
        assert not free(observer, "a")
    database.close()


@pytest.mark.parametrize("name", [None, True, 1.5, (1,) * 3, (), ("a", "b"), b"a"], ids=repr)
def test_what_names_no_lock(name: Any, config: dict[str, Any]) -> None:
    database = Database(pools(config))
    with pytest.raises(TypeError, match="the name of a lock is a string, a number or a tuple of two numbers"):
        with database.lock(name):
            raise AssertionError
    assert database.stats() == {}
    database.close()
