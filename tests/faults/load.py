"""Threads and tasks that write without a pause, and what became of each write."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import psycopg

from pgmonkey import AsyncDatabase, Database


@dataclass
class Outcome:
    """One write: its key, when it began and ended, and why it failed, if it did."""

    key: int
    began: float
    ended: float
    error: Exception | None


class Load:
    """Writes rows from threads and tasks until its block ends; every second write is a transaction of two."""

    def __init__(
        self,
        config: dict[str, Any] | str,
        *,
        threads: int = 8,
        tasks: int = 50,
        pause: float = 0.004,
        resolve_env: bool = False,
    ) -> None:
        self.database = Database(config, resolve_env=resolve_env)
        self.async_database = AsyncDatabase(config, resolve_env=resolve_env)
        self.outcomes: list[Outcome] = []
        self._keys = itertools.count(1)
        self._stopped = False
        self._pause = pause
        self._threads = [threading.Thread(target=self._work) for _ in range(threads)]
        self._threads.append(threading.Thread(target=lambda: asyncio.run(self._run_tasks(tasks))))
        self.async_stats: dict[str, int] = {}

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped = True
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)

    def _note(self, key: int, began: float, error: Exception | None) -> None:
        self.outcomes.append(Outcome(key, began, time.monotonic(), error))

    def _work(self) -> None:
        database = self.database
        while not self._stopped:
            key, began = next(self._keys), time.monotonic()
            try:
                if key % 2:
                    database.execute("INSERT INTO t VALUES (%s)", [key])
                else:
                    with database.transaction():
                        database.execute("INSERT INTO t VALUES (%s)", [key])
                        database.execute("INSERT INTO t VALUES (%s)", [-key])
                self._note(key, began, None)
            except Exception as error:
                self._note(key, began, error)
            time.sleep(self._pause)

    async def _run_tasks(self, number: int) -> None:
        await asyncio.gather(*(self._task() for _ in range(number)))
        await asyncio.sleep(0.2)
        self.async_stats = self.async_database.stats()
        await self.async_database.close()

    async def _task(self) -> None:
        database = self.async_database
        while not self._stopped:
            key, began = next(self._keys), time.monotonic()
            try:
                if key % 2:
                    await database.execute("INSERT INTO t VALUES (%s)", [key])
                else:
                    async with database.transaction():
                        await database.execute("INSERT INTO t VALUES (%s)", [key])
                        await database.execute("INSERT INTO t VALUES (%s)", [-key])
                self._note(key, began, None)
            except Exception as error:
                self._note(key, began, error)
            await asyncio.sleep(self._pause * 5)

    # -- what became of it ----------------------------------------------------------------------------------------

    @property
    def acknowledged(self) -> set[int]:
        """The keys of the writes that were said to have happened."""
        return {outcome.key for outcome in self.outcomes if outcome.error is None}

    def failed(self) -> list[Outcome]:
        """The writes that failed."""
        return [outcome for outcome in self.outcomes if outcome.error is not None]

    def lost(self, connection: psycopg.Connection[Any]) -> set[int]:
        """Return the acknowledged writes that are not there; check that no transaction was done by half."""
        rows = {row[0] for row in connection.execute("SELECT a FROM t").fetchall()}
        halves = {key for key in rows if abs(key) % 2 == 0 and -key not in rows}
        assert not halves, halves
        return self.acknowledged - rows

    def leaked(self) -> int:
        """Return how many connections are out though nobody works any more."""
        pools = (self.database.stats(), self.async_stats)
        return sum(stats["pool_size"] - stats["pool_available"] for stats in pools)

    def first_success_after(self, moment: float) -> float:
        """Return the seconds from *moment* to the end of the first write that began after it and succeeded."""
        return min(o.ended for o in self.outcomes if o.error is None and o.began >= moment) - moment

    def rate(self, since: float, until: float) -> float:
        """Return the successful writes a second."""
        return sum(o.error is None and since <= o.ended < until for o in self.outcomes) / (until - since)


def wait_until(what: Any, seconds: float = 10.0) -> float:
    """Wait until *what* is true, at most *seconds*; return the seconds it took."""
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < seconds
        time.sleep(0.002)
    return time.monotonic() - started
