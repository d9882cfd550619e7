"""A lock that finalizers can live with."""

from __future__ import annotations

import threading
from collections.abc import Callable
from weakref import WeakMethod


class DeferringLock:
    """A lock, and what must not wait for it.

    A finalizer may run in the middle of any section that the lock guards, on the very thread that holds it: it leaves
    its work to whoever holds the lock, who calls *afterwards* after letting go: a method of what owns the lock.
    """

    def __init__(self, afterwards: Callable[[], None]) -> None:
        self.plain = self._lock = threading.Lock()
        """For the way that is taken most: whoever holds the lock by this calls *afterwards* himself."""
        self._afterwards = WeakMethod(afterwards)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()
        if (afterwards := self._afterwards()) is not None:
            afterwards()

    def free(self) -> bool:
        """Tell whether nobody, this thread included, holds the lock at this moment."""
        return not self._lock.locked()
