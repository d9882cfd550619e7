"""What a request does in its database: in the event loop and in threads, ended as one, undone when its client goes."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgmonkey import AsyncUnitOfWork, UnitOfWork

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope

    from ._app import PGMonkey

logger = logging.getLogger("pgmonkey")

# Seconds after which a request is watched: for most, a task beside it would cost more than what they do.
_SOON = 0.02

current: ContextVar[Scope | None] = ContextVar("pgmonkey_request", default=None)
"""The scope of the request, or of the WebSocket, that the current context serves."""


class RequestUnits:
    """The two units of work of a request: the event loop's and the threads'."""

    def __init__(self, pgmonkey: PGMonkey[Any], scope: Scope, on_borrow: Callable[[], None] | None) -> None:
        def label() -> str:
            return _route(scope)

        self.finished = False
        self._threads = pgmonkey.threads
        self._in_loop: AsyncUnitOfWork[Any] = pgmonkey.async_database.begin(label=label, on_borrow=on_borrow)
        self._in_threads: UnitOfWork[Any] = pgmonkey.sync_database.begin(label=label, on_borrow=on_borrow)

    async def finish(self, error: BaseException | None) -> None:
        """Commit both, or roll both back when there is an *error*; raise what makes a COMMIT fail.

        A second call does nothing.
        """
        if self.finished:
            return
        self.finished = True
        try:
            await self._in_loop.finish(error)
        except BaseException as failure:
            await self._threads.end(self._in_threads, self._in_threads.finish, failure)
            raise
        if self._in_threads.borrowed:
            await self._threads.end(self._in_threads, self._in_threads.finish, error)
        else:
            self._in_threads.finish(error)

    async def roll_back(self, error: BaseException) -> None:
        """Undo what was done; what follows is a new beginning."""
        await self._in_loop.roll_back(error)
        await self._threads.end(self._in_threads, self._in_threads.roll_back, error)

    async def cancel(self, reason: str) -> None:
        """Undo what was done, end the statement that is running, and refuse all that follows."""
        await self._in_loop.cancel(reason)
        await self._threads.end(self._in_threads, self._in_threads.cancel, reason)


class Receiver:
    """The messages of a request, looked at ahead of the application: one of them may be the client's leaving."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ahead: deque[Message] = deque()
        self._one_at_a_time = asyncio.Lock()
        self._taken: asyncio.Event | None = None

    async def __call__(self) -> Message:
        """Return the next message, to the application."""
        while not self._ahead:
            await self._look(0)
        message = self._ahead[0]
        if message["type"] != "http.disconnect":  # which stays, for whoever asks again
            self._ahead.popleft()
            if self._taken is not None:
                self._taken.set()
        return message

    async def gone(self) -> None:
        """Return when the client is gone.

        Looks no further than one part of a body that the application has not read: there may be much behind it.
        """
        while True:
            last = self._ahead[-1] if self._ahead else {"type": "http.request"}
            if last["type"] == "http.disconnect":
                return
            if last.get("more_body"):
                self._taken = asyncio.Event()
                await self._taken.wait()
            else:
                await self._look(len(self._ahead))

    async def _look(self, further_than: int) -> None:
        async with self._one_at_a_time:
            if len(self._ahead) <= further_than:
                self._ahead.append(await self._receive())


class Watch:
    """Undo what a request does when its client goes before it has been answered."""

    def __init__(self, receiver: Receiver) -> None:
        self.client_gone = False
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._units: RequestUnits | None = None
        self._thread = threading.get_ident()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def over(self, units: RequestUnits) -> None:
        """Watch over *units* once `start` is called."""
        self._units = units

    def start(self) -> None:
        """Watch if it takes long; called by whoever borrows the first connection, in whatever thread."""
        if threading.get_ident() == self._thread:
            self._wait()
        else:
            self._loop.call_soon_threadsafe(self._wait)

    def _wait(self) -> None:
        if self._timer is None and self._units is not None:
            self._timer = self._loop.call_later(_SOON, self._start)

    def _start(self) -> None:
        if self._task is None and self._units is not None:
            self._task = self._loop.create_task(self._run(self._units))

    async def _run(self, units: RequestUnits) -> None:
        await self._receiver.gone()
        self.client_gone = True
        await units.cancel("the client disconnected")

    def stop(self) -> bool:
        """Watch no longer; tell whether there is something to wait for, with `stopped`."""
        self._units = None
        timer, self._timer = self._timer, None  # whose context has the units, which have this
        if timer is not None:
            timer.cancel()
        return self._task is not None

    async def stopped(self) -> None:
        """Wait for what the client's leaving set off."""
        task, self._task = self._task, None
        if task is not None:
            if not self.client_gone:
                task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and task.exception() is not None:
                logger.warning("what a client left behind could not be undone at once: %s", task.exception())


def _route(scope: Scope) -> str:
    """Name the request by its route and endpoint: its path may hold what is nobody's business."""
    path = getattr(scope.get("route"), "path", None)
    name = f"{scope['method']} {path or '(no route)'}"
    code = getattr(scope.get("endpoint"), "__code__", None)
    if code is None:
        return name
    return f"{name}, {_relative(code.co_filename)}:{code.co_firstlineno} ({code.co_name})"


def _relative(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
