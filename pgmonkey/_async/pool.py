"""The pool: borrowers wait here, and here connections are made.  `pgmonkey._pool.ledger` keeps the books.

Borrowers make the connections that they need themselves, so that a connection that cannot be made is the borrower's own
error, with the server's own words, and no borrower waits for a background worker.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from time import monotonic
from types import FrameType
from weakref import ref

from psycopg import AsyncConnection
from psycopg.errors import ConnectionTimeout

from .._config.blueprint import Blueprint
from .._driver.deadlines import Deadline
from .._driver.tracers import is_wrapped
from .._pool.ledger import LISTEN_EVERY, Ledger
from .._pool.place import Label, Place
from .._telemetry import listeners
from .._telemetry.events import Listener, Subject
from ..errors import CommandTimeoutError, PoolClosedError, PoolTimeoutError, ServerUnavailableError
from .connector import AsyncConnector, AsyncPooledConnection
from .upkeep import AsyncUpkeep
from .waiting import Caller, Queue, Waiter, current_loop, sleep

logger = logging.getLogger("pgmonkey")


AT_ONCE = -1.0
"""The timeout of a borrow that takes an idle connection and waits for nothing."""
# How many new connections are remembered until somebody is told of them.
_MOST_CONNECTS = 100
# Seconds between new connections that are refused, doubled each time up to the second.
_PAUSE = (0.1, 2.0)


class AsyncPool(Ledger[AsyncPooledConnection, Waiter[AsyncPooledConnection]]):
    """A pool of connections made from a blueprint.  It opens at the first borrow."""

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__(blueprint, Queue, AsyncConnection)
        self.subject = Subject(self.name, blueprint.telemetry, deque(maxlen=_MOST_CONNECTS))
        self.observer: tuple[Listener, ...] | None = None
        """Who is told of statements, transactions and connections; None when nobody listens."""
        listeners.pools.add(self)
        self.weak = ref(self)
        """For what a borrower may keep: a connection that was given back must not keep the pool open."""
        self.loop = current_loop()
        """The event loop that its connections belong to; None in threads, which share them."""
        self.connector = AsyncConnector(blueprint, self.observe)
        """Makes its connections."""
        self._checks = self.connector.checks
        self.configure = self.connector.configure
        """Makes a connection that was cleaned what every borrower is to find."""
        self.reset = self.connector.reset
        """Calls the program's `reset` function on a connection that was given back."""

    @property
    def shares_sessions(self) -> bool:
        """Whether a pooler was noticed that gives a session to one client after the other."""
        return bool(self.connector.shared)

    def listen(self) -> None:
        """Find out who listens from now on."""
        self._listen_at = monotonic() + LISTEN_EVERY
        connect = self._methods["connect"]
        if connect is not self._connect_method:
            # A tracer was installed, or removed: it sees only connections that are made from now on.
            self._connect_method = connect
            for pooled in self._connected():
                pooled.expires = 0.0
        self.observer = listeners.find(self.subject, traced=is_wrapped(connect))

    def _new_upkeep(self) -> AsyncUpkeep:
        return AsyncUpkeep(self, self.blueprint.settings)

    async def borrow(self, timeout: float | None = None, label: Label | None = None) -> AsyncPooledConnection:
        """Return a live connection that is the caller's until `give_back`.

        *timeout* is in seconds, the pool's own when None, or `AT_ONCE`; *label* says for whom.  Raises
        `PoolTimeoutError`, `PoolFullError`, `PoolClosedError`, or `ServerUnavailableError` when none can be made.
        """
        # An idle connection is taken without a coroutine: most borrows find one.
        pooled = None if self._checks else self.take_idle(None)
        if pooled is None:
            if timeout == AT_ONCE:
                raise PoolTimeoutError(f"{self.name}: no connection is idle")
            pooled = await self._checkout(self._settings.timeout if timeout is None else timeout)
            pooled.borrowed_at = monotonic()
        pooled.lent_at = Place.above(sys._getframe(1), label, Caller.current())
        return pooled

    async def wait_for_one(self, frame: FrameType, timeout: float | None = None) -> AsyncPooledConnection | None:
        """Lend a connection to *frame* when one comes free; None when a connection has to be made instead.

        The wait ends after *timeout* seconds where that is less than the pool's own.
        """
        wait = self._settings.timeout
        if timeout is not None and timeout < wait:
            wait = timeout
        try:
            pooled = await self._checkout(wait) if self.exhausted else None
        except PoolClosedError:
            return None  # a database opens it again
        if pooled is not None:
            pooled.borrowed_at, pooled.frame = monotonic(), frame
        return pooled

    async def _checkout(self, timeout: float, *, checks: bool = True) -> AsyncPooledConnection:
        # One deadline for all: waiting, connecting and checking share the borrower's timeout.
        deadline = Deadline(monotonic() + timeout, timeout)
        self.listen()
        self._counters["requests_num"] += 1
        pause, longest = _PAUSE
        refused = ""
        while True:
            pooled = self._claim()
            if pooled is None and (scavenge := self.scavenge()) is not None:
                # Only before a borrower has to wait: it looks at all open blocks.
                scavenge()
                pooled = self._claim()
            if pooled is None:
                pooled = await self._wait(deadline)
            new = not pooled.connected
            if new:
                try:
                    await self._connect(pooled, deadline)
                except ConnectionTimeout:
                    if not refused:
                        raise
                    self._last_error = refused  # which says more than that time was over at the next attempt
                    raise self._none_passed(timeout) from None
            if not (checks and self._checks) or await self._passes(pooled, deadline):
                return pooled
            if new:
                # A new one was refused, so the next may be, too.  psycopg_pool waits as long.
                if pause >= deadline.left:
                    raise self._none_passed(timeout)
                refused = self._last_error or ""
                await sleep(pause)
                pause = min(2 * pause, longest)

    def _none_passed(self, timeout: float) -> PoolTimeoutError:
        self._counters["requests_errors"] += 1
        return PoolTimeoutError(
            f"{self.name}: no connection passed the check within {timeout:g} s (timeout); {self._load()}"
        )

    async def _passes(self, pooled: AsyncPooledConnection, deadline: Deadline) -> bool:
        """Check a connection; close it, and give its place back, when it is refused."""
        try:
            await self.connector.check(pooled, deadline)
        except BaseException as error:
            # Refused, or interrupted while it was checked: in both cases its state is unknown.
            self._drop(pooled)
            if not isinstance(error, Exception):
                raise
            logger.info("%s: 'check' refused a connection: %r", self.name, error)
            self._last_error = str(error)
            return False
        return True

    async def _wait(self, deadline: Deadline) -> AsyncPooledConnection:
        started = monotonic()
        waiter: Waiter[AsyncPooledConnection] = Waiter(deadline.at, self.look)
        try:
            self._queue(waiter)
            await waiter.wait()
        except BaseException:
            pooled = self._leave(waiter)
            if pooled is not None:
                self._put_back(pooled)
            raise
        finally:
            self._counters["requests_wait_ms"] += int((monotonic() - started) * 1000)
        pooled = self._leave(waiter)
        if pooled is None:
            raise self._not_served(deadline.seconds)
        return pooled

    async def _connect(self, pooled: AsyncPooledConnection, deadline: Deadline | None) -> None:
        """Connect *pooled*, which is a place in the pool."""
        self._counters["connections_num"] += 1
        started = monotonic()
        try:
            await self.connector.connect(pooled, deadline)
        except BaseException as error:
            self._note_failure(pooled, error)
            raise
        seconds = monotonic() - started
        self._add(seconds)
        self.subject.connects.append(seconds)
        if self.connector.shared:
            for other in self._connected():  # those that were made before it was noticed
                other.prepared.prepare_nothing()
        # The server is there, so upkeep need not wait any longer before it fills the pool up.
        self._upkeep.start(hurry=True)

    async def grow(self) -> bool:
        """Make a connection if there are fewer than ``min_size``; tell whether one was made."""
        wanted = not self.close_reason and len(self._tickets) < self._settings.min_size
        pooled = self._find_room() if wanted else None
        if pooled is None:
            return False
        await self._connect(pooled, None)
        self.give_back(pooled)
        return True

    async def renew(self) -> bool:
        """Replace one idle connection that expires soon; tell whether there was one."""
        old = self._expiring()
        if old is None:
            return False
        new = self._find_room()
        if new is None:  # the old one has the last place
            self._retire(old)
            new = self._find_room()
        if new is not None:
            await self._connect(new, None)
            self.give_back(new)
        self._retire(old)
        return True

    async def open(self, timeout: float | None = None) -> None:
        """Make the first connection now, so that a wrong configuration fails here; do nothing when there was one.

        *timeout* is in seconds, the pool's own when None.
        """
        if not self.opened:
            timeout = self._settings.timeout if timeout is None else timeout
            self.give_back(await self._checkout(timeout, checks=False))

    async def ping(self, timeout: float) -> None:
        """Ask the server whether it is there; raise what psycopg raises when it does not answer in *timeout* seconds.

        The wait for a connection is part of that time.
        """
        deadline = Deadline(monotonic() + timeout, timeout)
        pooled = await self.borrow(timeout)
        try:
            await self.connector.check(pooled, deadline, ask=True)
        except CommandTimeoutError:
            self._drop(pooled)
            raise ServerUnavailableError(f"the server did not answer within {timeout:g} s") from None
        except BaseException:
            self._drop(pooled)
            raise
        self.give_back(pooled)

    def close(self, reason: str = "the pool is closed") -> None:
        """Close idle connections now and lent ones when they are given back; waiters get `PoolClosedError`.

        May be called from anywhere, also after the event loop has ended, and again when it was interrupted.
        """
        try:
            self._close(reason)
        finally:
            self._upkeep.stop()

    def terminate(self, reason: str = "the pool is closed") -> None:
        """Close every connection now, also the lent ones, which cannot be given back any more."""
        self.close_reason = self.close_reason or reason  # first: nothing is lent or made any more
        for pooled in self.lent:
            pooled.close()
        self.close(reason)
