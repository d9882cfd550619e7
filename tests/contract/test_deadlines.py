"""A request's deadline: all of its statements end by then, and it is answered by 504."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pgmonkey.embedded import Server

from ..faults.proxy import FaultProxy
from .conftest import STARTED, App, running
from .test_ways import WAYS

HEADER = "X-Deadline"
# Seconds that a machine with much to do may be late.
LATE = 20


@pytest.fixture(scope="module", params=STARTED)
def app(request: pytest.FixtureRequest, server: Server) -> Iterator[App]:
    """The applications with a header for the deadline, behind a proxy, with a pool of two in each process."""
    name = request.param
    pool = {"min_size": 1, "max_size": 2, "timeout": 60}
    dbname = f"deadline_{name.replace('-', '_')}_{os.getpid()}"
    with (
        FaultProxy(server.host, server.port) as proxy,
        running(name, server, dbname, pool, proxy, CONTRACT_DEADLINE_HEADER=HEADER) as app,
    ):
        yield app


def paths(app: App) -> list[str]:
    return ["/slow", "/slow-sync"] if app.framework == "fastapi" else ["/slow"]


def get(app: App, path: str, deadline: object, **params: Any) -> tuple[int, float]:
    started = time.monotonic()
    answer = app.client.get(path, params=params, headers={HEADER: str(deadline)})
    return answer.status_code, time.monotonic() - started


def test_what_has_time_enough(app: App) -> None:
    app.observer.execute("TRUNCATE t")
    for path in paths(app):
        for deadline in (60, "60.5", "soon", "", "-1", "nan", "inf"):
            assert get(app, path, deadline, a=1, sleep=0)[0] == 200
            app.observer.execute("DELETE FROM t")
    assert app.client.post("/write", params={"a": 1, "status": 201}, headers={HEADER: "60"}).status_code == 201
    assert app.rows() == [1]


def test_a_slow_query_is_cancelled(app: App) -> None:
    app.observer.execute("TRUNCATE t")
    for path in paths(app):
        for deadline in (0.3, 0.31):
            status, took = get(app, path, deadline, a=1, sleep=60)
            assert (status, took < LATE) == (504, True)
            app.release_frame()  # nothing of it runs any more
    assert app.rows() == []
    assert get(app, "/slow", 60, a=1, sleep=0)[0] == 200


def test_every_way_of_writing_is_cancelled(app: App) -> None:
    app.observer.execute("TRUNCATE t")
    headers = {HEADER: "0.15"}
    for path in ("/way", "/way-sync") if app.framework == "fastapi" else ("/way",):
        for name in WAYS:
            params: dict[str, Any] = {"name": name, "a": 1, "sleep": 60, "status": 201}
            started = time.monotonic()
            assert app.client.post(path, params=params, headers=headers).status_code == 504, name
            assert time.monotonic() - started < LATE
            app.release_frame()
    assert app.rows() == []


def test_a_body_that_is_streamed_has_the_time_that_it_needs(app: App) -> None:
    answer = app.client.get("/stream", params={"rows": 3, "sleep": 0.2}, headers={HEADER: "0.5"})
    assert (answer.status_code, answer.text) == (200, f"{'x' * 1023}\n" * 3)


def test_a_silent_server(app: App) -> None:
    proxy = app.proxy
    assert proxy is not None
    for path in paths(app):
        app.observer.execute("TRUNCATE t")
        assert get(app, path, 60, a=1, sleep=0)[0] == 200
        app.observer.execute("TRUNCATE t")
        proxy.silent = True
        try:
            status, took = get(app, path, 0.3, a=1, sleep=0)
            assert (status, took < LATE) == (504, True)
        finally:
            proxy.silent = False
            proxy.reset_all()
        app.release_frame()
    assert app.rows() == []


def test_a_busy_pool(app: App) -> None:
    if app.several:
        return  # each process has a pool of its own
    for path in paths(app):
        app.observer.execute("TRUNCATE t")
        with ThreadPoolExecutor(2) as executor:
            busy = [executor.submit(get, app, path, 60, a=a, sleep=3) for a in (1, 2)]
            query = (
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query ~ 'pg_sleep'"
                " AND datname = current_database() AND pid <> pg_backend_pid()"
            )
            deadline = time.monotonic() + LATE
            while app.observer.execute(query).fetchone() != (2,):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert get(app, path, 0.3, a=3, sleep=0)[0] == 504
            assert [one.result()[0] for one in busy] == [200, 200]
        assert app.rows() == [1, 2]


def test_time_that_is_over_before_the_next_statement(app: App) -> None:
    for path in ("/own", "/own-sync") if app.framework == "fastapi" else ("/own",):
        assert get(app, path, 0.3, who="a", sleep=0.5)[0] == 504
        assert get(app, path, 60, who="a", sleep=0)[0] == 200
