# Generated from _upkeep_async.py by tools/twins.py: change that file, then run the tool.

"""What a pool does in the background: fill up, close what is old, say what goes wrong and what stays out too long."""

from __future__ import annotations

import logging
import random
import threading
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from ._colour import Ticker
from ._config import PoolSettings
from ._connector import PooledConnection

logger = logging.getLogger("pgmonkey")

_TICK = 5.0
# Seconds until a connection that could not be made is tried again, doubled each time up to the second.  A borrower does
# not wait for this: it tries for itself, and its success ends the pause.
_RETRY = (0.25, 4.0)


class Kept(Protocol):
    """What upkeep needs of a pool."""

    name: str
    scavenge: Callable[[], Callable[[], None] | None]
    """Returns what takes back what was forgotten, if there is such a thing."""

    @property
    def closed(self) -> bool:
        """Whether the pool was closed."""
        ...

    @property
    def settled(self) -> bool:
        """Whether there are as many connections as there should be."""
        ...

    @property
    def lent(self) -> list[PooledConnection]:
        """The connections that are out."""
        ...

    def grow(self) -> bool:
        """Make a connection if there are fewer than ``min_size``; tell whether one was made."""
        ...

    def shrink(self) -> bool:
        """Close what is dead, too old or idle too long; tell whether there are more connections than ``min_size``."""
        ...


class Upkeep:
    """Keeps one pool in order for as long as there is something to do.

    A pool that is settled has no thread, which would trouble those who fork, and no timer.
    """

    def __init__(self, pool: Kept, settings: PoolSettings) -> None:
        self._owner = weakref.ref(pool)  # or a pool that nobody has any more would have to be found as a cycle
        self._settings = settings
        self.reset()

    def reset(self) -> None:
        """Forget what was going on: the thread that did it stayed with the parent process."""
        self._lock = threading.Lock()
        self._ticker: Ticker | None = None
        self._wanted = False
        self._failing_since: float | None = None
        self._pause = 0.0

    def start(self, *, hurry: bool = False) -> None:
        """Begin; with *hurry*, after somebody's success, end the pause that was made after a failure."""
        with self._lock:
            self._wanted = True
            if self._ticker is None:
                pool = self._owner()
                if pool is None or pool.closed:
                    return
                if self._settings.leak_detection_threshold or not pool.settled:
                    self._ticker = Ticker(self._run)
            elif hurry and self._pause:
                self._pause = 0.0
                self._ticker.hurry()

    def stop(self) -> None:
        """Stop for good."""
        with self._lock:
            ticker, self._ticker = self._ticker, None
        if ticker is not None:
            ticker.stop()

    def _run(self) -> float | None:
        """Do what is to be done; return the seconds until the next time, or None when all is well."""
        self._wanted = False
        pool, settings = self._owner(), self._settings
        if pool is None:
            return None
        surplus = pool.shrink()
        self._report_leaks(pool)
        try:
            while pool.grow():
                """One at a time."""
        except Exception as error:
            return None if pool.closed else self._failed(pool, error)
        self._failing_since, self._pause = None, 0.0
        with self._lock:
            if self._wanted:
                return 0.0
            if not surplus and not settings.leak_detection_threshold:
                self._ticker = None
                return None
        delay = min(_TICK, settings.max_idle / 4, settings.max_lifetime / 4)
        return min(delay, settings.leak_detection_threshold / 2) if settings.leak_detection_threshold else delay

    def _failed(self, pool: Kept, error: Exception) -> float:
        now = monotonic()
        name, patience = pool.name, self._settings.reconnect_timeout
        if self._failing_since is None:
            self._failing_since = now
            logger.warning("%s: cannot connect, trying again: %s", name, error)
        elif 0 < patience <= now - self._failing_since:
            self._failing_since = now
            logger.error("%s: cannot connect for %g s: %s", name, patience, error)
            if self._settings.reconnect_failed is not None:
                self._settings.reconnect_failed(pool)
        shortest, longest = _RETRY
        self._pause = min(2 * self._pause, longest) if self._pause else shortest
        return self._pause * random.uniform(0.75, 1.25)  # noqa: S311

    def _report_leaks(self, pool: Kept) -> None:
        threshold = self._settings.leak_detection_threshold
        if not threshold:
            return
        if (scavenge := pool.scavenge()) is not None:
            scavenge()
        for pooled in pool.lent:
            if not pooled.reported and pooled.place is not None and monotonic() - pooled.borrowed_at >= threshold:
                pooled.reported = True
                logger.warning("%s: a connection is out for long, perhaps it leaks: %s", pool.name, str(pooled))
