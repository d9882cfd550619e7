"""What a pool does in the background: fill up, close what is old, report failures and leaks."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import isfinite
from time import monotonic
from typing import Protocol

from .._config.schema import PoolSettings
from .._pool.schedule import LOOK_EVERY, Schedule
from .connector import AsyncPooledConnection
from .waiting import Ticker, ask

logger = logging.getLogger("pgmonkey")


class AsyncKept(Protocol):
    """What upkeep needs of a pool."""

    name: str
    close_reason: str
    scavenge: Callable[[], Callable[[], None] | None]

    @property
    def at_min_size(self) -> bool:
        """Whether there are exactly ``min_size`` connections."""
        ...

    @property
    def lent(self) -> list[AsyncPooledConnection]:
        """The connections that are out."""
        ...

    def shrink(self) -> bool:
        """Close what is not needed; tell whether there are more connections than ``min_size``."""
        ...

    async def grow(self) -> bool:
        """Make a connection if there are fewer than ``min_size``; tell whether one was made."""
        ...

    async def renew(self) -> bool:
        """Replace one idle connection that expires soon; tell whether there was one."""
        ...

    def renewal_in(self) -> float:
        """Return the seconds until a connection is to be replaced; infinity when none is."""
        ...

    def note_leak(self) -> None:
        """Note that a connection has been lent for longer than ``leak_detection_threshold``."""
        ...


class AsyncUpkeep:
    """Keeps one pool in order for as long as there is something to do.

    A settled pool sleeps until its first connection is to be replaced, and counts its connections now and then: one
    that was lost when its borrower was interrupted tells nobody.  A single connection has no upkeep before it is lost.
    """

    _ticker: Ticker
    """Absent as long as there has been nothing to do."""

    def __init__(self, pool: AsyncKept, settings: PoolSettings) -> None:
        # Weak: the pool refers to this.  As a cycle, a forgotten pool would live until the garbage collector runs.
        self._pool = weakref.ref(pool)
        self._settings = settings
        self._wanted = False
        self._due = 0.0
        """When there is more to do than to count."""
        self._schedule = Schedule(settings)

    def start(self, *, hurry: bool = False) -> None:
        """Begin, if there is something to do; *hurry* ends the pause after a failure, because an attempt succeeded."""
        # Told to the run that is going on, which may have looked before the connection was lost.
        self._wanted = True
        pool, settings = self._pool(), self._settings
        if pool is None or pool.close_reason:
            return
        try:
            if "_ticker" not in vars(self):
                if settings.leak_detection_threshold or isfinite(settings.max_lifetime) or not pool.at_min_size:
                    # Several may come at once: one ticker is kept before any begins.
                    vars(self).setdefault("_ticker", Ticker(self._run)).hurry()
            elif hurry or not self._schedule.pause:
                self._schedule.pause = 0.0
                self._ticker.hurry()
        except RuntimeError as error:  # no thread can be started: too many run, or the process ends
            level = logging.DEBUG if "shutdown" in str(error) else logging.WARNING
            logger.log(level, "%s: pool maintenance is paused: %s", pool.name, error)

    def stop(self) -> None:
        """Stop for good."""
        ticker: Ticker | None = vars(self).get("_ticker")
        if ticker is not None:
            ticker.stop()

    async def _run(self) -> float | None:
        """Do what is to be done; return the seconds until the next time, or None when the pool is gone."""
        try:
            return await self._look_after()
        except Exception as error:
            # Of the program's own functions, such as a label or a log handler.
            with suppress(Exception):
                logger.error("pool maintenance failed, will try again: %r", error, exc_info=True)
            self._schedule.failed()
            return self._schedule.retry_after()

    async def _look_after(self) -> float | None:
        pool = self._pool()
        if pool is None:
            return None
        if pool.at_min_size and not self._wanted and monotonic() < self._due:
            return min(self._due - monotonic(), LOOK_EVERY)
        self._wanted, self._due = False, 0.0
        surplus = pool.shrink()
        self._report_leaks(pool)
        try:
            # One at a time: a server that is coming back is not stormed.
            while await pool.grow() or await pool.renew():
                if self._ticker.paused:
                    return 0.0
        except Exception as error:
            return None if pool.close_reason else await self._failed(pool, error)
        self._schedule.succeeded()
        delay = min(self._schedule.next_look(surplus=surplus), pool.renewal_in())
        self._due = monotonic() + delay
        # Asked last: a `start` that comes now hurries what is due later.
        return 0.0 if self._wanted else min(delay, LOOK_EVERY)

    async def _failed(self, pool: AsyncKept, error: Exception) -> float:
        name = pool.name
        first, expired = self._schedule.failed()
        reason = " ".join(str(error).split())
        if first:
            logger.warning("%s: cannot connect, trying again: %s", name, reason)
        elif expired:
            logger.error("%s: cannot connect for %g s: %s", name, self._settings.reconnect_timeout, reason)
            if self._settings.reconnect_failed is not None:
                await self._tell(self._settings.reconnect_failed, pool)
        return self._schedule.retry_after()

    async def _tell(self, function: Callable[..., object], pool: AsyncKept) -> None:
        try:
            await ask(partial(function, pool))
        except Exception as error:
            logger.warning("%s: 'reconnect_failed' raised %r", pool.name, error)

    def _report_leaks(self, pool: AsyncKept) -> None:
        threshold = self._settings.leak_detection_threshold
        if not threshold:
            return
        # What was forgotten is taken back rather than reported.
        if (scavenge := pool.scavenge()) is not None:
            scavenge()
        for pooled in pool.lent:
            seconds, place = monotonic() - pooled.borrowed_at, pooled.place
            if place is not None and not pooled.reported and seconds >= threshold:
                pooled.reported = True
                pool.note_leak()
                logger.warning(
                    "%s: connection checked out for %.1f s (possible leak), borrowed %s", pool.name, seconds, place
                )
