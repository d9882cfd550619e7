# Generated from _pool_async.py by tools/twins.py: change that file, then run the tool.

"""The pool: who may use which connection, and when one is made or closed.

Borrowers make the connections that they need themselves, so that a connection that cannot be made is the borrower's own
error, with the server's own words, and nobody waits for a background worker.  Checkout is last in, first out: warm
connections stay warm, and the ones not needed grow idle and are closed.

The lock guards the bookkeeping alone; nothing waits while holding it.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from time import monotonic
from types import FrameType

import psycopg
from psycopg import pq

from . import _forks
from ._blueprint import Blueprint
from ._colour import Queue, Runner, Waiter
from ._connector import Connector, PooledConnection
from ._lending import Label, Place, load
from ._liveness import is_alive, tells_of_a_lost_server
from ._lock import DeferringLock
from ._upkeep import Upkeep
from .errors import PoolClosedError, PoolFullError, PoolTimeoutError

logger = logging.getLogger("pgmonkey")

_IDLE = int(pq.TransactionStatus.IDLE)

_COUNTS = (
    *("usage_ms", "requests_num", "requests_queued", "requests_wait_ms", "requests_errors", "returns_bad"),
    *("connections_num", "connections_ms", "connections_errors", "connections_lost"),
)


class _Signal(Enum):
    """What a waiter may get instead of a connection."""

    ROOM = "the right to make one"
    CLOSED = "the pool was closed"


_Delivery = PooledConnection | _Signal


class Pool:
    """A pool of connections made from a blueprint.  It opens at the first borrow."""

    def __init__(self, plan: Blueprint) -> None:
        self.plan = plan
        self.name = f"pool {plan.name!r}"
        self._settings = plan.settings
        self._max_size = plan.max_size
        self._connector = Connector(plan, self.observe)
        self._checks = self._connector.checks
        self.close_reason = ""
        self._counts: dict[str, float] = dict.fromkeys(_COUNTS, 0)
        self.opened = False
        """Whether there ever was a connection."""
        self._last_error: str | None = None
        self.scavenge: Callable[[], Callable[[], None] | None] = lambda: None
        """Returns what takes back what was forgotten, if there is such a thing: done before anybody has to wait."""
        self._upkeep = Upkeep(self, plan.settings)
        self._reset_state()
        _forks.watch(self)

    def _reset_state(self) -> None:
        self._lock = DeferringLock(self._collect)
        self._dropped: deque[PooledConnection] = deque()
        self._idle: list[PooledConnection] = []
        self._lent: set[PooledConnection] = set()
        self._waiters: Queue[_Delivery] = Queue()
        self._size = 0
        self._upkeep.reset()

    def borrow(self, timeout: float | None = None, label: Label | None = None) -> PooledConnection:
        """Return a live connection that is the caller's until `give_back`.

        *timeout* is in seconds, the pool's own when None; *label* says for whom.  Raises `PoolTimeoutError`,
        `PoolFullError`, `PoolClosedError`, or what psycopg raises when a connection cannot be made.
        """
        pooled = None if self._checks else self.take_idle(None)
        if pooled is None:
            pooled = self._checkout(self._settings.timeout if timeout is None else timeout)
            pooled.borrowed_at = monotonic()
        pooled.lent_at = Place.above(sys._getframe(1), label, Runner.current())
        return pooled

    def wait_for_one(self, frame: FrameType) -> PooledConnection | None:
        """Lend a connection to *frame* when one comes free; None when there is no need to wait, but one to be made."""
        exhausted = not self._idle and self._size >= self._max_size
        pooled = self._checkout(self._settings.timeout) if exhausted else None
        if pooled is not None:
            pooled.borrowed_at, pooled.frame = monotonic(), frame
        return pooled

    def _checkout(self, timeout: float) -> PooledConnection:
        deadline = monotonic() + timeout
        self._counts["requests_num"] += 1
        scavenge = self.scavenge()
        while True:
            with self._lock:
                if self.close_reason:
                    raise PoolClosedError(f"{self.name}: {self.close_reason}")
                pooled = self._pop_idle()
                room = pooled is None and self._size < self._max_size
                self._size += room
                exhausted = pooled is None and not room
                waiter = self._enqueue(deadline) if exhausted and scavenge is None else None
            if exhausted and scavenge is not None:
                scavenge()
                scavenge = None
                continue
            if waiter is not None:
                pooled = self._wait(waiter, timeout)
            if pooled is None:
                return self._connect(deadline)
            try:
                self._connector.check(pooled, deadline)
            except BaseException as error:
                pooled.close()
                self.give_back(pooled)
                if not isinstance(error, psycopg.Error):
                    raise
                self._last_error = str(error)
                continue
            return pooled

    def _pop_idle(self) -> PooledConnection | None:
        while self._idle:
            pooled = self._idle.pop()
            if is_alive(pooled.pgconn, pooled.arrived) and monotonic() < pooled.expires:
                self._lent.add(pooled)
                return pooled
            # What ended this one may have ended all: each is looked at now, rather than by a borrower each.
            self._idle.append(pooled)
            self._evict()
        return None

    def _evict(self, *, all_of_them: bool = False) -> None:
        """Close the idle connections that are dead or too old.  The lock is held."""
        now = monotonic()
        kept: list[PooledConnection] = []
        for pooled in self._idle:
            if not all_of_them and now < pooled.expires and is_alive(pooled.pgconn, pooled.arrived):
                kept.append(pooled)
            else:
                pooled.close()
        lost = len(self._idle) - len(kept)
        self._idle = kept
        self._size -= lost
        self._counts["connections_lost"] += lost

    def _enqueue(self, deadline: float) -> Waiter[_Delivery]:
        limit = self._settings.max_waiting
        if limit and len(self._waiters) >= limit:
            self._counts["requests_errors"] += 1
            raise PoolFullError(f"{self.name}: {limit} borrowers are waiting already (max_waiting); {self._load()}")
        self._counts["requests_queued"] += 1
        return self._waiters.add(deadline)

    def _wait(self, waiter: Waiter[_Delivery], timeout: float) -> PooledConnection | None:
        started = monotonic()
        try:
            waiter.wait()
        except BaseException:
            with self._lock, suppress(ValueError):
                self._waiters.remove(waiter)
            # What was delivered meanwhile goes to the next in the queue.
            if waiter.result is _Signal.ROOM:
                self._free_room()
            elif waiter.result is not None and waiter.result is not _Signal.CLOSED:
                self.give_back(waiter.result)
            raise
        finally:
            self._counts["requests_wait_ms"] += int((monotonic() - started) * 1000)
        with self._lock:
            delivery = waiter.result
            if delivery is None:
                self._waiters.remove(waiter)
                self._counts["requests_errors"] += 1
                raise PoolTimeoutError(f"{self.name}: no connection came free within {timeout:g} s; {self._load()}")
        if delivery is _Signal.CLOSED:
            raise PoolClosedError(f"{self.name}: {self.close_reason}")
        return None if delivery is _Signal.ROOM else delivery

    def take_idle(self, frame: FrameType | None) -> PooledConnection | None:
        """Lend an idle connection to *frame*; None when there is none that is certainly alive."""
        if not self._idle:
            return None
        now = monotonic()
        with self._lock.plain:
            if not self._idle:
                return None
            pooled = self._idle.pop()
            self._lent.add(pooled)
            self._counts["requests_num"] += 1
            pooled.borrowed_at, pooled.frame = now, frame
        if pooled.arrived(0) or now >= pooled.expires:
            with self._lock:
                self._lent.discard(pooled)
                self._counts["requests_num"] -= 1
                pooled.frame = None
                self._idle.append(pooled)
            return None
        if self._dropped:
            self._collect()
        return pooled

    def give_back(self, pooled: PooledConnection) -> bool:
        """Take a connection back: hand it to the first waiter, keep it, or close it when it is not fit to be kept.

        Never waits, so nothing can interrupt it half-way.  Returns whether there is one less now.
        """
        # Lent before a fork or before `terminate`, at whose time a daemon thread may have died with the lock.
        if pooled not in self._lent:
            return True
        fit = pooled.pgconn.transaction_status == _IDLE
        now = monotonic()
        with self._lock.plain:
            self._lent.discard(pooled)
            self._counts["usage_ms"] += (now - pooled.borrowed_at) * 1000
            keep = fit and not self.close_reason and now < pooled.expires
            if keep:
                pooled.lent_at = pooled.frame = pooled.label = None
                pooled.reported = False
                if self._waiters:
                    self._lent.add(pooled)
                    self._waiters.popleft().deliver(pooled)
                else:
                    pooled.idle_since = now
                    self._idle.append(pooled)
            else:
                self._counts["returns_bad"] += not fit
        if self._dropped:
            self._collect()
        if not keep:
            pooled.close()
            self._free_room()
        return not keep

    def replenish(self) -> None:
        """Have connections made in the place of those that were lost."""
        if self._size < self._settings.min_size:
            self._upkeep.start()

    def reclaim(self, pooled: PooledConnection) -> None:
        """Take back a connection whose borrower was garbage-collected, at whatever moment that happened."""
        if _forks.just_forked() or pooled not in self._lent:
            return  # it is the parent's, or closed already
        self._dropped.append(pooled)
        self._collect()

    def _collect(self) -> None:
        while self._dropped and self._lock.free():
            dropped = self._dropped.popleft()
            dropped.close()
            self.give_back(dropped)

    def _free_room(self) -> None:
        with self._lock:
            if self._waiters and not self.close_reason:
                self._waiters.popleft().deliver(_Signal.ROOM)
            else:
                self._size -= 1

    def _connect(self, deadline: float | None) -> PooledConnection:
        """Make a connection for which there is room already, and count it as lent."""
        self._counts["connections_num"] += 1
        started = monotonic()
        try:
            pooled = self._connector.connect(deadline)
        except BaseException as error:
            if isinstance(error, psycopg.Error):
                self._last_error = str(error)
            self._counts["connections_errors"] += 1
            self._free_room()
            if isinstance(error, psycopg.OperationalError):
                self._review()
            raise
        self._counts["connections_ms"] += int((monotonic() - started) * 1000)
        with self._lock:
            self._lent.add(pooled)
        self.opened, self._last_error = True, None
        self._upkeep.start(hurry=True)
        return pooled

    def observe(self, error: psycopg.Error, pgconn: pq.abc.PGconn) -> None:
        """Take note of an error of one of the pool's connections: it may concern all of them."""
        lost = tells_of_a_lost_server(error, pgconn)
        if lost:
            logger.info("%s: replacing all connections: %s", self.name, error)
        if lost or (isinstance(error, psycopg.OperationalError) and error.sqlstate is None):
            self._review(all_of_them=lost)

    def _review(self, *, all_of_them: bool = False) -> None:
        """Replace the idle connections that are dead; or else all, the lent ones when they come back."""
        with self._lock:
            self._evict(all_of_them=all_of_them)
            for pooled in self._lent if all_of_them else ():
                pooled.expires = 0.0
        self._upkeep.start()

    def forget_plans(self) -> None:
        """Have every connection prepare its statements anew: the tables have changed under them."""
        with self._lock:
            for pooled in [*self._idle, *self._lent]:
                pooled.prepared.mark_stale()

    @property
    def settled(self) -> bool:
        """Whether there are as many connections as there should be."""
        return self._size == self._settings.min_size

    def grow(self) -> bool:
        """Make a connection if there are fewer than ``min_size``; tell whether one was made."""
        with self._lock:
            if self.close_reason or self._size >= self._settings.min_size:
                return False
            self._size += 1
        self.give_back(self._connect(None))
        return True

    def shrink(self) -> bool:
        """Close what is dead, too old or idle too long; tell whether there are more connections than ``min_size``."""
        now = monotonic()
        with self._lock:
            self._evict()
            for pooled in list(self._idle):  # the ones idle longest come first
                if self._size > self._settings.min_size and now - pooled.idle_since >= self._settings.max_idle:
                    self._idle.remove(pooled)
                    self._size -= 1
                    pooled.close()
            return self._size > self._settings.min_size

    @property
    def lent(self) -> list[PooledConnection]:
        """The connections that are out."""
        with self._lock:
            return list(self._lent)

    def open(self) -> None:
        """Make the first connection now, so that a wrong configuration fails here; do nothing when there was one."""
        if not self.opened:
            self.give_back(self._checkout(self._settings.timeout))

    def close(self, reason: str = "the pool is closed") -> None:
        """Close idle connections now and lent ones when they are given back; whoever waits gets `PoolClosedError`.

        Never waits and may be called from anywhere, also after the event loop has ended.
        """
        with self._lock:
            self.close_reason = self.close_reason or reason
            self._evict(all_of_them=True)
            waiters, self._waiters = self._waiters, Queue()
            lent = list(self._lent)
        self._upkeep.stop()
        for waiter in waiters:
            waiter.deliver(_Signal.CLOSED)
        for pooled in lent:
            logger.warning("%s: closed while a connection is still out: %s", self.name, str(pooled))

    def terminate(self, reason: str = "the pool is closed") -> None:
        """Close every connection now, also the lent ones: for when nobody can give them back any more."""
        with self._lock:
            lent, self._lent = self._lent, set()
        self.close(reason)
        for pooled in lent:
            pooled.close()

    @property
    def closed(self) -> bool:
        """Whether the pool was closed."""
        return bool(self.close_reason)

    def after_fork_in_child(self) -> None:
        """Start empty: what was open belongs to the parent, and must not be ended from here."""
        for pooled in [*self._idle, *self._lent]:
            pooled.disown()
        self._reset_state()

    def stats(self) -> dict[str, int]:
        """Return counters named as in psycopg_pool: sizes in connections, times in milliseconds."""
        with self._lock:
            sizes = {"pool_min": self._settings.min_size, "pool_max": self._max_size, "pool_size": self._size}
            sizes.update(pool_available=len(self._idle), requests_waiting=len(self._waiters))
            return {**sizes, **{name: int(count) for name, count in self._counts.items()}}

    def _load(self) -> str:
        return load(self._lent, self._max_size, len(self._waiters), self._last_error)
