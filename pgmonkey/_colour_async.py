"""What waiting means in asyncio.  `_colour` offers the same names to threads."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from inspect import isawaitable
from typing import Any, Generic, TypeVar

from ._config import Kind

T = TypeVar("T")
sleep = asyncio.sleep
POOL_KIND: Kind = "async_pool"
INTERRUPTS = (asyncio.CancelledError, KeyboardInterrupt)
"""What may end a wait from outside."""


current_loop = asyncio.get_running_loop
"""Returns the running event loop: what is opened on one loop cannot be used on another."""


def is_over(loop: object | None) -> bool:
    """Tell whether *loop* is closed, so that what belongs to it is of no use any more."""
    return isinstance(loop, asyncio.AbstractEventLoop) and loop.is_closed()


def cannot_wait(error: BaseException | None) -> bool:
    """Tell whether *error* is being handled where awaiting is forbidden: a coroutine that is being closed."""
    return isinstance(error, GeneratorExit)


class Lock(asyncio.Lock):
    """asyncio's, with short ways for when nobody else wants it.  See `take`."""

    _locked: bool
    _waiters: Any

    def release(self) -> None:
        """Let go of it."""
        if self._waiters or not self._locked:
            super().release()
        else:
            self._locked = False


def take(lock: Lock) -> bool:
    """Take *lock* if it is free, without the coroutine that it takes to wait for it; tell whether it was."""
    if lock._locked or lock._waiters:
        return False
    lock._locked = True
    return True


class Runner:
    """The task that is running, which this does not keep alive."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        task = asyncio.current_task()
        self._task: Callable[[], asyncio.Task[Any] | None] = (lambda: None) if task is None else weakref.ref(task)

    @staticmethod
    def current() -> Runner:
        """Return the one that is calling."""
        return Runner()

    def __str__(self) -> str:
        task = self._task()
        return "a task that is gone" if task is None else f"task {task.get_name()!r}"

    @property
    def ended(self) -> bool:
        """Whether it will never do anything again."""
        task = self._task()
        return task is None or task.done()


async def wait_for(future: Future[None], timeout: float) -> None:
    """Wait until *future*, which a thread completes, is done, at most *timeout* seconds."""
    if not future.done():
        await asyncio.wait([asyncio.wrap_future(future)], timeout=max(0.0, timeout))


async def acquire(lock: asyncio.Lock, timeout: float) -> bool:
    """Take *lock* within *timeout* seconds; tell whether that succeeded."""
    try:
        return await asyncio.wait_for(lock.acquire(), timeout)
    except asyncio.TimeoutError:  # the built-in TimeoutError only from Python 3.11 on
        return False


async def ask(function: Callable[[], Any]) -> Any:
    """Return what *function* returns, which may be a coroutine function or one that blocks."""
    answer = await asyncio.to_thread(function)
    return await answer if isawaitable(answer) else answer


class Waiter(Generic[T]):
    """A place in a queue: one task waits, anybody delivers."""

    def __init__(self) -> None:
        self.result: T | None = None
        self._thread = threading.get_ident()
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self, timeout: float) -> None:
        """Wait until something is delivered, at most *timeout* seconds."""
        timer = self._future.get_loop().call_later(timeout, self._wake)
        try:
            await self._future
        finally:
            timer.cancel()

    def deliver(self, result: T) -> None:
        """Set the result and wake the waiter, from whatever thread."""
        self.result = result
        loop = self._future.get_loop()
        if loop.is_closed():
            return
        if threading.get_ident() == self._thread:
            self._wake()
        else:
            loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


class Ticker:
    """Call a method of an object again and again, until it returns None, for as long as the object lives.

    A timer rather than a task between the calls, so that nothing is pending when a loop is closed.
    """

    def __init__(self, method: Callable[[], Awaitable[float | None]]) -> None:
        self._method: Any = weakref.WeakMethod(method)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(0, self._tick)
        self._task: asyncio.Task[None] | None = None

    def _tick(self) -> None:
        self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        method = self._method()
        if method is not None and self._timer is not None:
            delay = await method()
            if delay is not None and self._timer is not None:
                self._timer = self._loop.call_later(delay, self._tick)

    def hurry(self) -> None:
        """Call now what is due later."""
        if self._timer is not None and (self._task is None or self._task.done()):
            self._timer.cancel()
            self._timer = self._loop.call_later(0, self._tick)

    def stop(self) -> None:
        """Stop for good; safe to call from any thread and after the loop was closed."""
        timer, task = self._timer, self._task
        self._timer = self._task = None
        if timer is None or self._loop.is_closed():
            return
        for handle in (timer, task):
            if handle is not None:
                self._loop.call_soon_threadsafe(handle.cancel)
