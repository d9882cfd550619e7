"""The ledger of a pool: which connections are idle and which are lent, who waits, and how many there may be.

It decides and counts; it never waits, so nothing can interrupt it half-way.  `AsyncPool` and `Pool` add
the waiting.  The lock guards the bookkeeping alone and is never held while a user's code or the network is waited for.

A finalizer may run in the middle of any section that the lock guards, on the very thread that holds it.  So it never
waits for the lock: it notes the connection that it drops, and the holder of the lock takes that back afterwards.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from time import monotonic
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGconn

from .._config.blueprint import Blueprint
from .._driver.liveness import is_alive, is_lost_server
from ..errors import PoolClosedError, PoolFullError, PoolTimeoutError
from . import forks
from .pooled import Pooled

logger = logging.getLogger("pgmonkey")

P = TypeVar("P", bound=Pooled[Any, Any])
Q = TypeVar("Q", bound=deque[Any])

# As plain numbers, which are faster to compare than members of an enumeration.
_IDLE, _NO_PIPELINE = int(pq.TransactionStatus.IDLE), int(pq.PipelineStatus.OFF)
_COUNTS = (
    *("usage_ms", "requests_num", "requests_queued", "requests_wait_ms", "requests_errors", "returns_bad"),
    *("connections_num", "connections_ms", "connections_errors", "connections_lost"),
)


class Signal(Enum):
    """What a waiter may get instead of a connection."""

    ROOM = "the right to make one"
    CLOSED = "the pool was closed"


class Waiter(Protocol[P]):
    """A place in the queue."""

    result: P | Signal | None


class Upkeep(Protocol):
    """What keeps a pool in order in the background."""

    def start(self) -> None:
        """Begin, if there is something to do."""
        ...

    def reset(self) -> None:
        """Drop the timer and the schedule, in a forked child."""
        ...


class Ledger(Generic[P, Q]):
    """The bookkeeping of one pool; *new_queue* makes the queue of its waiters.

    The connection given back last is lent first, so that those not needed stay idle long enough to be closed.
    """

    def __init__(self, blueprint: Blueprint, new_queue: Callable[[], Q], upkeep: Upkeep) -> None:
        self.blueprint = blueprint
        self.name = f"pool {blueprint.name!r}"
        self.close_reason = ""
        self.opened = False
        """Whether there ever was a connection."""
        self.scavenge: Callable[[], Callable[[], None] | None] = lambda: None
        """Returns a function that takes back forgotten connections, or None; called before a borrower waits."""
        self._settings = blueprint.settings
        self._max_size = blueprint.max_size
        self._new_queue = new_queue
        self._upkeep = upkeep
        self._counters: dict[str, float] = dict.fromkeys(_COUNTS, 0)
        self._last_error: str | None = None
        self._start_empty()
        forks.register(self)

    def _start_empty(self) -> None:
        self._lock = threading.Lock()
        self._dropped: deque[P] = deque()
        self._idle: list[P] = []
        self._lent: set[P] = set()
        self._waiters = self._new_queue()
        self._size = 0

    # -- checkout ---------------------------------------------------------------------------------------------------

    def take_idle(self, frame: FrameType | None) -> P | None:
        """Lend an idle connection to *frame*; None when there is none that is certainly alive."""
        # Looked at without the lock first: under load there is rarely an idle one.
        if not self._idle:
            return None
        now = monotonic()
        with self._lock:
            if not self._idle:
                return None
            pooled = self._idle.pop()
            self._lent.add(pooled)
            self._counters["requests_num"] += 1
            pooled.borrowed_at, pooled.frame = now, frame
        # Anything that has arrived may be a notification or the end: `_pop_idle` reads it and tells.
        certain = not pooled.arrived(0) and now < pooled.expires
        if not certain:
            with self._lock:
                self._lent.discard(pooled)
                self._counters["requests_num"] -= 1
                pooled.frame = None
                self._idle.append(pooled)
        if self._dropped:
            self._take_dropped()
        return pooled if certain else None

    @property
    def exhausted(self) -> bool:
        """Whether a borrower would have to wait at this moment."""
        return not self._idle and self._size >= self._max_size

    def _claim(self) -> P | Signal | None:
        """Return an idle connection, or the right to make one; None when a borrower has to wait."""
        if self.close_reason:
            raise PoolClosedError(f"{self.name}: {self.close_reason}")
        pooled = self._pop_idle()
        if pooled is None and self._size < self._max_size:
            self._size += 1
            return Signal.ROOM
        return pooled

    def _pop_idle(self) -> P | None:
        while self._idle:
            pooled = self._idle.pop()
            if is_alive(pooled.pgconn, pooled.arrived) and monotonic() < pooled.expires:
                self._lent.add(pooled)
                return pooled
            # What ended this one may have ended all.  Look at each now: otherwise every borrower would find one dead.
            self._idle.append(pooled)
            self._evict()
        return None

    def _may_wait(self) -> bool:
        """Tell whether one more borrower may wait, and count it."""
        limit = self._settings.max_waiting
        full = 0 < limit <= len(self._waiters)
        self._counters["requests_errors" if full else "requests_queued"] += 1
        return not full

    def _full(self) -> PoolFullError:
        limit = self._settings.max_waiting
        return PoolFullError(f"{self.name}: {limit} borrowers are waiting already (max_waiting); {self._load()}")

    def _outcome_of_wait(self, waiter: Waiter[P], timeout: float) -> P | Signal:
        """Return what *waiter* got in its *timeout* seconds; raise `PoolTimeoutError` or `PoolClosedError`."""
        with self._lock:
            result = waiter.result
            if result is None:
                # Not there when the pool was closed a moment ago: then it tells nobody any more.
                with suppress(ValueError):
                    self._waiters.remove(waiter)
                self._counters["requests_errors"] += 1
        self._take_dropped()
        if result is Signal.CLOSED or (result is None and self.close_reason):
            raise PoolClosedError(f"{self.name}: {self.close_reason}")
        if result is None:
            # Not under the lock: this asks the program for the label of a borrower.
            raise PoolTimeoutError(f"{self.name}: no connection came free within {timeout:g} s; {self._load()}")
        return result

    def _leave_queue(self, waiter: Waiter[P]) -> None:
        """Remove a *waiter* that was interrupted; what it got meanwhile goes to the next one."""
        with self._lock, suppress(ValueError):
            self._waiters.remove(waiter)
        result = waiter.result
        if result is Signal.ROOM:
            self._free_room()
        elif isinstance(result, Pooled):
            self.give_back(result)
        else:
            self._take_dropped()

    # -- giving back ------------------------------------------------------------------------------------------------

    def give_back(self, pooled: P) -> bool:
        """Take a connection back: hand it to the first waiter, keep it, or close it when it is not fit to be kept.

        Returns False if the connection was kept or handed on.
        """
        # It may have been lent before a fork, or before `terminate`: then it is not in the books any more, and a
        # thread that has died may hold the lock of that time.
        if pooled not in self._lent:
            return True
        # A lost connection has another status, so this tells the dead from the living, too.  A pipeline may have been
        # left open by a task that was cancelled in executemany(): the next borrower could not use it.
        fit = pooled.pgconn.transaction_status == _IDLE and pooled.pgconn.pipeline_status == _NO_PIPELINE
        now = monotonic()
        with self._lock:
            self._lent.discard(pooled)
            self._counters["usage_ms"] += (now - pooled.borrowed_at) * 1000
            keep = fit and not self.close_reason and now < pooled.expires
            if keep:
                pooled.lent_at = pooled.frame = pooled.label = None
                pooled.reported = False
                if self._waiters:
                    # Never through the idle list, from which a borrower that came later could take it.
                    self._lent.add(pooled)
                    self._waiters.popleft().deliver(pooled)
                else:
                    pooled.idle_since = now
                    self._idle.append(pooled)
            else:
                self._counters["returns_bad"] += not fit
        if self._dropped:
            self._take_dropped()
        if not keep:
            pooled.close()
            self._free_room()
        return not keep

    def reclaim(self, pooled: P) -> None:
        """Take back a connection whose borrower was garbage-collected, at whatever moment that happened."""
        if forks.just_forked() or pooled not in self._lent:
            return  # it is the parent's, or closed already
        self._dropped.append(pooled)
        self._take_dropped()

    def _take_dropped(self) -> None:
        while self._dropped and not self._lock.locked():
            try:
                dropped = self._dropped.popleft()
            except IndexError:  # another thread has taken it
                return
            dropped.close()
            self.give_back(dropped)

    def _free_room(self) -> None:
        """Let a waiter make a connection in the place of one that is gone, or count one less."""
        with self._lock:
            if self._waiters and not self.close_reason:
                self._waiters.popleft().deliver(Signal.ROOM)
            else:
                self._size -= 1
        self._take_dropped()

    # -- new, failed and expired connections ------------------------------------------------------------------------

    def _add(self, pooled: P, seconds: float) -> None:
        """Count a new connection, for which there was room, as lent; it took *seconds* to make."""
        self._counters["connections_ms"] += int(seconds * 1000)
        with self._lock:
            self._lent.add(pooled)
        self.opened, self._last_error = True, None
        self._take_dropped()

    def _note_failure(self, error: BaseException) -> None:
        """Free the room for a connection that could not be made because of *error*."""
        if isinstance(error, psycopg.Error):
            self._last_error = str(error)
        self._counters["connections_errors"] += 1
        self._free_room()
        if isinstance(error, psycopg.OperationalError):
            self._review()

    def observe(self, error: psycopg.Error, pgconn: PGconn) -> None:
        """Note an error of one of the pool's connections: it may concern all of them."""
        lost = is_lost_server(error, pgconn)
        if lost:
            logger.info("%s: replacing all connections: %s", self.name, error)
        if lost or (isinstance(error, psycopg.OperationalError) and error.sqlstate is None):
            self._review(all_of_them=lost)

    def _review(self, *, all_of_them: bool = False) -> None:
        """Replace the idle connections that are dead; or all, the lent ones when they come back."""
        with self._lock:
            self._evict(all_of_them=all_of_them)
            # What is lent is replaced when it comes back: its borrower may be in the middle of something.
            for pooled in self._lent if all_of_them else ():
                pooled.expires = 0.0
        self._take_dropped()
        self._upkeep.start()

    def _evict(self, *, all_of_them: bool = False) -> None:
        """Close the idle connections that are dead or too old.  The lock is held."""
        now = monotonic()
        kept: list[P] = []
        for pooled in self._idle:
            if not all_of_them and now < pooled.expires and is_alive(pooled.pgconn, pooled.arrived):
                kept.append(pooled)
            else:
                pooled.close()
        lost = len(self._idle) - len(kept)
        self._idle = kept
        self._size -= lost
        self._counters["connections_lost"] += lost

    def replenish(self) -> None:
        """Have connections made in the place of those that were lost."""
        if self._size < self._settings.min_size:
            self._upkeep.start()

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
            surplus = self._size > self._settings.min_size
        self._take_dropped()
        return surplus

    def forget_plans(self) -> None:
        """Have every connection prepare its statements anew: the tables have changed."""
        # Under the lock: a connection that is just being claimed is neither idle nor lent.
        with self._lock:
            for pooled in [*self._idle, *self._lent]:
                pooled.plans.forget()
        self._take_dropped()

    # -- the end ----------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the pool was closed."""
        return bool(self.close_reason)

    def _close(self, reason: str) -> None:
        """Close idle connections now and lent ones when they are given back; waiters get `PoolClosedError`."""
        with self._lock:
            self.close_reason = self.close_reason or reason
            self._evict(all_of_them=True)
            waiters, self._waiters = self._waiters, self._new_queue()
            lent = list(self._lent)
        self._take_dropped()
        for waiter in waiters:
            waiter.deliver(Signal.CLOSED)
        for pooled in lent:
            logger.warning("%s: closed while a connection is still lent: %s", self.name, str(pooled))

    def after_fork_in_child(self) -> None:
        """Start empty: what was open belongs to the parent, and must not be ended from here."""
        for pooled in [*self._idle, *self._lent]:
            pooled.disown()
        self._start_empty()
        self._upkeep.reset()

    # -- statistics -------------------------------------------------------------------------------------------------

    @property
    def at_min_size(self) -> bool:
        """Whether there are exactly ``min_size`` connections."""
        return self._size == self._settings.min_size

    @property
    def lent(self) -> list[P]:
        """The connections that are out."""
        with self._lock:
            lent = list(self._lent)
        self._take_dropped()
        return lent

    def stats(self) -> dict[str, int]:
        """Return counters named as in psycopg_pool: sizes in connections, times in milliseconds."""
        self._take_dropped()
        with self._lock:
            sizes = {"pool_min": self._settings.min_size, "pool_max": self._max_size, "pool_size": self._size}
            sizes.update(pool_available=len(self._idle), requests_waiting=len(self._waiters))
            sizes.update({name: int(count) for name, count in self._counters.items()})
        self._take_dropped()
        return sizes

    def _load(self) -> str:
        """Return how busy the pool is, with what, and why it may not grow."""
        parts = [f"{len(self._lent)} of at most {self._max_size} in use, {len(self._waiters)} waiting"]
        held = [pooled for pooled in self.lent if pooled.place is not None]
        if held:
            parts.append(f"held longest: {min(held, key=lambda pooled: pooled.borrowed_at)}")
        if self._last_error is not None:
            parts.append(f"last connection error: {self._last_error}")
        return "; ".join(parts)
