"""Notice that a client disconnected before it was answered, and undo what its request did."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Message, Receive

logger = logging.getLogger("pgmonkey")

# Seconds before a request is watched.  Most requests end earlier, and starting a task would cost more than they do.
_WATCH_AFTER = 0.02


class MessageBuffer:
    """The ASGI messages of a request, read ahead of the application to find ``http.disconnect``."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ahead: deque[Message] = deque()
        # The application and the watch may both read, but a server expects one reader at a time.
        self._one_at_a_time = asyncio.Lock()
        self._taken: asyncio.Event | None = None

    async def __call__(self) -> Message:
        """Return the next message: the application's ``receive``."""
        while not self._ahead:
            await self._read_beyond(0)
        message = self._ahead[0]
        if message["type"] != "http.disconnect":  # stays, because every later call must return it again
            self._ahead.popleft()
            if self._taken is not None:
                self._taken.set()
        return message

    async def disconnected(self) -> None:
        """Return when the client has disconnected.

        Reads at most one part of a body that the application has not taken yet, so that an upload is not buffered.
        """
        while True:
            last = self._ahead[-1] if self._ahead else {"type": "http.request"}
            if last["type"] == "http.disconnect":
                return
            if last.get("more_body"):
                self._taken = asyncio.Event()
                await self._taken.wait()
            else:
                await self._read_beyond(len(self._ahead))

    async def _read_beyond(self, count: int) -> None:
        async with self._one_at_a_time:
            if len(self._ahead) <= count:
                self._ahead.append(await self._receive())


class DisconnectWatch:
    """Cancels what a request does when its client disconnects before the response, from 20 ms on."""

    def __init__(self, messages: MessageBuffer, cancel: Callable[[str], Awaitable[None]]) -> None:
        self.client_gone = False
        self._messages = messages
        self._cancel = cancel
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(_WATCH_AFTER, self._start_task)
        self._task: asyncio.Task[None] | None = None

    def _start_task(self) -> None:
        self._task = self._loop.create_task(self._cancel_when_disconnected())

    async def _cancel_when_disconnected(self) -> None:
        await self._messages.disconnected()
        self.client_gone = True
        await self._cancel("the client disconnected")

    async def stop(self) -> None:
        """Stop watching, and wait for the end of a cancellation that has begun."""
        timer, self._timer = self._timer, None  # breaks a reference cycle: its context holds what this cancels
        if timer is not None:
            timer.cancel()
        task, self._task = self._task, None
        if task is not None:
            # Once the client is gone, the task cancels the units, and must not be stopped half-way.
            if not self.client_gone:
                task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and task.exception() is not None:
                logger.warning("cannot cancel the request of a client that disconnected: %s", task.exception())
