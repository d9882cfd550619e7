"""A unit of work: what a request, or a transaction block, does on one connection, committed or rolled back as one."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Generic, Protocol

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg.rows import Row

from ._colour_async import Lock, cannot_wait, take
from ._fast_async import MISS, AsyncFastPath, Read
from ._lease_async import AsyncLease
from ._lending import Label
from ._mode import USUAL, Mode
from ._statement import Params
from .errors import CancelledUnitError, GivenBackError

SessionValues = Mapping[str, object]


class AsyncSource(Protocol):
    """What a unit of work borrows from."""

    def borrow(self, *, timeout: float | None, label: Label | None) -> Awaitable[AsyncLease]:
        """Lend a connection that is not in autocommit."""
        ...

    def session_values(self) -> SessionValues:
        """Return what is to be set for the transaction."""
        ...


class AsyncUnitOfWork(Generic[Row]):
    """What a request, or a transaction block, does: all of it on one connection, committed or rolled back as one.

    Nothing is borrowed before the first verb, or `connection`, needs it.  `pgmonkey.AsyncDatabase.begin` makes one.
    *reads_alone* lets a first verb that only reads have a read-only transaction of its own, in one round trip: the
    transaction begins with what comes next.
    """

    def __init__(
        self,
        source: AsyncSource,
        mode: Mode,
        label: Label | None = None,
        on_borrow: Callable[[], None] | None = None,
        *,
        reads_alone: bool = False,
    ) -> None:
        self.source = source
        self.finished = False
        self._reads_alone = reads_alone
        self._mode = mode
        self._label = label
        self._on_borrow = on_borrow
        self._lease: AsyncLease | None = None
        self._cancelled: CancelledUnitError | None = None
        # One task of a request may commit while another runs a verb.  Two may both be the first to need the connection,
        # and the client may go while it is borrowed, or given back.
        self._working = Lock()
        self._leasing = Lock()

    async def connection(self, *, timeout: float | None = None) -> AsyncConnection[Row]:
        """Return the connection of this unit, borrowed at the first call.

        *timeout* is how long to wait for a free one, in seconds, the pool's ``timeout`` by default.  Its
        ``transaction()`` blocks are savepoints: it is `finish` that commits.
        """
        leasing = self._leasing
        if not take(leasing):
            await leasing.acquire()
        try:
            lease = self._lease or await self._borrow(timeout)
            connection: AsyncConnection[Row] = lease.connection
            return connection
        finally:
            leasing.release()

    async def _first_lease(self) -> AsyncLease:
        leasing = self._leasing
        if not take(leasing):
            await leasing.acquire()
        try:
            return self._lease or await self._borrow(None)
        finally:
            leasing.release()

    async def _borrow(self, timeout: float | None) -> AsyncLease:
        if self.finished or self._cancelled is not None:
            raise self._over()
        lease = await self.source.borrow(timeout=timeout, label=self._label)
        try:
            if self.finished or self._cancelled is not None:  # meanwhile, by another task of the request
                raise self._over()
            lease.in_unit = True
            if self._mode is not USUAL:
                await _set_mode(lease.connection, self._mode)
            if values := self.source.session_values():
                await set_values(lease.connection, values)
        except BaseException as error:
            await lease.finish(error)
            raise
        self._lease = lease
        if self._on_borrow is not None:
            self._on_borrow()
        return lease

    def _over(self) -> psycopg.Error:
        return self._cancelled or GivenBackError("this unit of work is finished, and its connection was given back")

    @property
    def borrowed(self) -> bool:
        """Whether a connection was needed."""
        return self._lease is not None

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[bool]:
        """Keep the unit from being finished while a verb runs; False when it was finished before."""
        async with self._working:
            yield not self.finished

    async def answer(self, fast: AsyncFastPath, query: Any, params: Params, read: Read) -> Any:
        """Do as `AsyncFastPath.run` does, as part of this unit."""
        working = self._working
        if not take(working):
            await working.acquire()
        try:
            if self.finished:
                return MISS
            lease = self._lease
            if lease is not None or not self._reads_alone:
                lease = lease or await self._first_lease()
                return await fast.run_on(lease, query, params, read, alone=False)
            self._reads_alone = False
            lease = self._lease_for_reading(fast, query, params) or await self._first_lease()
            try:
                return await fast.run_on(lease, query, params, read, alone=True)
            finally:
                if lease.pooled is not None:
                    lease.settle(lease.pooled)
        finally:
            working.release()

    def _lease_for_reading(self, fast: AsyncFastPath, query: Any, params: Params) -> AsyncLease | None:
        """Borrow in a short way; None when it is to be done in the usual one."""
        if self._mode is not USUAL or self._cancelled is not None or self.source.session_values():
            return None
        pooled = fast.take_for_reading(query, params, sys._getframe(1))
        if pooled is None:
            return None
        pooled.label = self._label
        lease = self._lease = AsyncLease(fast.pool, pooled, autocommit=False)
        lease.row_factory, lease.in_unit = fast.row_factory, True
        if self._on_borrow is not None:
            self._on_borrow()
        return lease

    async def set_mode(self, mode: Mode) -> None:
        """Choose the mode of the transaction; raise `psycopg.ProgrammingError` when it has begun already."""
        if self._lease is not None:
            connection = self._lease.connection
            if connection.pgconn.transaction_status != TransactionStatus.IDLE:
                raise psycopg.ProgrammingError(
                    "the transaction has begun already; give its isolation and mode before its first statement"
                )
            await _set_mode(connection, mode)
        self._mode = mode

    # -- the end --------------------------------------------------------------------------------------------------

    async def finish(self, error: BaseException | None = None) -> None:
        """Commit, or roll back when there is an *error*, and give the connection back; a second call does nothing.

        Raises what makes the COMMIT fail, and `CancelledUnitError` instead of committing what was cancelled.
        """
        if not self.finished:
            self.finished = True
            inside = units.get()
            units.set(() if inside == (self,) else tuple(unit for unit in inside if not unit.finished))
            if self._lease is not None:
                await self._end(error)
            if self._cancelled is not None and error is None:
                raise self._cancelled

    async def roll_back(self, error: BaseException) -> None:
        """Undo what was done and give the connection back; the unit goes on, on another one when it needs it."""
        await self._end(error)
        self._lease = None

    async def cancel(self, reason: str) -> None:
        """Undo what was done, end the statement that is running on the server, and refuse everything that follows."""
        self._cancelled = CancelledUnitError(reason)
        lease = self._lease
        if lease is not None:
            async with self._leasing:
                await lease.cancel(self._cancelled)
            await self.roll_back(self._cancelled)

    async def _end(self, error: BaseException | None) -> None:
        lease = self._lease
        if lease is None:
            return
        if error is not None and cannot_wait(error):
            await lease.finish(error)
            return
        working, leasing = self._working, self._leasing
        try:
            if not take(working):
                await working.acquire()
            try:
                if not take(leasing):
                    await leasing.acquire()
                try:
                    await lease.finish(error)
                finally:
                    leasing.release()
            finally:
                working.release()
        except BaseException:
            lease.abandon()  # when interrupted before it was finished
            raise


units: ContextVar[tuple[AsyncUnitOfWork[Any], ...]] = ContextVar("pgmonkey_units", default=())
"""The units of work that the current context is in, the innermost last."""


def enter(unit: AsyncUnitOfWork[Row]) -> AsyncUnitOfWork[Row]:
    """Let the verbs of the current context join *unit*."""
    units.set((*units.get(), unit))
    return unit


async def set_values(connection: AsyncConnection[Any], values: SessionValues) -> None:
    """Set configuration parameters until the end of the transaction."""
    query: Any = "SELECT " + ", ".join(["set_config(%s, %s, true)"] * len(values))
    params = [part for name, value in values.items() for part in (name, None if value is None else str(value))]
    await connection.execute(query, params)


async def _set_mode(connection: AsyncConnection[Any], mode: Mode) -> None:
    await connection.set_isolation_level(mode.isolation)
    await connection.set_read_only(mode.read_only)
    await connection.set_deferrable(mode.deferrable)
