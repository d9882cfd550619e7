# Generated from pgmonkey/_async/upkeep.py by tools/twins.py: change that file, then run the tool.

"""What a pool does in the background: fill up, close what is old, report failures and leaks."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from .._config.schema import PoolSettings
from .._pool.schedule import Schedule
from .connector import PooledConnection
from .waiting import Ticker

logger = logging.getLogger("pgmonkey")


class Kept(Protocol):
    """What upkeep needs of a pool."""

    name: str
    close_reason: str
    scavenge: Callable[[], Callable[[], None] | None]

    @property
    def at_min_size(self) -> bool:
        """Whether there are exactly ``min_size`` connections."""
        ...

    @property
    def lent(self) -> list[PooledConnection]:
        """The connections that are out."""
        ...

    def shrink(self) -> bool:
        """Close what is not needed; tell whether there are more connections than ``min_size``."""
        ...

    def grow(self) -> bool:
        """Make a connection if there are fewer than ``min_size``; tell whether one was made."""
        ...


class Upkeep:
    """Keeps one pool in order for as long as there is something to do.

    A settled pool has no upkeep thread, which a fork would have to mind, and no timer.
    """

    def __init__(self, pool: Kept, settings: PoolSettings) -> None:
        # Weak: the pool refers to this.  As a cycle, a forgotten pool would live until the garbage collector runs.
        self._pool = weakref.ref(pool)
        self._settings = settings
        self.reset()

    def reset(self) -> None:
        """Drop the timer and the schedule: in a forked child, the thread stayed with the parent."""
        self._ticker: Ticker | None = None
        self._wanted = False
        self._schedule = Schedule(self._settings)

    def start(self, *, hurry: bool = False) -> None:
        """Begin, if there is something to do; *hurry* ends the pause after a failure, because an attempt succeeded."""
        # Told to the run that is going on, which may have looked before the connection was lost.
        self._wanted = True
        ticker = self._ticker
        if ticker is None:
            pool = self._pool()
            if pool is None or pool.close_reason:
                return
            if self._settings.leak_detection_threshold or not pool.at_min_size:
                self._ticker = Ticker(self._run)
        elif hurry and self._schedule.pause:
            self._schedule.pause = 0.0
            ticker.hurry()

    def stop(self) -> None:
        """Stop for good."""
        ticker, self._ticker = self._ticker, None
        if ticker is not None:
            ticker.stop()

    def _run(self) -> float | None:
        """Do what is to be done; return the seconds until the next time, or None when all is well."""
        self._wanted = False
        pool = self._pool()
        if pool is None:
            return None
        surplus = pool.shrink()
        self._report_leaks(pool)
        try:
            while pool.grow():
                pass  # one at a time: a server that is coming back is not stormed
        except Exception as error:
            return None if pool.close_reason else self._failed(pool, error)
        self._schedule.succeeded()
        delay = self._schedule.next_look(surplus=surplus)
        if delay is None:
            self._ticker = None
        # Asked last: a `start` that comes now finds either a run that asks afterwards, or no ticker and makes one.
        return 0.0 if self._wanted else delay

    def _failed(self, pool: Kept, error: Exception) -> float:
        name = pool.name
        first, expired = self._schedule.failed()
        if first:
            logger.warning("%s: cannot connect, trying again: %s", name, error)
        elif expired:
            logger.error("%s: cannot connect for %g s: %s", name, self._settings.reconnect_timeout, error)
            if self._settings.reconnect_failed is not None:
                self._settings.reconnect_failed(pool)
        return self._schedule.retry_after()

    def _report_leaks(self, pool: Kept) -> None:
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
                logger.warning(
                    "%s: connection checked out for %.1f s (possible leak), borrowed %s", pool.name, seconds, place
                )
