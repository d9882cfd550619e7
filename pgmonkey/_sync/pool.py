# Generated from pgmonkey/_async/pool.py by tools/twins.py: change that file, then run the tool.

"""The pool: borrowers wait here, and here connections are made.  `pgmonkey._pool.ledger` keeps the books.

Borrowers make the connections that they need themselves, so that a connection that cannot be made is the borrower's own
error, with the server's own words, and no borrower waits for a background worker.
"""

from __future__ import annotations

import logging
import sys
from time import monotonic
from types import FrameType
from typing import TypeAlias

from .._config.blueprint import Blueprint
from .._pool.ledger import Ledger, Signal
from .._pool.place import Label, Place
from ..errors import PoolTimeoutError
from .connector import Connector, PooledConnection
from .upkeep import Upkeep
from .waiting import Caller, Queue, Waiter, current_loop, sleep

logger = logging.getLogger("pgmonkey")

_Delivery: TypeAlias = "PooledConnection | Signal"

# Seconds between new connections that are refused, doubled each time up to the second.
_PAUSE = (0.1, 2.0)


class Pool(Ledger[PooledConnection, Queue[_Delivery]]):
    """A pool of connections made from a blueprint.  It opens at the first borrow."""

    _upkeep: Upkeep

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__(blueprint, Queue, Upkeep(self, blueprint.settings))
        self.loop = current_loop()
        """The event loop that its connections belong to; None in threads, which share them."""
        self._connector = Connector(blueprint, self.observe)
        self._checks = self._connector.checks
        self.configure = self._connector.configure
        """Makes a connection that was cleaned what every borrower is to find."""

    def borrow(self, timeout: float | None = None, label: Label | None = None) -> PooledConnection:
        """Return a live connection that is the caller's until `give_back`.

        *timeout* is in seconds, the pool's own when None; *label* says for whom.  Raises `PoolTimeoutError`,
        `PoolFullError`, `PoolClosedError`, or `ServerUnavailableError` when no connection can be made.
        """
        # An idle connection is taken without a coroutine: most borrows find one.
        pooled = None if self._checks else self.take_idle(None)
        if pooled is None:
            pooled = self._checkout(self._settings.timeout if timeout is None else timeout)
            pooled.borrowed_at = monotonic()
        pooled.lent_at = Place.above(sys._getframe(1), label, Caller.current())
        return pooled

    def wait_for_one(self, frame: FrameType) -> PooledConnection | None:
        """Lend a connection to *frame* when one comes free; None when a connection has to be made instead."""
        pooled = self._checkout(self._settings.timeout) if self.exhausted else None
        if pooled is not None:
            pooled.borrowed_at, pooled.frame = monotonic(), frame
        return pooled

    def _checkout(self, timeout: float, *, checks: bool = True) -> PooledConnection:
        # One deadline for all: waiting, connecting and checking share the borrower's timeout.
        deadline = monotonic() + timeout
        self._counters["requests_num"] += 1
        scavenge = self.scavenge()
        pause, longest = _PAUSE
        while True:
            waiter: Waiter[_Delivery] | None = None
            try:
                with self._lock:
                    claim = self._claim()
                    if claim is None and scavenge is None and self._may_wait():
                        waiter = self._waiters.add(deadline)
            finally:
                self._take_dropped()
            if waiter is not None:
                claim = self._wait(waiter, timeout)
            elif claim is None and scavenge is not None:
                # Once, and only before a borrower has to wait: it looks at all open blocks.
                scavenge()
                scavenge = None
                continue
            elif claim is None:
                raise self._full()
            pooled = self._connect(deadline) if claim is None or isinstance(claim, Signal) else claim
            if not (checks and self._checks) or self._passes(pooled, deadline):
                return pooled
            if pooled is not claim:
                # A new one was refused, so the next may be, too.  psycopg_pool waits as long.
                if monotonic() + pause >= deadline:
                    self._counters["requests_errors"] += 1
                    raise PoolTimeoutError(
                        f"{self.name}: no connection passed the check within {timeout:g} s; {self._load()}"
                    )
                sleep(pause)
                pause = min(2 * pause, longest)

    def _passes(self, pooled: PooledConnection, deadline: float) -> bool:
        """Check a connection; close it, and give its place back, when it is refused."""
        try:
            self._connector.check(pooled, deadline)
        except BaseException as error:
            # Refused, or interrupted while it was checked: in both cases its state is unknown.
            pooled.close()
            self.give_back(pooled)
            if not isinstance(error, Exception):
                raise
            logger.info("%s: 'check' refused a connection: %r", self.name, error)
            self._last_error = str(error)
            return False
        return True

    def _wait(self, waiter: Waiter[_Delivery], timeout: float) -> _Delivery:
        started = monotonic()
        try:
            waiter.wait()
        except BaseException:
            self._leave_queue(waiter)
            raise
        finally:
            self._counters["requests_wait_ms"] += int((monotonic() - started) * 1000)
        return self._outcome_of_wait(waiter, timeout)

    def _connect(self, deadline: float | None) -> PooledConnection:
        """Make a connection for which there is room already, and count it as lent."""
        self._counters["connections_num"] += 1
        started = monotonic()
        try:
            pooled = self._connector.connect(deadline)
        except BaseException as error:
            self._note_failure(error)
            raise
        self._add(pooled, monotonic() - started)
        # The server is there, so upkeep need not wait any longer before it fills the pool up.
        self._upkeep.start(hurry=True)
        return pooled

    def grow(self) -> bool:
        """Make a connection if there are fewer than ``min_size``; tell whether one was made."""
        with self._lock:
            wanted = not self.close_reason and self._size < self._settings.min_size
            self._size += wanted
        self._take_dropped()
        if not wanted:
            return False
        self.give_back(self._connect(None))
        return True

    def open(self) -> None:
        """Make the first connection now, so that a wrong configuration fails here; do nothing when there was one."""
        if not self.opened:
            self.give_back(self._checkout(self._settings.timeout, checks=False))

    def close(self, reason: str = "the pool is closed") -> None:
        """Close idle connections now and lent ones when they are given back; waiters get `PoolClosedError`.

        May be called from anywhere, also after the event loop has ended.
        """
        try:
            self._close(reason)
        finally:
            self._upkeep.stop()

    def terminate(self, reason: str = "the pool is closed") -> None:
        """Close every connection now, also the lent ones, which cannot be given back any more."""
        # Struck off the books first: the finalizers of these leases give back later, and must find nothing to do.
        with self._lock:
            lent, self._lent = self._lent, set()
        self.close(reason)
        for pooled in lent:
            pooled.close()
