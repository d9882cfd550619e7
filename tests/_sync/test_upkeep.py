# Generated from tests/_async/test_upkeep.py by tools/twins.py: change that file, then run the tool.

"""What a pool does in the background: it replaces what expires, tries again, and survives the program's functions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgmonkey import Database, PGConnectionManager
from pgmonkey._sync.upkeep import Upkeep
from pgmonkey._sync.waiting import POOL_KIND, sleep
from pgmonkey.embedded import Server

from ..configs import pools
from ..conftest import ON_CI

Backends = Callable[[], list[tuple[int, str]]]
Observer = psycopg.Connection[Any]


def until(what: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        sleep(0.005)


def test_connections_are_replaced_one_by_one_before_they_expire(
    config: dict[str, Any], observer: Observer, backends: Backends
) -> None:
    """Nobody asks for them: a borrower would find none that is too old."""
    lifetime, size = 3.0, 6
    database = Database(pools(config, min_size=size, max_size=size, max_lifetime=lifetime))
    database.connect()
    until(lambda: len(backends()) == size)
    first, fewest = {pid for pid, _ in backends()}, size
    ages: dict[int, float] = {}
    look = (
        "SELECT pid, extract(epoch FROM clock_timestamp() - backend_start)::float FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    deadline = time.monotonic() + 3 * lifetime
    while len(now := dict(observer.execute(look).fetchall())) and first & now.keys():
        fewest = min(fewest, len(now))
        ages.update(now)
        assert time.monotonic() < deadline
        sleep(0.005)
    ended = [ages[pid] for pid in first]
    assert fewest >= size - 1
    assert 0.85 * lifetime < min(ended)
    assert max(ended) < 1.1 * lifetime
    assert max(ended) - min(ended) > 0.01 * lifetime, "they do not end together"
    assert database.stats()["requests_num"] == 1
    assert database.stats()["connections_lost"] == 0
    database.close()


def test_a_connection_that_is_lent_when_it_expires_is_replaced_when_it_comes_back(
    config: dict[str, Any], backends: Backends
) -> None:
    database = Database(pools(config, min_size=1, max_size=1, max_lifetime=0.4))
    asked = 2  # for the first connection, and for this block's
    with database.connection() as connection:
        pid = connection.info.backend_pid
        sleep(0.6)
        assert [pid for pid, _ in backends()] == [pid]
        connection.execute("SELECT 1")
    until(lambda: [pid for pid, _ in backends()] not in ([pid], []))
    assert database.stats()["requests_num"] == asked
    database.close()


def test_a_connection_that_was_lost_between_two_steps_is_replaced(
    config: dict[str, Any], backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception of a signal's handler may come where nobody is left to tell upkeep."""
    monkeypatch.setattr(f"{Upkeep.__module__}.LOOK_EVERY", 0.1)
    kind: Any = POOL_KIND
    get: Any = PGConnectionManager().get_database_connection_from_dict
    handle = get(pools(config, min_size=2), kind)
    until(lambda: len(backends()) == 2)
    sleep(0.3)  # upkeep has settled
    lost = handle._pool.take_idle(None)
    pid = lost.pgconn.backend_pid
    del lost
    until(lambda: len({backend for backend, _ in backends()} - {pid}) == 2, 20)
    handle.close()


def test_reconnect_failed_is_awaited_and_may_raise(
    config: dict[str, Any], server: Server, dbname: str, backends: Backends, caplog: pytest.LogCaptureFixture
) -> None:
    """It is called again after each `reconnect_timeout`; whatever it does, the pool is filled when that works."""
    told: list[object] = []

    def reconnect_failed(pool: Any) -> None:
        sleep(0)
        told.append(pool.name)
        if len(told) == 1:
            raise ZeroDivisionError
        raise psycopg.OperationalError("no")

    settings = pools(config, min_size=2, reconnect_timeout=0.3, reconnect_failed=reconnect_failed, name="mine")
    database = Database(settings)
    database.connect()
    until(lambda: len(backends()) == 2)
    allow = f"ALTER DATABASE {dbname} ALLOW_CONNECTIONS"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"{allow} false".encode())
        with database.connection() as connection:
            connection.close()
        until(lambda: len(told) == 2)
        assert told == ["pool 'mine'"] * 2
        assert "'reconnect_failed' raised ZeroDivisionError" in caplog.text
        admin.execute(f"{allow} true".encode())
    until(lambda: len(backends()) == 2, 8)
    database.close()


class Failing(logging.Handler):
    """A log handler that cannot write."""

    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("disk full")


def test_a_log_handler_that_raises_does_not_end_upkeep(config: dict[str, Any], backends: Backends) -> None:
    database = Database(pools(config, min_size=1, max_size=3, max_idle=0.3, leak_detection_threshold=0.1))
    handler = Failing()
    logging.getLogger("pgmonkey").addHandler(handler)
    try:
        with database.connection(), database.connection():
            sleep(0.3)
    finally:
        logging.getLogger("pgmonkey").removeHandler(handler)
    until(lambda: len(backends()) == 1)
    database.close()


ORDINARY = ["08000", "08003", "08006", "08001", "08P01", "57P01", "57P02", "57P03"]


@pytest.mark.parametrize("code", ORDINARY)
def test_an_ordinary_error_replaces_no_connection(code: str, config: dict[str, Any]) -> None:
    """A function, or postgres_fdw with its foreign server away, may raise what else ends connections."""
    database = Database(pools(config, min_size=2))
    with database.connection() as first, database.connection() as second:
        pids = {first.info.backend_pid, second.info.backend_pid}
    raising: Any = f"DO $$ BEGIN RAISE 'far away' USING ERRCODE = '{code}'; END $$"
    with pytest.raises(psycopg.Error) as caught:
        database.execute(raising)
    assert caught.value.sqlstate == code
    with pytest.raises(psycopg.Error):
        with database.transaction() as connection:
            connection.execute(raising.encode())
    with database.connection() as first, database.connection() as second:
        assert pids == {first.info.backend_pid, second.info.backend_pid}
    assert database.stats()["connections_num"] == 2
    database.close()


def test_a_foreign_server_that_is_away_replaces_no_connection(config: dict[str, Any]) -> None:
    database = Database(pools(config, min_size=2))
    available = "SELECT 1 FROM pg_available_extensions WHERE name = 'postgres_fdw'"
    if database.fetch_value(available) is None and not ON_CI:
        pytest.skip("this server has no postgres_fdw; Debian's postgresql has it")
    database.execute("CREATE EXTENSION postgres_fdw")
    database.execute("CREATE SERVER away FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1')")
    database.execute("CREATE USER MAPPING FOR CURRENT_USER SERVER away")
    database.execute("CREATE FOREIGN TABLE far (a int) SERVER away")
    with database.connection(), database.connection():
        made = database.stats()["connections_num"]
    for _ in range(8):
        with pytest.raises(psycopg.OperationalError, match="server"):
            database.fetch_all("SELECT * FROM far")
    assert database.stats()["connections_num"] == made
    database.close()
