"""The server goes away and comes back, while somebody listens to a hundred notifications a second."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from pgmonkey import AsyncDatabase, Database, Gap

from .clusters import Cluster
from .conftest import Figure

LAST = "the last one"


class Notifier:
    """A thread that sends numbers, a hundred a second; *sent* has those that the server has committed."""

    def __init__(self, dsn: str) -> None:
        self.sent: list[str] = []
        self.stopped = False
        self._dsn = dsn
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self.stopped:
            with suppress(psycopg.OperationalError), psycopg.connect(self._dsn, autocommit=True) as connection:
                while not self.stopped:
                    number += 1  # also where it fails, so that no number is sent twice
                    connection.execute("SELECT pg_notify('numbers', %s)", [str(number)])
                    self.sent.append(str(number))
                    time.sleep(0.01)
            time.sleep(0.05)

    def stop(self) -> None:
        self.stopped = True
        self._thread.join(60)
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_notify('numbers', %s)", [LAST])


def listen(config: dict[str, Any], found: list[Any], ready: threading.Event) -> None:
    with Database(config).listen("numbers") as notes:
        ready.set()
        for note in notes:
            found.append(note)
            if not isinstance(note, Gap) and note.payload == LAST:
                break


async def listen_async(config: dict[str, Any], found: list[Any], ready: threading.Event) -> None:
    async with AsyncDatabase(config).listen("numbers") as notes:
        ready.set()
        async for note in notes:
            found.append(note)
            if not isinstance(note, Gap) and note.payload == LAST:
                break


def gaps(found: list[Any]) -> int:
    return sum(isinstance(note, Gap) for note in found)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_ten_restarts_are_ten_gaps(
    kind: str, cluster: Cluster, dbname: str, config: dict[str, Any], figure: Figure, request: pytest.FixtureRequest
) -> None:
    restarts = 3 if request.config.getoption("--short") else 10
    found: list[Any] = []
    ready = threading.Event()
    work = (
        (lambda: listen(config, found, ready))
        if kind == "sync"
        else (lambda: asyncio.run(listen_async(config, found, ready)))
    )
    listener = threading.Thread(target=work, daemon=True)
    listener.start()
    assert ready.wait(60)
    notifier = Notifier(cluster.dsn(dbname))
    for number in range(restarts):
        while gaps(found) < number or not isinstance((found or [None])[-1], psycopg.Notify):
            time.sleep(0.05)
        time.sleep(0.5)
        cluster.end(signal.SIGQUIT if number % 2 else signal.SIGINT)
        time.sleep(0.2)
        cluster.begin()
    while gaps(found) < restarts:
        time.sleep(0.05)
    time.sleep(0.5)
    notifier.stop()
    listener.join(60)
    assert not listener.is_alive()

    runs: list[list[str]] = [[]]
    for note in found[:-1]:
        if isinstance(note, Gap):
            runs.append([])
        else:
            runs[-1].append(note.payload)
    assert len(runs) == restarts + 1, "each interruption is one gap"
    sent = notifier.sent
    for run in runs:
        # One may have been committed and heard whose sender did not learn of it.
        known = [payload for payload in run if payload in sent]
        assert len(run) - len(known) <= 1
        if known:
            first = sent.index(known[0])
            assert known == sent[first : first + len(known)], "all that was sent while connected, once and in order"
    assert runs[0][0] == sent[0]
    assert runs[-1][-1] == sent[-1]
    heard = sum(map(len, runs))
    figure(
        "The server restarted under 100 notifications a second",
        f"{kind}: {restarts} restarts, {restarts} gaps, {heard} of {len(sent)} heard, each once",
    )
