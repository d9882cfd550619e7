"""The threads in which a request waits for its synchronous connection, and in which it commits.

Waiting, committing and ``def`` endpoints do not share threads: otherwise 40 waiting requests could keep the one request
that would give its connection back from running.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import TypeVar

import anyio
import anyio.to_thread
from psycopg import Connection
from psycopg.rows import Row

from pgmonkey import Database, UnitOfWork

# As many as anyio starts for ``def`` endpoints by default.
_THREADS = 40

Argument = TypeVar("Argument")


class Threads:
    """The threads of one database."""

    def __init__(self) -> None:
        # The queue is what run_sync() would wait in for a thread, but with a limit to the wait.
        self._queue = anyio.CapacityLimiter(_THREADS)
        self._borrowers = anyio.CapacityLimiter(_THREADS)
        self._finishers = anyio.CapacityLimiter(_THREADS)

    async def borrow(self, unit: UnitOfWork[Row], timeout: float) -> Connection[Row]:
        """Return the connection of *unit*: one that is idle at once, or else one that is waited for in a thread.

        *timeout* is in seconds and covers both waits: for a free thread, and in that thread for a connection.
        """
        connection = None if unit.borrowed else unit.idle_connection()
        if connection is not None:
            return connection
        deadline = monotonic() + timeout
        with anyio.move_on_after(timeout) as waiting:
            await self._queue.acquire_on_behalf_of(unit)
        if waiting.cancelled_caught:
            # Every thread is waiting for a connection.  Try once without a wait, for the error that describes the pool.
            return await anyio.to_thread.run_sync(partial(unit.connection, timeout=0.0), limiter=self._finishers)
        try:
            remaining = max(0.0, deadline - monotonic())
            return await anyio.to_thread.run_sync(partial(unit.connection, timeout=remaining), limiter=self._borrowers)
        finally:
            self._queue.release_on_behalf_of(unit)

    async def end(self, unit: UnitOfWork[object], how: Callable[[Argument], None], argument: Argument) -> None:
        """Call *how*, a method of *unit*, without blocking the event loop."""
        if unit.borrowed:
            # A cancelled request must still end its transaction and give its connection back.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(how, argument, limiter=self._finishers)
        else:
            how(argument)

    @asynccontextmanager
    async def connection(self, database: Database[Row]) -> AsyncIterator[Connection[Row]]:
        """Lend a connection of *database* for a block that is one unit of work."""
        unit = database.begin()
        try:
            yield await self.borrow(unit, database.timeout)
        except BaseException as error:
            await self.end(unit, unit.finish, error)
            raise
        await self.end(unit, unit.finish, None)
