"""Deadlines of calls and of requests: how late they end when a statement is slow, or a session or the server frozen."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import psycopg
import pytest

from pgmonkey import AsyncDatabase, Database, DeadlineExceededError

from ..contract.conftest import FRAMEWORKS, App, running
from .clusters import Cluster
from .conftest import Figure
from .load import wait_until

ROW = "A deadline of 0.5 s; milliseconds that it ends late, at most"
DEADLINE = 0.5
SLOW = "SELECT pg_sleep(%s::float8)"
LONG = 60
# Seconds that a machine with much to do may be late.
LATE = 5


@contextmanager
def frozen_server(cluster: Cluster) -> Iterator[None]:
    cluster.signal_all(signal.SIGSTOP)
    try:
        yield
    finally:
        cluster.signal_all(signal.SIGCONT)


def frozen_backends(app: App) -> list[int]:
    found = app.observer.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )
    return [pid for (pid,) in found.fetchall()]


class Lateness:
    """How long after its deadline each thing has ended, in milliseconds."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        late = time.monotonic() - started - DEADLINE
        assert -0.02 < late < LATE, what
        self.seen[what] = max(self.seen.get(what, 0.0), 1000 * late)

    def __str__(self) -> str:
        return ", ".join(f"{what} {milliseconds:.0f}" for what, milliseconds in self.seen.items())


def ask(app: App, path: str, sleep: float) -> int:
    # Django's views write in GET requests, too, as the contract's applications have it.
    params: dict[str, Any] = {"a": 1, "sleep": sleep}
    return app.client.get(path, params=params, headers={"X-Deadline": str(DEADLINE)}).status_code


@pytest.mark.timeout(300)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_requests(framework: str, cluster: Cluster, figure: Figure) -> None:
    pool = {"min_size": 1, "max_size": 4, "timeout": 60}
    paths = ["/slow", "/slow-sync"] if framework == "fastapi" else ["/slow"]
    late = Lateness()
    name = f"deadlines_{framework}"
    with running(framework, cluster, name, pool, CONTRACT_DEADLINE_HEADER="X-Deadline") as app:
        for path in paths:
            with frozen_server(cluster), late.of("first connect"):
                assert ask(app, path, 0) == 504
            for _ in range(3):
                wait_until(lambda path=path: app.client.get(path, params={"a": 1, "sleep": 0}).status_code == 200)
                app.observer.execute("TRUNCATE t")
                with late.of("slow statement"):
                    assert ask(app, path, LONG) == 504
                assert app.client.get(path, params={"a": 1, "sleep": 0}).status_code == 200
                app.observer.execute("TRUNCATE t")
                frozen = frozen_backends(app)
                for pid in frozen:
                    _signal(pid, signal.SIGSTOP)
                try:
                    with late.of("frozen session"):
                        assert ask(app, path, 0) == 504
                finally:
                    for pid in frozen:
                        _signal(pid, signal.SIGCONT)
                assert app.client.get(path, params={"a": 1, "sleep": 0}).status_code == 200
                app.observer.execute("TRUNCATE t")
                with frozen_server(cluster), late.of("frozen server"):
                    assert ask(app, path, 0) == 504
            app.release_frame()
            assert app.rows() == []
    figure(ROW, f"{framework}: {late}")


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # a session that has just ended
        os.kill(pid, number)


WAYS = ("fetch_value", "fetch_all", "execute", "execute_many", "copy_rows", "stream", "batch", "transaction", "retry")


def call(database: Database[Any], way: str, sleep: float) -> None:
    if way in ("fetch_value", "fetch_all", "execute"):
        getattr(database, way)(SLOW, [sleep], timeout=DEADLINE)
    elif way == "execute_many":
        database.execute_many(SLOW, [[0], [sleep]], timeout=DEADLINE)
    elif way == "copy_rows":
        database.copy_rows("sleepy", [(sleep,)], timeout=DEADLINE)
    elif way == "stream":
        list(database.stream(SLOW, [sleep], timeout=DEADLINE))
    elif way == "batch":
        with database.batch(timeout=DEADLINE) as batch:
            batch.execute(SLOW, [sleep])
            batch.execute("SELECT 1")
    elif way == "transaction":
        with database.transaction(timeout=DEADLINE):
            database.execute("SELECT 1")
            database.execute(SLOW, [sleep])
    else:
        database.retry(partial(database.execute, SLOW, [sleep]), timeout=DEADLINE)


async def call_async(database: AsyncDatabase[Any], way: str, sleep: float) -> None:
    if way in ("fetch_value", "fetch_all", "execute"):
        await getattr(database, way)(SLOW, [sleep], timeout=DEADLINE)
    elif way == "execute_many":
        await database.execute_many(SLOW, [[0], [sleep]], timeout=DEADLINE)
    elif way == "copy_rows":
        await database.copy_rows("sleepy", [(sleep,)], timeout=DEADLINE)
    elif way == "stream":
        [row async for row in database.stream(SLOW, [sleep], timeout=DEADLINE)]
    elif way == "batch":
        async with database.batch(timeout=DEADLINE) as batch:
            batch.execute(SLOW, [sleep])
            batch.execute("SELECT 1")
    elif way == "transaction":
        async with database.transaction(timeout=DEADLINE):
            await database.execute("SELECT 1")
            await database.execute(SLOW, [sleep])
    else:
        await database.retry(partial(database.execute, SLOW, [sleep]), timeout=DEADLINE)


SLEEPY = """
    CREATE TABLE sleepy (a float8);
    CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(NEW.a); RETURN NEW; END $$;
    CREATE TRIGGER sleep BEFORE INSERT ON sleepy FOR EACH ROW EXECUTE FUNCTION sleep();
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_calls(kind: str, cluster: Cluster, dbname: str, config: dict[str, Any], figure: Figure) -> None:
    cluster.execute(SLEEPY, dbname)
    database: Any = Database(config) if kind == "sync" else AsyncDatabase(config)
    late = Lateness()

    async def run(way: str, sleep: float) -> None:
        if kind == "sync":
            call(database, way, sleep)
        else:
            await call_async(database, way, sleep)

    async def works() -> bool:
        with suppress(psycopg.OperationalError):
            answer: Any = database.fetch_value("SELECT 1")
            return bool((await answer if isinstance(answer, Awaitable) else answer) == 1)
        return False

    for way in WAYS:
        for _ in range(3):
            await run(way, 0)
        with late.of("slow statement"), pytest.raises(DeadlineExceededError):
            await run(way, LONG)
        while not await works():
            await asyncio.sleep(0.01)
        with frozen_server(cluster), late.of("frozen server"), pytest.raises(DeadlineExceededError):
            await run(way, 0)
        while not await works():
            await asyncio.sleep(0.01)
    assert cluster.execute("SELECT count(*) FROM sleepy WHERE a > 0", dbname) == [(0,)]
    figure(ROW, f"{kind}, {len(WAYS)} kinds of calls: {late}")
    await database.close() if kind == "async" else database.close()
