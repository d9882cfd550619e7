"""The ledger of a pool: which connections are idle and which are lent, who waits, and how many there may be.

It decides and counts; it never waits.  `AsyncPool` and `Pool` add the waiting.

There is no lock.  A signal handler or an exception may come between any two steps, a finalizer or another thread, too,
so each step is one operation of a deque or a dict, which nothing can divide, and whatever was begun and not ended is
mended by whoever comes next:

- A connection belongs to what refers to it (see `Pooled`).  Lost on its way, it is closed, and its place is free.
- A waiter gets its connection in one step.  Only then it leaves the queue; who finds it there later removes it.
- Who gives back looks at the queue afterwards, and who queues looks at what is idle afterwards, so one of them sees the
  other.  Waiters look again now and then: whoever should have served them may have been interrupted.

Counters are plain sums: CPython changes threads at calls and backward jumps only, and there is none in ``+=``.
"""

from __future__ import annotations

import gc
import logging
import math
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from operator import itemgetter
from os import getpid
from time import monotonic
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar, cast

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGconn

from .._config.blueprint import Blueprint
from .._driver.liveness import is_alive, is_lost_server
from ..errors import PoolClosedError, PoolFullError, PoolTimeoutError
from . import forks
from .pooled import EARLY, Pooled, Ticket

logger = logging.getLogger("pgmonkey")

P = TypeVar("P", bound=Pooled[Any, Any])
W = TypeVar("W", bound="Waiter[Any]")

# As plain numbers, which are faster to compare than members of an enumeration.
_IDLE, _NO_PIPELINE = int(pq.TransactionStatus.IDLE), int(pq.PipelineStatus.OFF)
_ACTIVE = int(pq.TransactionStatus.ACTIVE)
# Seconds between two looks at what may have been left undone, however many wait.
_LOOK_EVERY = 0.2
# Minimum of seconds between two looks at connections that are lent and should be replaced.
_RENEWAL_GRAIN = 0.02
LISTEN_EVERY = 1.0
"""Seconds between two looks at who listens."""
_DEBUG, _sql_logger = logging.DEBUG, logging.getLogger("pgmonkey.sql")
_levels: dict[int, bool] = getattr(_sql_logger, "_cache", {})
# Seconds that whoever is to make a connection should have left.
_TO_CONNECT = 0.75
_COUNTS = (
    *("usage_ms", "requests_num", "requests_queued", "requests_wait_ms", "requests_errors", "returns_bad"),
    *("connections_num", "connections_ms", "connections_errors", "connections_lost", "connections_leaked"),
)


def name_of(blueprint: Blueprint) -> str:
    """Return what the pool that is made from *blueprint* is called."""
    return f"pool {blueprint.name!r}"


class Waiter(Protocol[P]):
    """A place in the queue, until the *deadline*, as `time.monotonic` gives it."""

    deadline: float

    def deliver(self, result: P | None) -> bool:
        """Wake the waiter with *result*, None when the pool was closed; tell whether it had none before."""
        ...

    def leave(self) -> P | None:
        """Take nothing from now on; return what was delivered before."""
        ...


class Upkeep(Protocol):
    """What keeps a pool in order in the background."""

    def start(self, *, hurry: bool = False) -> None:
        """Begin, if there is something to do; *hurry* where the server has just answered."""
        ...

    def stop(self) -> None:
        """End."""
        ...


class Ledger(ABC, Generic[P, W]):
    """The bookkeeping of one pool; *new_queue* makes the queue of its waiters, *connections* is their class in psycopg.

    The connection given back last is lent first, so that those not needed stay idle long enough to be closed.
    """

    _tickets: dict[weakref.ref[Ticket], None]
    """What is connected or connects now, the oldest first.  A ticket that ends leaves it by itself."""
    _idle: deque[P]
    _waiters: deque[W]
    _upkeep: Upkeep
    _pid: int
    """The process that the five belong to."""

    def __init__(self, blueprint: Blueprint, new_queue: Callable[[], deque[W]], connections: type[Any]) -> None:
        self.blueprint = blueprint
        self.name = name_of(blueprint)
        self.close_reason = ""
        self.opened = False
        """Whether there ever was a connection."""
        self.scavenge: Callable[[], Callable[[], None] | None] = lambda: None
        """Returns a function that takes back forgotten connections, or None; called before a borrower waits."""
        self._settings = blueprint.settings
        self._max_size = blueprint.max_size
        self._new_queue = new_queue
        self._counters: dict[str, float] = dict.fromkeys(_COUNTS, 0)
        self._last_error: str | None = None
        self._looked_at = 0.0
        self._listen_at = 0.0
        # What tracers replace.
        self._methods = connections.__dict__
        self._connect_method: object = self._methods["connect"]
        self._books: dict[int, dict[str, object]] = {}
        """What belongs to a process, this one alone but for a moment."""
        self._start_empty()
        forks.register(self)

    @abstractmethod
    def listen(self) -> None:
        """Find out who listens from now on."""

    @abstractmethod
    def _new_upkeep(self) -> Upkeep:
        """Return what is to keep the pool in order in this process."""

    def _start_empty(self) -> None:
        pid = getpid()
        empty = {"_tickets": {}, "_idle": deque(), "_waiters": self._new_queue(), "_upkeep": self._new_upkeep()}
        # Threads of a child may be here at the same time: all take what the first one has made.
        vars(self).update(self._books.setdefault(pid, {**empty, "_pid": pid}))
        for other in list(self._books):
            if other != pid:
                self._books.pop(other, None)

    # -- checkout ---------------------------------------------------------------------------------------------------

    def take_idle(self, frame: FrameType | None) -> P | None:
        """Lend an idle connection to *frame*; None when there is none that is certainly alive."""
        if self._pid != getpid():
            self.after_fork_in_child()
        try:
            # Looked at first: under load there is rarely an idle one, and an exception takes longer.
            pooled = self._idle.pop() if self._idle else None
        except IndexError:
            return None
        if pooled is None:
            return None
        now = monotonic()
        # Without a call: the log forgets what it knows of levels when one is set.
        if (
            now >= self._listen_at
            or (_DEBUG not in _levels and not _sql_logger.disabled)
            or self._methods["connect"] is not self._connect_method
        ):
            self.listen()
        # Anything that has arrived may be a notification or the end: `_find_idle` reads it and tells.
        if pooled.arrived(0) or now >= pooled.expires:
            self._shelve(pooled)
            return None
        self._counters["requests_num"] += 1
        pooled.borrowed_at, pooled.frame = now, frame
        return pooled

    @property
    def exhausted(self) -> bool:
        """Whether a borrower would have to wait at this moment."""
        return not self._idle and len(self._tickets) >= self._max_size

    def _claim(self) -> P | None:
        """Return an idle connection, or a place for one that is to be made; None when a borrower has to wait."""
        if self.close_reason:
            raise self._closed_error()
        self._mind_forks()
        return self._find_idle() or self._find_room()

    def _find_idle(self) -> P | None:
        while self._idle:
            try:
                pooled = self._idle.pop()
            except IndexError:
                break
            if self._is_usable(pooled):
                return pooled
            self._close_lost(pooled)
            # What ended this one may have ended all.  Look at each now: otherwise every borrower would find one dead.
            self._evict()
        return None

    def _find_room(self) -> P | None:
        """Return a place for a connection that is to be made; None when there are as many as there may be."""
        tickets = self._tickets
        if len(tickets) >= self._max_size:
            return None
        ticket = Ticket()
        # `dict.pop` is C, so nothing can come between the end of a ticket and its leaving.
        tickets[weakref.ref(ticket, tickets.pop)] = None
        # Several may have come at once.  The first ones have the room.
        admitted = [reference() for reference in list(tickets)[: self._max_size]]
        return cast(P, Pooled(ticket)) if ticket in admitted else None

    def _is_usable(self, pooled: P) -> bool:
        return monotonic() < pooled.expires and is_alive(pooled.pgconn, pooled.arrived)

    # -- waiting ----------------------------------------------------------------------------------------------------

    def _queue(self, waiter: W) -> None:
        """Let *waiter* wait for its turn; raise `PoolFullError` when too many do."""
        limit = self._settings.max_waiting
        self._waiters.append(waiter)
        with suppress(ValueError):  # it was served already
            if 0 < limit <= self._waiters.index(waiter):
                self._counters["requests_errors"] += 1
                raise PoolFullError(f"{self.name}: {limit} borrowers are waiting already (max_waiting); {self._load()}")
        self._counters["requests_queued"] += 1
        self.serve()

    def _leave(self, waiter: W) -> P | None:
        """Remove *waiter* from the queue; return what it got."""
        if waiter in self._waiters:
            with suppress(ValueError):  # it was served at this moment
                self._waiters.remove(waiter)
        pooled: P | None = waiter.leave()
        return pooled

    def _not_served(self, timeout: float) -> psycopg.OperationalError:
        self._counters["requests_errors"] += 1
        if self.close_reason:
            return self._closed_error()
        return PoolTimeoutError(
            f"{self.name}: no connection became free within {timeout:g} s (timeout); {self._load()}"
        )

    def serve(self) -> None:
        """Give the waiters, in their order, what is idle and what there is room for; tell them when it is closed."""
        self._mind_forks()
        while self._waiters:
            pooled = None if self.close_reason else self._find_idle() or self._find_room()
            if pooled is None and not self.close_reason:
                return
            if not self._hand_on(pooled) and pooled is not None:
                self._put_back(pooled)

    def look(self) -> None:
        """Do what an interrupted step has left undone; waiters call this every now and then."""
        now = monotonic()
        if now - self._looked_at >= _LOOK_EVERY:
            self._looked_at = now
            # The exception of an interrupted task is in a cycle with the frames that it left, and these may have a
            # connection.  It was made a moment ago, so it is among the young objects, which are quickly looked at,
            # once no connection, which is old, refers to one of the frames.
            for pooled in self._connected():
                pooled.settle_place()
            gc.collect(1)
        self.serve()

    def _hand_on(self, pooled: P | None) -> bool:
        """Give *pooled* to the first waiter; tell whether there was one."""
        waiters = self._waiters
        while waiters:
            try:
                first = waiters[0]
                # A connection takes its time to make.  On a slow network a pool would never have one if only those
                # tried whose time is nearly over.
                if pooled is not None and not pooled.connected and first.deadline < monotonic() + _TO_CONNECT:
                    first = waiters[-1]
            except IndexError:
                break
            taken = first.deliver(pooled)
            with suppress(ValueError):
                waiters.remove(first)
            if taken:
                return True
        return False

    # -- giving back ------------------------------------------------------------------------------------------------

    def give_back(self, pooled: P) -> bool:
        """Take a connection back: hand it to the first waiter, keep it, or close it when it is not fit to be kept.

        Returns False if there is nothing to replace: the connection was kept or handed on, or is another process's.
        """
        if pooled.ticket is None:
            return not pooled.inherited  # it was closed, or lent before a fork
        # A lost connection has another status, so this tells the dead from the living, too.  A pipeline may have been
        # left open by a task that was cancelled in executemany(): the next borrower could not use it.
        fit = pooled.pgconn.transaction_status == _IDLE and pooled.pgconn.pipeline_status == _NO_PIPELINE
        now = monotonic()
        self._counters["usage_ms"] += (now - pooled.borrowed_at) * 1000
        if fit and now < pooled.expires and not self.close_reason:
            pooled.lent_at = pooled.frame = pooled.label = None
            pooled.reported = False
            pooled.idle_since = now
            if self._waiters:
                self._keep(pooled)
            else:
                self._shelve(pooled)
            return False
        self._counters["returns_bad"] += not fit
        self._drop(pooled)
        return not pooled.inherited

    def _put_back(self, pooled: P) -> None:
        """Take back what was not used."""
        if pooled.connected:
            self._keep(pooled)
        else:
            self._drop(pooled)

    def _keep(self, pooled: P) -> None:
        # Not through the idle ones while somebody waits: a borrower that came later could take it from there.
        if not (self._waiters and self._hand_on(pooled)):
            self._shelve(pooled)

    def _shelve(self, pooled: P) -> None:
        self._idle.append(pooled)
        if self._waiters:
            self.serve()
        if self.close_reason:
            self._evict()

    def _drop(self, pooled: P) -> None:
        """Close a connection, and let a waiter make another one in its place."""
        pooled.close()
        self.serve()

    # -- new, failed and expired connections ------------------------------------------------------------------------

    def _add(self, seconds: float) -> None:
        """Note that a connection was made, in *seconds*."""
        self._counters["connections_ms"] += int(seconds * 1000)
        self.opened, self._last_error = True, None

    def _note_failure(self, pooled: P, error: BaseException) -> None:
        """Free the room of *pooled*, which could not be connected because of *error*."""
        self._drop(pooled)
        self._counters["connections_errors"] += 1
        if isinstance(error, psycopg.Error):
            self._last_error = str(error)
        # A pool that has never opened is for the caller to open again, or to give up.
        if self.opened and isinstance(error, psycopg.OperationalError):
            self._review()

    def observe(self, error: psycopg.Error, pgconn: PGconn) -> None:
        """Note an error of one of the pool's connections: it may concern all of them."""
        lost = is_lost_server(error, pgconn)
        if lost:
            logger.info("%s: replacing all connections: %s", self.name, error)
            # What is lent is replaced when it comes back: its borrower may be in the middle of something.
            for pooled in self._connected():
                pooled.expires = 0.0
        if lost or (isinstance(error, psycopg.OperationalError) and error.sqlstate is None):
            self._review()

    def _review(self) -> None:
        """Replace the idle connections that are dead."""
        self._evict()
        self._upkeep.start()

    def _evict(self) -> None:
        """Close the idle connections that are dead or too old, all of them when the pool is closed."""
        self._mind_forks()
        # One at a time leaves the row at its end and comes back at the other, so that their order stays the same.
        for _ in range(len(self._idle)):
            try:
                pooled = self._idle.popleft()
            except IndexError:
                break
            if not self.close_reason and self._is_usable(pooled):
                self._keep(pooled)
            else:
                self._close_lost(pooled)
        self.serve()

    def _close_lost(self, pooled: P) -> None:
        self._counters["connections_lost"] += 1
        pooled.close()

    def note_leak(self) -> None:
        """Note that a connection has been lent for longer than ``leak_detection_threshold``."""
        self._counters["connections_leaked"] += 1

    def replenish(self) -> None:
        """Have connections made in the place of those that were lost."""
        if len(self._tickets) < self._settings.min_size:
            self._upkeep.start()

    def shrink(self) -> bool:
        """Close what is dead, too old or idle too long; tell whether there are more connections than ``min_size``."""
        self._evict()
        settings, now = self._settings, monotonic()
        while len(self._tickets) > settings.min_size and self._idle:
            try:
                longest = self._idle.popleft()
            except IndexError:
                break
            if now - longest.idle_since < settings.max_idle:
                self._idle.appendleft(longest)
                self.serve()
                break
            self._drop(longest)
        return len(self._tickets) > settings.min_size

    def _expiring(self) -> P | None:
        """Return an idle connection that is to be replaced before it expires."""
        now = monotonic()
        return next((pooled for pooled in list(self._idle) if pooled.renew_at <= now), None)

    def _retire(self, pooled: P) -> None:
        """Close what has been replaced, now or, if it was lent meanwhile, when it comes back."""
        pooled.expires = 0.0
        with suppress(ValueError):  # it is lent
            self._idle.remove(pooled)
            self._drop(pooled)

    def renewal_in(self) -> float:
        """Return the seconds until a connection is to be replaced; infinity when none is."""
        now = monotonic()
        # One that is lent then is looked at again, as it may come back before it expires.
        again = max(self._settings.max_lifetime * EARLY / 8, _RENEWAL_GRAIN)
        ages = (pooled.renew_at - now for pooled in self._connected())
        return min((left if left > 0 else again for left in ages), default=math.inf)

    def forget_plans(self) -> None:
        """Have every connection prepare its statements anew: the tables have changed."""
        for pooled in self._connected():
            pooled.plans.forget()

    # -- the end ----------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the pool was closed."""
        return bool(self.close_reason)

    def _closed_error(self) -> PoolClosedError:
        return PoolClosedError(f"{self.name}: {self.close_reason}")

    def _close(self, reason: str) -> None:
        """Close idle connections now and lent ones when they are given back; waiters get `PoolClosedError`.

        Interrupted half-way, it can be called again.
        """
        self.close_reason = self.close_reason or reason
        self._evict()
        # What upkeep has in hand was borrowed nowhere.
        for pooled in [pooled for pooled in self.lent if pooled.place is not None]:
            logger.warning("%s: closed while a connection is still checked out: %s", self.name, str(pooled))

    def leave(self) -> None:
        """Close what is idle, at the end of the process.

        What is lent is not closed: libpq must not lose a connection while another thread is inside it.
        """
        self._mind_forks()
        for _ in range(len(self._idle)):
            try:
                self._idle.pop().close()
            except IndexError:
                break

    def at_work(self) -> dict[PGconn, object]:
        """Return the connections that execute a statement, each with what tells that statement from others."""
        active = [pooled for pooled in self.lent if pooled.pgconn.transaction_status == _ACTIVE]
        return {pooled.pgconn: (pooled.borrowed_at, pooled.prepared.statements) for pooled in active}

    def after_fork_in_child(self) -> None:
        """Start empty: what was open belongs to the parent, and must not be ended from here."""
        for pooled in self._connected():
            if pooled.inherited:
                pooled.disown()
        self._start_empty()

    def _mind_forks(self) -> None:
        if self._pid != getpid():
            self.after_fork_in_child()

    # -- statistics -------------------------------------------------------------------------------------------------

    def _connected(self) -> list[P]:
        """Return all connections, wherever they are."""
        tickets = [reference() for reference in list(self._tickets)]
        places = [ticket.pooled() for ticket in tickets if ticket is not None and hasattr(ticket, "pooled")]
        return [cast(P, pooled) for pooled in places if pooled is not None and pooled.connected]

    @property
    def at_min_size(self) -> bool:
        """Whether there are exactly ``min_size`` connections."""
        return len(self._tickets) == self._settings.min_size

    @property
    def lent(self) -> list[P]:
        """The connections that are out."""
        idle = set(self._idle)
        return [pooled for pooled in self._connected() if pooled not in idle]

    def stats(self) -> dict[str, int]:
        """Return counters named as in psycopg_pool: sizes in connections, times in milliseconds."""
        self._mind_forks()
        # Of those that try for the last place at this moment, only one gets it.
        size = min(len(self._tickets), self._max_size)
        sizes = {"pool_min": self._settings.min_size, "pool_max": self._max_size, "pool_size": size}
        # Not the length of `_idle`: upkeep takes one after the other from there to look at it.
        idle = [pooled for pooled in self._connected() if pooled.lent_at is None and pooled.frame is None]
        sizes.update(pool_available=len(idle), requests_waiting=len(self._waiters))
        sizes.update({name: int(count) for name, count in self._counters.items()})
        return sizes

    @property
    def last_error(self) -> str | None:
        """Why no connection could be made the last time; None when one was made since."""
        return self._last_error

    def held_longest(self, most: int) -> list[tuple[float, str]]:
        """Return since how many seconds connections are lent, and where they were borrowed: *most* of them at most."""
        lent = [(pooled.borrowed_at, place) for pooled in self.lent if (place := pooled.place) is not None]
        now, found = monotonic(), []
        for since, place in sorted(lent, key=itemgetter(0))[:most]:
            try:
                found.append((now - since, str(place)))
            except Exception as error:  # of the program's label
                found.append((now - since, repr(error)))
        return found

    def _load(self) -> str:
        """Return how busy the pool is, with what, and why it may not grow."""
        lent = self.lent
        parts = [f"{len(lent)} of at most {self._max_size} in use, {len(self._waiters)} waiting"]
        held = [pooled for pooled in lent if pooled.place is not None]
        if held:
            parts.append(f"held longest: {min(held, key=lambda pooled: pooled.borrowed_at)}")
        if self._last_error is not None:
            parts.append(f"last connection error: {self._last_error}")
        return "; ".join(parts)
