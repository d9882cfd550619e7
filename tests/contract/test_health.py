"""What an orchestrator is told while the server is silent: P9."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import psycopg
import pytest

from ..faults.clusters import Cluster
from .conftest import FRAMEWORKS, App, running

# Seconds: what the routes promise, and what a busy machine may add.
LIMIT, SLACK = 2.0, 2.0
# What is asked for before the server falls silent; FastAPI has a pool for threads, too.
USES: dict[str, list[str]] = {"unused": []}
if psycopg.pq.version() >= 170000:  # an older libpq holds the process while it asks a silent server for a cancel
    USES |= {"used": ["/own"], "busy": ["/own"] * 3, "sync": ["/own-sync"]}
CASES = [(use, name) for use in USES for name in FRAMEWORKS if use != "sync" or name == "fastapi"]
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def app(name: str, cluster: Cluster) -> Iterator[App]:
    pool = {"min_size": 1, "max_size": 2, "timeout": 20}
    with running(name, cluster, f"health_{os.getpid()}_{next(_numbers)}", pool) as app:
        yield app


@pytest.mark.parametrize(("use", "name"), CASES)
def test_p9_a_silent_server_is_not_ready_in_time(app: App, cluster: Cluster, use: str) -> None:
    paths = USES[use]
    for path in paths:
        assert app.get(path, who="first", sleep=0).status_code == 200

    def stay() -> None:
        with suppress(httpx.HTTPError):
            app.get("/own", who="stuck", sleep=0)

    stuck = [threading.Thread(target=stay) for _ in paths[1:]]
    cluster.signal_all(signal.SIGSTOP)
    try:
        for thread in stuck:
            thread.start()
        time.sleep(0.3 if stuck else 0)
        for _ in range(2):
            started = time.monotonic()
            answer = app.get("/health/ready")
            took = time.monotonic() - started
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            assert took < LIMIT + SLACK
        started = time.monotonic()
        assert app.get("/health/live").status_code == 200
        assert time.monotonic() - started < SLACK
    finally:
        cluster.signal_all(signal.SIGCONT)
    for thread in stuck:
        thread.join(30)
    assert app.get("/health/ready").status_code == 200
    app.wait_until_all_is_given_back()
