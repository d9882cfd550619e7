"""The pool: who may use which connection, and when one is made or closed.

Borrowers make the connections that they need themselves, so that a connection that cannot be made is the borrower's own
error, with the server's own words, and nobody waits for a background worker.  Checkout is last in, first out: warm
connections stay warm, and the ones not needed grow idle and are closed.  A timer fills the pool up to ``min_size`` and
closes what is too old.

The lock guards the bookkeeping alone; nothing waits while holding it.
"""

from __future__ import annotations

import logging
import traceback
from collections import deque
from enum import Enum
from time import monotonic
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from . import _forks
from ._blueprint import Blueprint
from ._colour_async import Ticker, Waiter
from ._lending import Label, Place, Pooled, lendable
from ._liveness import is_alive
from ._lock import DeferringLock
from .errors import PoolClosedError, PoolFullError, PoolTimeoutError

logger = logging.getLogger("pgmonkey")

_TICK = 5.0
_RETRY = 1.0
_COUNTS = (
    *("usage_ms", "requests_num", "requests_queued", "requests_wait_ms", "requests_errors", "returns_bad"),
    *("connections_num", "connections_ms", "connections_errors", "connections_lost"),
)


AsyncPooledConnection = Pooled[AsyncConnection[Any]]


class _Signal(Enum):
    """What a waiter may get instead of a connection."""

    ROOM = "the right to make one"
    CLOSED = "the pool was closed"


_Delivery = AsyncPooledConnection | _Signal


class AsyncPool:
    """A pool of connections made from a blueprint.  It opens at the first borrow."""

    def __init__(self, plan: Blueprint) -> None:
        self.plan = plan
        self._settings = plan.settings
        self._max_size = plan.max_size
        connection_class: Any = plan.settings.connection_class or AsyncConnection
        self._class = lendable(connection_class)
        self._close_reason = ""
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._opened = False
        self._last_error: str | None = None
        self._failing_since: float | None = None
        self._reset_state()
        _forks.watch(self)

    def _reset_state(self) -> None:
        self._lock = DeferringLock(self._collect)
        self._dropped: deque[AsyncPooledConnection] = deque()
        self._idle: list[AsyncPooledConnection] = []
        self._lent: set[AsyncPooledConnection] = set()
        self._waiters: deque[Waiter[_Delivery]] = deque()
        self._size = 0
        self._ticker: Ticker | None = None

    # -- borrow and give back -------------------------------------------------------------------------------------

    async def borrow(self, timeout: float | None = None, label: Label | None = None) -> AsyncPooledConnection:
        """Return a live connection that is the caller's until `give_back`.

        *timeout* is in seconds, the pool's own when None; *label* says for whom.  Raises `PoolTimeoutError`,
        `PoolFullError`, `PoolClosedError`, or what psycopg raises when a connection cannot be made.
        """
        pooled = await self._checkout(self._settings.timeout if timeout is None else timeout)
        pooled.borrowed_at = monotonic()
        pooled.place = Place.here(label)
        return pooled

    async def _checkout(self, timeout: float) -> AsyncPooledConnection:
        deadline = monotonic() + timeout
        self._counts["requests_num"] += 1
        while True:
            with self._lock:
                if self._close_reason:
                    raise PoolClosedError(f"{self._name}: {self._close_reason}")
                pooled = self._pop_idle()
                waiter: Waiter[_Delivery] | None = None
                if pooled is None:
                    if self._size < self._max_size:
                        self._size += 1
                    else:
                        waiter = self._enqueue()
            if waiter is not None:
                pooled = await self._wait(waiter, timeout, deadline)
            if pooled is None:
                return await self._connect()
            if await self._passes_check(pooled):
                return pooled
            self._drop(pooled)

    def _pop_idle(self) -> AsyncPooledConnection | None:
        while self._idle:
            pooled = self._idle.pop()
            if is_alive(pooled.connection.pgconn) and monotonic() < pooled.expires:
                self._lent.add(pooled)
                return pooled
            self._counts["connections_lost"] += 1
            self._size -= 1
            pooled.close()
        return None

    def _enqueue(self) -> Waiter[_Delivery]:
        limit = self._settings.max_waiting
        if limit and len(self._waiters) >= limit:
            self._counts["requests_errors"] += 1
            raise PoolFullError(f"{self._name}: {limit} borrowers are waiting already (max_waiting); {self._load()}")
        waiter: Waiter[_Delivery] = Waiter()
        self._waiters.append(waiter)
        self._counts["requests_queued"] += 1
        return waiter

    async def _wait(self, waiter: Waiter[_Delivery], timeout: float, deadline: float) -> AsyncPooledConnection | None:
        started = monotonic()
        try:
            await waiter.wait(deadline - started)
        except BaseException:
            # Cancelled or interrupted: what was delivered meanwhile goes to the next in the queue.
            with self._lock:
                self._leave_queue(waiter)
            self._return_delivery(waiter.result)
            raise
        finally:
            self._counts["requests_wait_ms"] += int((monotonic() - started) * 1000)
        with self._lock:
            delivery = waiter.result
            if delivery is None:
                self._leave_queue(waiter)
                self._counts["requests_errors"] += 1
                raise PoolTimeoutError(f"{self._name}: no connection came free within {timeout:g} s; {self._load()}")
        if delivery is _Signal.CLOSED:
            raise PoolClosedError(f"{self._name}: {self._close_reason}")
        return None if delivery is _Signal.ROOM else delivery

    def _leave_queue(self, waiter: Waiter[_Delivery]) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def _return_delivery(self, delivery: _Delivery | None) -> None:
        if delivery is _Signal.ROOM:
            self._free_room()
        elif delivery is not None and delivery is not _Signal.CLOSED:
            self.give_back(delivery)

    def give_back(self, pooled: AsyncPooledConnection) -> None:
        """Take a connection back: hand it to the first waiter, keep it, or close it when it is not fit to be kept.

        Never waits, so nothing can interrupt it half-way.
        """
        # Lent before a fork, when the parent owns it, or before `terminate`: then at the end of the process, where a
        # daemon thread may have died with the lock in its hands.
        if pooled not in self._lent:
            return
        fit = pooled.connection.pgconn.transaction_status == TransactionStatus.IDLE
        now = monotonic()
        with self._lock:
            self._lent.discard(pooled)
            self._counts["usage_ms"] += int((now - pooled.borrowed_at) * 1000)
            if fit and not self._close_reason and now < pooled.expires:
                pooled.place = None
                if self._waiters:
                    self._lent.add(pooled)
                    self._waiters.popleft().deliver(pooled)
                else:
                    pooled.idle_since = now
                    self._idle.append(pooled)
                return
            self._counts["returns_bad"] += not fit
        pooled.close()
        self._free_room()

    def reclaim(self, pooled: AsyncPooledConnection) -> None:
        """Take back a connection whose borrower was garbage-collected, at whatever moment that happened."""
        self._dropped.append(pooled)
        self._collect()

    def _collect(self) -> None:
        while self._dropped and self._lock.free():
            dropped = self._dropped.popleft()
            dropped.close()
            self.give_back(dropped)

    def _drop(self, pooled: AsyncPooledConnection) -> None:
        with self._lock:
            self._lent.discard(pooled)
            self._counts["connections_lost"] += 1
        pooled.close()
        self._free_room()

    def _free_room(self) -> None:
        with self._lock:
            if self._waiters and not self._close_reason:
                self._waiters.popleft().deliver(_Signal.ROOM)
            else:
                self._size -= 1

    # -- connections ----------------------------------------------------------------------------------------------

    async def _connect(self) -> AsyncPooledConnection:
        """Make a connection for which there is room already, and count it as lent."""
        try:
            pooled = await self._make()
        except BaseException as error:
            if isinstance(error, psycopg.Error):
                self._last_error = str(error)
            else:
                # Cancelled half-way: these frames hold the connection in the making, for whose next word the server
                # would wait a minute (authentication_timeout), holding up whoever drops a database.
                traceback.clear_frames(error.__traceback__)
            self._counts["connections_errors"] += 1
            self._free_room()
            raise
        with self._lock:
            self._lent.add(pooled)
            if self._ticker is None and self._size != self._settings.min_size and not self._close_reason:
                self._ticker = Ticker(self.maintain)
        return pooled

    async def _make(self) -> AsyncPooledConnection:
        self._counts["connections_num"] += 1
        started = monotonic()
        # The pooled object is always in autocommit; what is lent over it has the mode that was asked for.
        connection: AsyncConnection[Any] = await self._class.connect(autocommit=True, **self.plan.connect)
        self._counts["connections_ms"] += int((monotonic() - started) * 1000)
        pooled = AsyncPooledConnection(connection, self._settings.max_lifetime)
        if self._settings.configure is not None:
            try:
                await self._settings.configure(connection)
                if connection.pgconn.transaction_status != TransactionStatus.IDLE:
                    raise psycopg.ProgrammingError("the 'configure' function left a transaction open")
            except BaseException:
                pooled.close()
                raise
        self._opened, self._last_error = True, None
        return pooled

    async def _passes_check(self, pooled: AsyncPooledConnection) -> bool:
        try:
            if self._settings.check_on_checkout:
                await pooled.connection.execute("SELECT 1")
            if self._settings.check is not None:
                await self._settings.check(pooled.connection)
        except psycopg.Error:
            return False
        except BaseException:
            self._drop(pooled)
            raise
        return True

    async def maintain(self) -> float | None:
        """Fill up to ``min_size``, close what is too old or idle too long.

        Return the seconds until the next time, or None when there is nothing to do before another connection is made:
        a pool that is settled has no thread, which would trouble those who fork.
        """
        self._close_old()
        while self._grow():
            try:
                pooled = await self._connect()
            except Exception as error:
                self._report_failure(error)
                return None if self._close_reason else _RETRY
            self._failing_since = None
            self.give_back(pooled)
        with self._lock:
            if self._size <= self._settings.min_size:
                self._ticker = None
                return None
        return min(_TICK, self._settings.max_idle / 4, self._settings.max_lifetime / 4)

    def _grow(self) -> bool:
        with self._lock:
            wanted = self._size < self._settings.min_size and not self._close_reason
            self._size += wanted
            return wanted

    def _close_old(self) -> None:
        now = monotonic()
        old: list[AsyncPooledConnection] = []
        with self._lock:
            for pooled in list(self._idle):  # the ones idle longest come first
                surplus = self._size > self._settings.min_size and now - pooled.idle_since >= self._settings.max_idle
                if surplus or now >= pooled.expires:
                    self._idle.remove(pooled)
                    self._size -= 1
                    old.append(pooled)
        for pooled in old:
            pooled.close()

    def _report_failure(self, error: Exception) -> None:
        now = monotonic()
        if self._close_reason:
            return
        if self._failing_since is None:
            self._failing_since = now
            logger.warning("%s: cannot connect, trying again: %s", self._name, error)
        elif 0 < self._settings.reconnect_timeout <= now - self._failing_since:
            self._failing_since = now
            logger.error("%s: cannot connect for %g s: %s", self._name, self._settings.reconnect_timeout, error)
            if self._settings.reconnect_failed is not None:
                self._settings.reconnect_failed(self)

    # -- life -----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Make the first connection now, so that a wrong configuration fails here; do nothing when there was one."""
        if not self._opened:
            self.give_back(await self._checkout(self._settings.timeout))

    def close(self, reason: str = "the pool is closed") -> None:
        """Close idle connections now and lent ones when they are given back; whoever waits gets `PoolClosedError`.

        Never waits and may be called from anywhere, also after the event loop has ended.
        """
        with self._lock:
            self._close_reason = self._close_reason or reason
            idle, waiters, ticker = self._idle, self._waiters, self._ticker
            self._idle, self._waiters, self._ticker = [], deque(), None
            self._size -= len(idle)
        if ticker is not None:
            ticker.stop()
        for waiter in waiters:
            waiter.deliver(_Signal.CLOSED)
        for pooled in idle:
            pooled.close()

    def terminate(self, reason: str = "the pool is closed") -> None:
        """Close every connection now, also the lent ones: for when nobody can give them back any more."""
        self.close(reason)
        with self._lock:
            lent, self._lent = self._lent, set()
        for pooled in lent:
            pooled.close()

    @property
    def closed(self) -> bool:
        """Whether the pool was closed."""
        return bool(self._close_reason)

    def after_fork_in_child(self) -> None:
        """Start empty: what was open belongs to the parent, and must not be ended from here."""
        for pooled in [*self._idle, *self._lent]:
            _forks.disown(pooled.connection.pgconn)
        self._reset_state()

    # -- what it tells --------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return f"pool {self.plan.name!r}"

    def stats(self) -> dict[str, int]:
        """Return counters named as in psycopg_pool: sizes in connections, times in milliseconds."""
        with self._lock:
            return {
                "pool_min": self._settings.min_size,
                "pool_max": self._max_size,
                "pool_size": self._size,
                "pool_available": len(self._idle),
                "requests_waiting": len(self._waiters),
                **self._counts,
            }

    def _load(self) -> str:
        now = monotonic()
        parts = [f"{len(self._lent)} of at most {self._max_size} in use, {len(self._waiters)} waiting"]
        held = [pooled for pooled in self._lent if pooled.place is not None]
        if held:
            longest = min(held, key=lambda pooled: pooled.borrowed_at)
            parts.append(f"held longest: {now - longest.borrowed_at:.1f} s, borrowed {longest.place}")
        if self._last_error is not None:
            parts.append(f"last connection error: {self._last_error}")
        return "; ".join(parts)
