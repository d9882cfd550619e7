"""How threads wait: locks, queues, timers.  `pgmonkey._async.waiting` offers the same names to asyncio."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

from .._config.schema import Kind

T = TypeVar("T")
Lock = threading.Lock
TurnLock = type(threading.RLock())  # the function would be one call more
"""A lock that lets its own thread in again, which then can be told that it is there already."""
try_acquire: Callable[[Lock], bool] = type(Lock()).acquire
"""Acquires a lock and returns True.  It may block: only a task has something to gain from trying first."""
sleep = time.sleep
POOL_KIND: Kind = "pool"
INTERRUPTS = (KeyboardInterrupt,)
"""What interrupts a wait."""


def current_loop() -> object | None:
    """Return None: threads share what is open."""
    return None


def loop_id() -> int | None:
    """Return None: what is open serves every thread."""
    return None


def is_over(loop: object | None) -> bool:
    """Return False: threads have no loop that could end."""
    return False


def cannot_wait(error: BaseException | None) -> bool:
    """Return False: a thread may always wait."""
    return False


class Caller:
    """The calling thread, which names the borrower in messages."""

    __slots__ = ("_thread",)

    def __init__(self) -> None:
        self._thread = threading.current_thread()

    @staticmethod
    def current() -> Caller:
        """Return the calling thread."""
        return _of_thread.caller

    def __str__(self) -> str:
        return f"thread {self._thread.name!r}"


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.caller = Caller()


_of_thread = _OfThread()


def wait_for(future: Future[None], timeout: float) -> None:
    """Wait until *future*, which another thread completes, is done, at most *timeout* seconds."""
    wait([future], timeout=max(0.0, timeout))


def acquire(lock: threading.Lock, timeout: float) -> bool:
    """Acquire *lock* within *timeout* seconds; tell whether that succeeded."""
    return lock.acquire(timeout=timeout)


def ask(function: Callable[[], T]) -> T:
    """Return what *function* returns."""
    return function()


class Waiter(Generic[T]):
    """A place in a queue: one thread waits until the *deadline*, as `time.monotonic` gives it; any may deliver."""

    def __init__(self, deadline: float) -> None:
        self.result: T | None = None
        self.deadline = deadline
        self._event = threading.Event()

    def wait(self) -> None:
        """Wait until something is delivered, or it has been long enough."""
        self._event.wait(self.deadline - time.monotonic())

    def deliver(self, result: T) -> None:
        """Set the result and wake the waiter, from whatever thread."""
        self.result = result
        self._event.set()


class Queue(deque[Waiter[T]]):
    """Waiters in order of arrival."""

    def add(self, deadline: float) -> Waiter[T]:
        """Append a waiter and return it."""
        waiter: Waiter[T] = Waiter(deadline)
        self.append(waiter)
        return waiter


class Ticker:
    """Call a method of an object again and again in a daemon thread, until it returns None or the object is gone."""

    def __init__(self, method: Callable[[], float | None]) -> None:
        self._method = weakref.WeakMethod(method)
        self._stopped = False
        self._wake = threading.Event()
        threading.Thread(target=self._run, name="pgmonkey-upkeep", daemon=True).start()

    def _run(self) -> None:
        delay: float | None = 0.0
        while delay is not None:
            # An event, not sleep(): it can be hurried and stopped.
            self._wake.wait(delay)
            self._wake.clear()
            method = self._method()
            if method is None or self._stopped:
                return
            delay = method()
            del method  # or this thread would keep the pool alive while it sleeps

    def hurry(self) -> None:
        """Call now what is due later."""
        self._wake.set()

    def stop(self) -> None:
        """Stop for good."""
        self._stopped = True
        self._wake.set()
