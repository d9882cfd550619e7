"""How asyncio waits: locks, queues, timers.  `pgmonkey._sync.waiting` offers the same names to threads."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context
from inspect import isawaitable
from itertools import islice
from time import monotonic
from typing import Any, Generic, Literal, TypeVar, cast

from .._config.schema import Kind
from .._driver.deadlines import SILENT, Deadline

T = TypeVar("T")
sleep = asyncio.sleep
POOL_KIND: Kind = "async_pool"
LOOK_EVERY = 0.25
"""Seconds after which is seen whether there is something for the waiters."""
_NO_ASYNCIO = (
    "no event loop of asyncio is running here: AsyncDatabase and asynchronous pools need one (its own, or uvloop) "
    "and trio's is another; run hypercorn with '--worker-class asyncio', or use Database in threads"
)
# Minimum of seconds between two checks for expired waiters.
_GRAIN = 0.01


current_loop = asyncio.get_running_loop
"""Returns the running event loop: what is opened on one loop cannot be used on another."""


def loop_id() -> int | None:
    """Return what identifies the running event loop; raise RuntimeError when asyncio runs none."""
    try:
        return id(current_loop())
    except RuntimeError:
        raise RuntimeError(_NO_ASYNCIO) from None


def is_over(loop: object | None) -> bool:
    """Tell whether *loop* is closed; its connections are unusable then."""
    return isinstance(loop, asyncio.AbstractEventLoop) and loop.is_closed()


def cannot_wait(error: BaseException | None) -> bool:
    """Tell whether *error* is being handled where awaiting is forbidden: a coroutine that is being closed."""
    return isinstance(error, GeneratorExit)


class _NoLoop:
    """What a future asks when it is made."""

    def get_debug(self) -> bool:
        return False


# To await a future that is done waits for nothing, needs no loop, and calls nothing in Python.
_DONE: asyncio.Future[None] = asyncio.Future(loop=cast(Any, _NoLoop()))
_DONE.set_result(None)


# Stands for what runs outside of any task; never done.
_NO_TASK: asyncio.Future[Any] = asyncio.Future(loop=cast(Any, _NoLoop()))


# Seconds to wait for the end of an attempt to connect that was cancelled; before Python 3.12 it may go on for longer.
_END = 0.02


class Lock(asyncio.Lock):
    """A lock that belongs to the task that took it, and is taken and released in one step each.

    An exception that comes beside such a step leaves it taken.  So its own task is let in again, where it would wait
    for itself; and what a task that has ended did not release is free.
    """

    _task: asyncio.Future[Any] | None = None
    # Of the class, and empty: whoever has to wait makes the lock's own.
    _queue: deque[asyncio.Future[None]] = deque()  # noqa: RUF012
    _timer: asyncio.TimerHandle | None = None

    def locked(self) -> bool:
        """Return whether a task has it."""
        return self._task is not None and not self._task.done()

    def __aenter__(self) -> Any:
        if self._task is None and not self._queue:
            self._task = asyncio.current_task() or _NO_TASK
            return _DONE
        return self.acquire_for(asyncio.current_task())

    def __aexit__(self, *_: object) -> Any:
        self._task = None
        if self._queue:
            self._wake()
        return _DONE

    async def acquire(self) -> Literal[True]:
        """Take the lock when it is free."""
        return await self.acquire_for(asyncio.current_task())

    def release(self) -> None:
        """Release the lock."""
        self._task = None
        if self._queue:
            self._wake()

    async def acquire_for(self, task: asyncio.Task[Any] | None) -> Literal[True]:
        """Take the lock for *task* when it is free, and who came first has had it."""
        first = not self._queue
        while self._task is not task and not (first and not self.locked()):
            await self._wait()
            first = True
        self._task = task or _NO_TASK
        return True

    async def _wait(self) -> None:
        turn: asyncio.Future[None] = current_loop().create_future()
        queue: deque[asyncio.Future[None]] = self.__dict__.setdefault("_queue", deque())
        try:
            queue.append(turn)
            if self._timer is None:
                self._look_later()
            await turn
        except BaseException:
            if not self.locked():
                self._wake()
            raise
        finally:
            with suppress(ValueError):  # `_look` was faster
                self._queue.remove(turn)

    def _wake(self) -> None:
        turn = next((turn for turn in self._queue if not turn.done()), None)
        if turn is not None:
            turn.set_result(None)

    def _look_later(self) -> None:
        # The timer keeps the context it is made in, and with the waiter's context it would keep a whole request alive.
        self._timer = current_loop().call_later(LOOK_EVERY, self._look, context=Context())

    def _look(self) -> None:
        """Do what an interrupted task has left undone; called now and then while others wait."""
        self._timer = None
        if not self.locked():
            self._queue = deque(turn for turn in self._queue if not turn.done())
            self._wake()
        if self._queue:
            self._look_later()


TurnLock = Lock


def try_acquire(lock: asyncio.Lock) -> bool:
    """Acquire *lock* if it is free, without the coroutine that waiting needs; tell whether it was."""
    ours: Lock = lock  # type: ignore[assignment]  # a pooled connection has no other
    if ours._task is not None or ours._queue:
        return False
    ours._task = asyncio.current_task() or _NO_TASK
    return True


def held_by_caller(lock: object) -> bool:
    """Return False: a task is let into a lock that it has."""
    return False


class Caller:
    """A weak reference to the calling task, which names the borrower in messages."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        task = asyncio.current_task()
        self._task: Callable[[], asyncio.Task[object] | None] = (lambda: None) if task is None else weakref.ref(task)

    @staticmethod
    def current() -> Caller:
        """Return the calling task."""
        return Caller()

    def __str__(self) -> str:
        task = self._task()
        return "a task that is gone" if task is None else f"task {task.get_name()!r}"


async def wait_for(future: Future[Any], timeout: float | None) -> None:
    """Wait until *future*, which a thread completes, is done, at most *timeout* seconds."""
    if not future.done():
        awaited = asyncio.wrap_future(future)
        try:
            await asyncio.wait([awaited], timeout=timeout if timeout is None else max(0.0, timeout))
        finally:
            awaited.cancel()  # else the thread would call the loop, which may be closed by then


async def connect_within(
    deadline: Deadline | None, connect: Callable[..., Coroutine[Any, Any, T]], arguments: Mapping[str, Any]
) -> T:
    """Return what *connect* returns; raise `psycopg.errors.ConnectionTimeout` at the *deadline*."""
    if deadline is None:
        return await connect(**arguments)
    # A task of its own, which asyncio's timer ends: psycopg looks at the clock every 100 ms only.
    task = asyncio.ensure_future(connect(**arguments))
    try:
        await asyncio.wait([task], timeout=deadline.left)
        if task.done():
            return task.result()
    except BaseException:
        _give_up(task)
        raise
    _give_up(task)
    await asyncio.wait([task], timeout=_END)
    del task  # with what it was making, for which the server waits: the error's traceback has this frame
    raise deadline.late(SILENT)


def _give_up(connecting: asyncio.Task[Any]) -> None:
    connecting.cancel()
    connecting.add_done_callback(_close_made)


def _close_made(connecting: asyncio.Future[Any]) -> None:
    # Python 3.10 and 3.11 may lose a cancellation, and go on.
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().pgconn.finish()


async def acquire(lock: asyncio.Lock, timeout: float) -> bool:
    """Acquire *lock* within *timeout* seconds; tell whether that succeeded."""
    try:
        # Before Python 3.12 it is another task that waits.
        return await asyncio.wait_for(cast(Lock, lock).acquire_for(asyncio.current_task()), timeout)
    except asyncio.TimeoutError:  # the built-in TimeoutError only from Python 3.11 on
        return False


async def wait_for_turn(lock: Lock, timeout: float) -> bool:
    """Wait until *lock* is free for an ``async with`` that follows at once; tell whether that took less than *timeout*.

    The lock stays taken: the ``async with`` lets the task that has it in, and releases it.
    """
    return await acquire(lock, timeout)


async def ask(function: Callable[[], Any]) -> Any:
    """Return what *function* returns, which may be a coroutine function or one that blocks."""
    answer = await asyncio.to_thread(function)
    return await answer if isawaitable(answer) else answer


async def done(result: Any) -> Any:
    """Return what a function has returned, which may be one for coroutines."""
    return await result if isawaitable(result) else result


async def chunks(rows: Iterable[Any] | AsyncIterable[Any], size: Callable[[], int]) -> AsyncGenerator[list[Any], None]:
    """Yield lists of *rows*, each of at most as many as *size* returns then."""
    if isinstance(rows, AsyncIterable):
        chunk: list[Any] = []
        wanted = size()
        async for row in rows:
            chunk.append(row)
            if len(chunk) == wanted:
                yield chunk
                chunk, wanted = [], size()
        if chunk:
            yield chunk
    else:
        iterator = iter(rows)
        while chunk := list(islice(iterator, size())):
            yield chunk


def process_ends() -> bool:
    """Return False: the end of a process ends its loops, and cancels their tasks."""
    return False


class Bell:
    """Wakes the one task that waits for it; any thread may ring."""

    _future: asyncio.Future[None] | None = None

    @property
    def awaited(self) -> bool:
        """Whether a task waits for it."""
        return self._future is not None

    async def wait(self, timeout: float) -> None:
        """Wait until it rings, or *timeout* seconds have passed."""
        loop = current_loop()
        self._future = future = loop.create_future()
        timer = loop.call_later(timeout, _wake, future)
        try:
            await future
        finally:
            timer.cancel()
            self._future = None

    def ring(self) -> None:
        """Wake the task that waits now."""
        future = self._future
        if future is not None and not (loop := future.get_loop()).is_closed():
            if asyncio._get_running_loop() is loop:
                _wake(future)
            else:
                loop.call_soon_threadsafe(_wake, future)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Waiter(Generic[T]):
    """A place in a queue: one task waits until the *deadline*, as `time.monotonic` gives it; any thread may deliver.

    *look* is called now and then: whoever should have delivered may have been interrupted.
    """

    def __init__(self, deadline: float, look: Callable[[], None]) -> None:
        self.deadline = deadline
        self.look = look
        self._thread = threading.get_ident()  # on this thread the loop is called directly
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self) -> None:
        """Wait until something is delivered, or the deadline has passed."""
        await self._future

    def deliver(self, result: T | None) -> bool:
        """Wake the waiter, from whatever thread, with *result*, None when it waits in vain; False if it had one."""
        taken = self.__dict__.setdefault("result", result) is result
        loop = self._future.get_loop()
        # Connections are given back by finalizers, too, which run on whatever thread.
        if threading.get_ident() == self._thread:
            self.wake()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(self.wake)
        return taken

    def leave(self) -> T | None:
        """Take nothing from now on; return what was delivered before."""
        result: T | None = self.__dict__.setdefault("result", None)
        return result

    def wake(self) -> None:
        """Let the task go on, whether or not something was delivered."""
        if not self._future.done():
            self._future.set_result(None)


class Queue(deque[Waiter[T]]):
    """Waiters in order of arrival.

    One timer serves them all: with one for each, thousands would be set and hardly one would go off.
    """

    _timer: asyncio.TimerHandle | None = None
    _due = float("inf")

    def append(self, waiter: Waiter[T]) -> None:
        """Append a waiter, which is woken at its deadline."""
        super().append(waiter)
        self._look(min(waiter.deadline, monotonic() + LOOK_EVERY))

    def _look(self, when: float) -> None:
        if self._due <= when:
            return
        if self._timer is not None:
            self._timer.cancel()
        loop, wait = asyncio.get_running_loop(), max(0.0, when - monotonic())
        this: weakref.ref[Queue[T]] = weakref.ref(self)
        # The timer keeps the context it is made in, and with the waiter's context it would keep a whole request alive.
        self._timer = loop.call_later(wait, _look_after, this, context=Context())
        self._due = when

    def look_after(self) -> None:
        """Wake those whose deadline has passed, and see whether there is something for the others."""
        try:
            waiters = list(self)
            if waiters:
                waiters[0].look()
            for waiter in waiters:
                if waiter.deadline <= monotonic():
                    waiter.wake()
        finally:
            self._due = float("inf")
            now = monotonic()
            later = [waiter.deadline for waiter in self if waiter.deadline > now]
            if later:
                self._look(min(max(min(later), now + _GRAIN), now + LOOK_EVERY))


def _look_after(queue: weakref.ref[Queue[T]]) -> None:
    if (this := queue()) is not None:
        this.look_after()


class Ticker:
    """Call a method of an object again and again, until it returns None, for as long as the object lives.

    A timer rather than a task between the calls, so that nothing is pending when a loop is closed.
    """

    paused = False
    """It is never: a task does not run while its process forks."""

    def __init__(self, method: Callable[[], Awaitable[float | None]]) -> None:
        self._method = weakref.WeakMethod(method)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(0, self._tick)
        self._task: asyncio.Task[None] | None = None

    def _tick(self) -> None:
        self._task = self._loop.create_task(self._run())
        # What ends it, such as sys.exit() in a signal handler, ends the loop, too: it is not to be told twice.
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())

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
        # The loop's own methods are not thread-safe, and a pool may be closed from anywhere.
        for handle in (timer, task):
            if handle is not None:
                self._loop.call_soon_threadsafe(handle.cancel)
