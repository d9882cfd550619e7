"""A primary that dies under load, and its synchronous standby that takes over."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from .clusters import Cluster
from .load import Load

Figure = Callable[[str, str], None]


def pair_config(first: Cluster, second: Cluster) -> dict[str, Any]:
    settings = {
        **first.config()["connection_settings"],
        "host": [first.host, second.host],
        "port": [first.port, second.port],
        "target_session_attrs": "read-write",
        "connect_timeout": 2,
    }
    pool = {"min_size": 4, "max_size": 8, "timeout": 5}
    return {"connection_settings": settings, "pool_settings": dict(pool), "async_pool_settings": dict(pool)}


def test_failover(figure: Figure, request: pytest.FixtureRequest) -> None:
    times = 2 if request.config.getoption("--short") else 10
    took: list[float] = []
    lost: set[int] = set()
    acknowledged = failed = 0
    with Cluster(settings={"wal_log_hints": "on"}) as primary:
        standby = Cluster()
        try:
            standby.follow(primary)
            primary.execute("CREATE TABLE t (a int PRIMARY KEY)")
            for _ in range(times):
                primary.execute("TRUNCATE t")
                with Load(pair_config(primary, standby), threads=4, tasks=20) as load:
                    time.sleep(1)
                    primary.end(signal.SIGQUIT)
                    promoted = standby.promote()
                    time.sleep(2.5)
                with psycopg.connect(standby.dsn(), autocommit=True) as connection:
                    lost |= load.lost(connection)
                took.append(load.first_success_after(promoted))
                assert [o for o in load.failed() if o.began > promoted + 2] == []
                assert load.leaked() == 0
                acknowledged += len(load.acknowledged)
                failed += len(load.failed())
                primary, standby = standby, primary
                standby.follow(primary)
        finally:
            standby.stop()
            primary.stop()
    assert not lost
    assert max(took) < 2
    figure(
        f"Failover of a synchronous pair under write load, {times} times",
        f"{acknowledged} acknowledged, {len(lost)} lost; first write {max(took) * 1000:.0f} ms after the promotion "
        f"at the latest; {failed} writes refused meanwhile",
    )


def test_a_primary_that_was_demoted(figure: Figure) -> None:
    """Connections that find themselves on a standby are replaced, as when an address moves to another server."""
    from pgmonkey import Database

    with Cluster() as primary:
        standby = Cluster()
        try:
            standby.follow(primary)
            primary.execute("CREATE TABLE t (a int PRIMARY KEY)")
            settings = {**standby.config()["connection_settings"], "password": primary.password}
            database = Database({"connection_settings": settings, "pool_settings": {"min_size": 4, "max_size": 4}})
            before = database.fetch_value("SELECT pg_backend_pid()")
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                database.execute("INSERT INTO t VALUES (1)")
            assert database.fetch_value("SELECT pg_backend_pid()") != before
        finally:
            standby.stop()
    figure("A server that has become a standby (25006)", "one error, then every connection is replaced")
