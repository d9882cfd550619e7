"""When upkeep runs next: soon after a failure, every few seconds while it has work, else never."""

from __future__ import annotations

import math
from random import SystemRandom
from time import monotonic

from .._config.schema import PoolSettings

# Not the program's own generator, whose numbers would change with the pool's work after a ``random.seed()``.
uniform = SystemRandom().uniform

LOOK_EVERY = 5.0
"""Seconds between two looks at a pool that has more connections than it keeps, or watches for leaks."""
# Seconds until a connection that could not be made is tried again: the pause doubles from the first value to the last.
# Borrowers do not wait for it, they try for themselves; the first to succeed ends the pause.
_FIRST_RETRY, _LAST_RETRY = 0.25, 4.0


class Schedule:
    """Decides when upkeep runs again; times in seconds."""

    def __init__(self, settings: PoolSettings) -> None:
        self._settings = settings
        self._failing_since: float | None = None
        self.pause = 0.0
        """How long the present pause after a failure is; 0 when all is well."""

    def failed(self) -> tuple[bool, bool]:
        """Note a failed attempt; return whether it is the first, and whether ``reconnect_timeout`` has passed.

        The latter is reported again after every further ``reconnect_timeout``.
        """
        now, patience = monotonic(), self._settings.reconnect_timeout
        first = self._failing_since is None
        expired = self._failing_since is not None and 0 < patience <= now - self._failing_since
        if first or expired:
            self._failing_since = now
        self.pause = min(2 * self.pause, _LAST_RETRY) if self.pause else _FIRST_RETRY
        return first, expired

    def retry_after(self) -> float:
        """Return the seconds until the next attempt, jittered so that processes do not try all at once."""
        return self.pause * uniform(0.75, 1.25)

    def succeeded(self) -> None:
        """Note that all connections could be made."""
        self._failing_since, self.pause = None, 0.0

    def next_look(self, *, surplus: bool) -> float:
        """Return the seconds until the next look; infinity when there is no work.

        *surplus*: there are more connections than ``min_size``.
        """
        settings, threshold = self._settings, self._settings.leak_detection_threshold
        if not surplus and not threshold:
            return math.inf
        delay = min(LOOK_EVERY, settings.max_idle / 4)
        return min(delay, threshold / 2) if threshold else delay
