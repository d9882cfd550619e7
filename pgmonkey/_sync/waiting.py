"""How threads wait: locks, queues, timers.  `pgmonkey._async.waiting` offers the same names to asyncio."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from itertools import islice
from operator import methodcaller
from queue import Empty, SimpleQueue
from types import MethodType
from typing import Any, Generic, TypeVar, cast

from .._config.schema import Kind
from .._driver.deadlines import Deadline, connecting_until

T = TypeVar("T")
Lock = threading.Lock
TurnLock = type(threading.RLock())  # the function would be one call more
"""A lock that lets its own thread in again, which then can be told that it is there already."""
try_acquire: Callable[[Lock | threading.RLock], bool] = methodcaller("acquire", False)
"""Acquires a lock if it is free; tells whether it was."""
sleep = time.sleep
POOL_KIND: Kind = "pool"
LOOK_EVERY = 0.25
"""Seconds after which a waiter looks itself whether there is something for it."""


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


def held_by_caller(lock: Lock) -> bool:
    """Tell whether the caller waits for itself: whether one of the frames above it has *lock* in a variable so named.

    Those that hold the lock of a connection have.
    """
    frame = sys._getframe(2) if lock.locked() else None
    # Only the variables of those that have one so named: up to Python 3.12, a frame keeps all that were looked at.
    while frame is not None and not ("lock" in frame.f_code.co_varnames and frame.f_locals.get("lock") is lock):
        frame = frame.f_back
    return frame is not None


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


def wait_for(future: Future[Any], timeout: float | None) -> None:
    """Wait until *future*, which another thread completes, is done, at most *timeout* seconds."""
    wait([future], timeout=timeout if timeout is None else max(0.0, timeout))


def connect_within(deadline: Deadline | None, connect: Callable[..., T], arguments: Mapping[str, Any]) -> T:
    """Return what *connect* returns; raise `psycopg.errors.ConnectionTimeout` at the *deadline*."""
    # In a context of its own: an interruption could leave the deadline to whoever connects next in this one.
    context = copy_context()
    context.run(connecting_until.set, deadline)
    return context.run(partial(connect, **arguments))


def acquire(lock: threading.Lock, timeout: float) -> bool:
    """Acquire *lock* within *timeout* seconds; tell whether that succeeded."""
    return lock.acquire(timeout=timeout)


def wait_for_turn(lock: threading.RLock, timeout: float) -> bool:
    """Wait until *lock* is free for a ``with`` that follows at once; tell whether that took less than *timeout*.

    Released again: an exception here must not leave it taken, so another thread may yet come first.
    """
    free = lock.acquire(timeout=timeout)
    if free:
        lock.release()
    return free


def ask(function: Callable[[], T]) -> T:
    """Return what *function* returns."""
    return function()


def done(result: T) -> T:
    """Return what a function has returned."""
    return result


def chunks(rows: Iterable[Any], size: Callable[[], int]) -> Generator[list[Any], None, None]:
    """Yield lists of *rows*, each of at most as many as *size* returns then."""
    iterator = iter(rows)
    while chunk := list(islice(iterator, size())):
        yield chunk


def process_ends() -> bool:
    """Tell whether the main thread has ended, and the process waits for the others."""
    return not threading.main_thread().is_alive()


class Bell:
    """Wakes the one thread that waits for it."""

    awaited = False
    """Whether a thread waits for it."""

    def __init__(self) -> None:
        # As in `Waiter`, not an event.
        self._rung: SimpleQueue[None] = SimpleQueue()

    def wait(self, timeout: float) -> None:
        """Wait until it rings, or *timeout* seconds have passed."""
        end = time.monotonic() + timeout
        try:
            self.awaited = True
            while (left := end - time.monotonic()) > 0 and not process_ends():
                with suppress(Empty):
                    self._rung.get(timeout=min(left, LOOK_EVERY))
                    return
        finally:
            self.awaited = False

    def ring(self) -> None:
        """Wake the thread that waits, or is about to wait."""
        if self._rung.empty():
            self._rung.put(None)


class Waiter(Generic[T]):
    """A place in a queue: one thread waits until the *deadline*, as `time.monotonic` gives it; any may deliver.

    *look* is called now and then: whoever should have delivered may have been interrupted.
    """

    def __init__(self, deadline: float, look: Callable[[], None]) -> None:
        self.deadline = deadline
        self._look = look
        # Not an event, which is a lock and Python code around it: interrupted there, nobody could ever wake it.
        self._wakes: SimpleQueue[None] = SimpleQueue()

    def wait(self) -> None:
        """Wait until something is delivered, or it has been long enough."""
        while "result" not in self.__dict__ and (left := self.deadline - time.monotonic()) > 0:
            try:
                self._wakes.get(timeout=min(left, LOOK_EVERY))
            except Empty:
                self._look()

    def deliver(self, result: T | None) -> bool:
        """Wake the waiter, from whatever thread, with *result*, None when it waits in vain; False if it had one."""
        taken = self.__dict__.setdefault("result", result) is result
        self._wakes.put(None)
        return taken

    def leave(self) -> T | None:
        """Take nothing from now on; return what was delivered before."""
        result: T | None = self.__dict__.setdefault("result", None)
        return result


Queue = deque
"""Waiters in order of arrival."""


class Ticker:
    """Call a method of an object again and again in a daemon thread, until it returns None or the object is gone.

    There is no such thread while the process forks: Python warns of forks in processes with threads.  It begins at the
    first `hurry`.
    """

    def __init__(self, method: Callable[[], float | None]) -> None:
        self._method = weakref.WeakMethod(method)
        self._stopped = False
        self.paused = False
        """Whether the process forks: what is at work is to stop as soon as it can."""
        self._due = 0.0
        # As in `Waiter`, not an event.
        self._wakes: SimpleQueue[object] = SimpleQueue()
        # The method of a queue, in C, cannot be interrupted.
        self._forgotten = weakref.ref(cast(MethodType, method).__self__, self._wakes.put)
        self._turn = deque([None])
        """Empty while a thread is at work: several may have been started at once, and the first one takes it."""
        self._thread: threading.Thread | None = None
        _tickers.add(self)

    def _work(self) -> None:
        # Asked again when the turn is free: `resume` may have come before that.
        while not (self.paused or self._stopped):
            try:
                self._turn.pop()
            except IndexError:
                return
            self._thread = threading.current_thread()
            try:
                self._run()
            finally:
                self._turn.append(None)
                _ended.append(threading.get_native_id())

    def _run(self) -> None:
        while not self._stopped:
            # Not sleep(): it can be hurried and stopped.
            with suppress(Empty):
                self._wakes.get(timeout=max(0.0, self._due - time.monotonic()))
                while True:  # one look serves all
                    self._wakes.get_nowait()
            method = self._method()
            if self.paused:
                return  # with the method still due
            try:
                delay = None if method is None or self._stopped else method()
            except SystemExit:  # of `reconnect_failed`: in a thread, it would end nothing but that
                delay = _AFTER_EXIT
            if delay is None:
                self._stopped = True
                return
            self._due = time.monotonic() + delay
            del method  # or this thread would keep the pool alive while it sleeps

    def hurry(self) -> None:
        """Call now what is due later; raise RuntimeError when no thread can be started."""
        self._due = 0.0
        self._wakes.put(None)
        if not self.paused:
            self._begin()

    def stop(self) -> None:
        """Stop for good."""
        self._stopped = True
        self._wakes.put(None)

    def pause(self) -> None:
        """End the thread until `resume` is called; where it is at work, it ends with the next thing that it does."""
        self.paused = True
        self._wakes.put(None)

    def join(self, deadline: float) -> None:
        """Wait until the thread has ended, which `pause` has told to, at the latest until the *deadline*."""
        if self._thread not in (None, threading.current_thread()):
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def resume(self) -> None:
        """Go on after `pause`; raise RuntimeError when no thread can be started."""
        self.paused = False
        self._begin()

    def _begin(self) -> None:
        if self._turn and not self._stopped:
            thread = threading.Thread(target=self._work, name="pgmonkey-upkeep", daemon=True)
            # Where threads inherit the context of who starts them, this one would keep that of a borrower.
            Context().run(thread.start)


# Seconds that a fork waits for threads that are at work.  One may be inside OpenSSL, and hold a lock that nobody would
# release in the child, where each new connection would wait for it.
_PAUSE = 2.0
# Seconds between two looks at a thread that ends, which takes less than a millisecond.
_GRAIN = 0.0002
# Seconds until upkeep goes on that the program's own function has told to exit.
_AFTER_EXIT = 0.25
_tickers: weakref.WeakSet[Ticker] = weakref.WeakSet()
# The latest threads that have ended, as the system numbers them.
_ended: deque[int] = deque(maxlen=100)


def _before_fork() -> None:
    tickers = list(_tickers)
    for ticker in tickers:
        ticker.pause()
    deadline = time.monotonic() + _PAUSE  # of them all: a server that answers nothing holds up each
    for ticker in tickers:
        ticker.join(deadline)
    # After the last line of Python, a thread frees what OpenSSL has for it, with such a lock.  Where there is no /proc
    # nothing tells when it has.
    deadline = time.monotonic() + _PAUSE
    while _ended:
        task = f"/proc/self/task/{_ended.pop()}"
        while os.path.exists(task) and time.monotonic() < deadline:
            time.sleep(_GRAIN)


def _after_fork_in_parent() -> None:
    for ticker in list(_tickers):
        with suppress(RuntimeError):  # it is tried again when there is something to do
            ticker.resume()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
