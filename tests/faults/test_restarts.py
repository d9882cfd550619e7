"""The server goes away and comes back, while the pool is idle and under load."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgmonkey import AsyncDatabase, Database

from ..conftest import REFUSED
from .clusters import Cluster
from .load import Load, wait_until
from .proxy import FaultProxy

Figure = Callable[[str, str], None]
# While the load runs, two processors are busy with it; what is measured is not how busy.
SLACK = 0.4


@pytest.fixture(params=["sync", "async"])
def requests(request: pytest.FixtureRequest, config: dict[str, Any]) -> Iterator[Requests]:
    with Requests(request.param, config) as requests:
        yield requests


class Requests:
    """Requests one after another, over a pool of threads' or tasks' connections that is full and idle."""

    def __init__(self, kind: str, config: dict[str, Any]) -> None:
        self.kind = kind
        self._database = Database(config)
        self._async = AsyncDatabase(config)
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Requests:
        self.request()
        wait_until(lambda: self.stats()["pool_available"] == 8)
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()
        self._loop.run_until_complete(self._async.close())
        self._loop.close()

    def request(self) -> Any:
        if self.kind == "sync":
            return self._database.fetch_value("SELECT 1")
        return self._loop.run_until_complete(self._async.fetch_value("SELECT 1"))

    def stats(self) -> dict[str, int]:
        if self.kind == "sync":
            return self._database.stats()
        self._loop.run_until_complete(asyncio.sleep(0.002))
        return self._async.stats()

    def failures(self, number: int) -> int:
        failed = 0
        for _ in range(number):
            try:
                self.request()
            except psycopg.Error:
                failed += 1
        return failed


@pytest.mark.parametrize("fault", ["fast", "immediate", "terminated", "idle timeout"])
def test_an_idle_pool_serves_the_next_request(
    fault: str, requests: Requests, cluster: Cluster, dbname: str, figure: Figure
) -> None:
    accepting = time.monotonic()
    if fault in ("fast", "immediate"):
        cluster.end(signal.SIGINT if fault == "fast" else signal.SIGQUIT)
        accepting = cluster.begin()
    elif fault == "terminated":
        cluster.terminate_backends(dbname)
        accepting = time.monotonic()
    else:
        cluster.execute(f"ALTER DATABASE {dbname} SET idle_session_timeout = 100")
        cluster.terminate_backends(dbname)
        requests.request()
        wait_until(lambda: requests.stats()["pool_available"] == 8)
        time.sleep(0.3)
        accepting = time.monotonic()
    requests.request()
    first = time.monotonic() - accepting
    failed = requests.failures(99)
    assert failed == 0
    assert first < 0.1
    row = "Server restarted (fast, immediate), all backends terminated, idle timeout; 8 idle connections"
    figure(row, f"{fault}, {requests.kind}: {failed} of 100 fail, first answer after {first * 1000:.0f} ms")


def test_liveness_costs_no_round_trip(proxied: dict[str, Any], proxy: FaultProxy, figure: Figure) -> None:
    database = Database(proxied)
    database.fetch_value("SELECT 1")
    wait_until(lambda: database.stats()["pool_available"] == 8)
    for _ in range(10):  # until the statement is prepared
        database.fetch_value("SELECT 1")
    before = proxy.round_trips
    for _ in range(100):
        database.fetch_value("SELECT 1")
    added = proxy.round_trips - before - 100
    assert added == 0
    figure("Liveness in normal running", f"{added} round trips added to 100 requests")


def test_a_server_that_is_away(
    requests: Requests, cluster: Cluster, figure: Figure, request: pytest.FixtureRequest
) -> None:
    away = 5 if request.config.getoption("--short") else 30
    cluster.end(signal.SIGINT)
    slowest, ends = 0.0, time.monotonic() + away
    try:
        while time.monotonic() < ends:
            started = time.monotonic()
            with pytest.raises(psycopg.OperationalError, match=REFUSED):
                requests.request()
            slowest = max(slowest, time.monotonic() - started)
            time.sleep(0.1)
    finally:
        accepting = cluster.begin()
    while requests.failures(1):
        time.sleep(0.01)
    first = time.monotonic() - accepting
    wait_until(lambda: requests.stats()["pool_available"] == 8)
    full = time.monotonic() - accepting
    assert slowest < 0.5
    assert first < 0.5
    assert full < 1
    figure(
        f"Server away for {away} s, then back",
        f"{requests.kind}: slowest refusal {slowest * 1000:.0f} ms, in the server's words; "
        f"first success after {first * 1000:.0f} ms, full size after {full * 1000:.0f} ms",
    )


@pytest.mark.parametrize("fault", ["fast", "immediate", "terminated"])
def test_under_load(
    fault: str,
    config: dict[str, Any],
    cluster: Cluster,
    dbname: str,
    observer: psycopg.Connection[Any],
    figure: Figure,
) -> None:
    with Load(config) as load:
        time.sleep(2)
        began = time.monotonic()
        if fault == "terminated":
            # Waits for each to end: one that was only told to may be asked something before it does.
            cluster.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                f" WHERE datname = '{dbname}' AND pid <> {observer.info.backend_pid}"
            )
            accepting = time.monotonic()
        else:
            cluster.end(signal.SIGINT if fault == "fast" else signal.SIGQUIT)
            accepting = cluster.begin()
        time.sleep(3)
    with psycopg.connect(cluster.dsn(dbname), autocommit=True) as connection:
        lost = load.lost(connection)
    late = [outcome for outcome in load.failed() if outcome.began > accepting]
    before, after = load.rate(began - 1, began), load.rate(accepting + 1, accepting + 3)
    assert not lost
    assert load.leaked() == 0
    assert not late, late[:3]
    assert load.first_success_after(accepting) < 0.5
    assert after > before * (1 - SLACK)
    figure(
        "The same under load of 8 threads and 50 tasks",
        f"{fault}: {len(load.acknowledged)} acknowledged, {len(lost)} lost, {len(load.failed())} failed, "
        f"{len(late)} that began afterwards, {load.leaked()} connections leaked, "
        f"{after / before:.0%} of the speed a second later",
    )
