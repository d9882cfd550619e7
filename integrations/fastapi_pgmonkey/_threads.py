"""The threads in which a request waits for its synchronous connection, and in which it commits.

The threads that wait are not the threads that run ``def`` endpoints, and those that commit are not the threads that
wait: else 40 requests that wait could keep the one that would give its connection back from running.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

import anyio
import anyio.to_thread
from psycopg import Connection

from pgmonkey import UnitOfWork

_THREADS = 40


class Threads:
    """The threads of one database."""

    def __init__(self) -> None:
        self._queue = anyio.CapacityLimiter(_THREADS)
        self._borrowers = anyio.CapacityLimiter(_THREADS)
        self._finishers = anyio.CapacityLimiter(_THREADS)

    async def borrow(self, unit: UnitOfWork[Any], timeout: float) -> Connection[Any]:
        """Return the unit's connection, having waited at most *timeout* seconds, for a thread and in it together."""
        deadline = monotonic() + timeout
        with anyio.move_on_after(timeout) as waiting:
            await self._queue.acquire_on_behalf_of(unit)
        if waiting.cancelled_caught:  # too many wait already; what the error says of the pool is true all the same
            return await anyio.to_thread.run_sync(partial(unit.connection, timeout=0.0), limiter=self._finishers)
        try:
            remaining = max(0.0, deadline - monotonic())
            return await anyio.to_thread.run_sync(partial(unit.connection, timeout=remaining), limiter=self._borrowers)
        finally:
            self._queue.release_on_behalf_of(unit)

    async def end(self, unit: UnitOfWork[Any], how: Callable[[Any], None], argument: Any) -> None:
        """Call a method of *unit* without blocking the event loop, to its end also when the request is cancelled."""
        if unit.borrowed:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(how, argument, limiter=self._finishers)
        else:
            how(argument)
