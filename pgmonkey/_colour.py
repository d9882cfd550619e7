"""What waiting means in threads.  `_colour_async` offers the same names to asyncio."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ._config import Kind

T = TypeVar("T")
Lock = threading.Lock
sleep = time.sleep
POOL_KIND: Kind = "pool"


def current_loop() -> object | None:
    """Return None: threads share what is open."""
    return None


def is_over(loop: object | None) -> bool:
    """Return False: threads have no loop that could end."""
    return False


def cannot_wait(error: BaseException | None) -> bool:
    """Return False: a thread may always wait."""
    return False


class Waiter(Generic[T]):
    """A place in a queue: one thread waits, anybody delivers."""

    def __init__(self) -> None:
        self.result: T | None = None
        self._event = threading.Event()

    def wait(self, timeout: float) -> None:
        """Wait until something is delivered, at most *timeout* seconds."""
        self._event.wait(timeout)

    def deliver(self, result: T) -> None:
        """Set the result and wake the waiter, from whatever thread."""
        self.result = result
        self._event.set()


class Ticker:
    """Call a method of an object again and again in a daemon thread, until it returns None or the object is gone."""

    def __init__(self, method: Callable[[], float | None]) -> None:
        self._method: Any = weakref.WeakMethod(method)
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="pgmonkey-maintenance", daemon=True).start()

    def _run(self) -> None:
        delay: float | None = 0.0
        while delay is not None and not self._stopped.wait(delay):
            method = self._method()
            if method is None:
                return
            delay = method()
            del method  # or this thread would keep the pool alive while it sleeps

    def stop(self) -> None:
        """Stop for good."""
        self._stopped.set()
