"""LISTEN: one connection of the process for all listeners of a database, made again when it is lost.

No task or thread of its own reads the connection: one of those that wait for notifications does it for all of them, and
when it has what it waited for, the next one goes on.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Awaitable, Callable
from os import getpid
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, cast

import psycopg
from psycopg import sql

from .._driver.deadlines import Deadline
from .._driver.wire import Arriving, arriving
from .._pool import forks
from .._pool.mailbox import Gap, Mailbox, Note
from .._pool.schedule import uniform
from .connector import AsyncConnector
from .cursor import fast_cursor
from .guard import AsyncGuard
from .psycopg_types import AsyncAnyConnection
from .waiting import LOOK_EVERY, Bell, TurnLock, process_ends, sleep, try_acquire

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("pgmonkey")

# Seconds between attempts to connect again: at random up to the first, doubled each time up to the second.
_PAUSE = (0.2, 5.0)
# Seconds after which one that waits looks whether somebody reads: whoever did may have been interrupted.
_PATIENCE = 5.0
_FORKED = "the process was forked"


class AsyncListener:
    """The connection that listens, and its listeners.

    *name* is the pool's, for messages; *timeout* is how long connecting may take, in seconds.
    """

    def __init__(self, connector: AsyncConnector, name: str, timeout: float) -> None:
        self._connector = connector
        self._name = name
        self._timeout = timeout
        self._ended = False
        self._listeners: dict[int, Callable[[], AsyncListening | None]] = {}
        self._connection: AsyncAnyConnection | None = None
        self._pid = getpid()
        self._arriving = Arriving()
        self._channels: set[str] = set()
        """What the server was told to send on this connection."""
        self._lost: tuple[float, str] | None = None
        """When the last connection was lost, and why; None while there is one, or was none."""
        # Whoever has it reads for all.
        self._turn = TurnLock()
        self._reading = False
        forks.register(self)

    # -- listeners --------------------------------------------------------------------------------------------------

    async def wait(self, listening: AsyncListening, *, for_note: bool) -> bool:
        """Wait until *listening* has a note, or else until it hears; False when that ends."""
        mailbox = listening.mailbox
        if self._pid != getpid():
            self.after_fork_in_child()  # nobody has told us of the fork
        self._listeners.setdefault(id(listening), weakref.ref(listening))
        try:
            while not (mailbox.notes if for_note else mailbox.heard):
                if self._is_over(mailbox):
                    return False
                if not try_acquire(self._turn):
                    await listening.bell.wait(_PATIENCE)
                    continue
                try:
                    self._reading = True
                    await self._read(mailbox, for_note)
                finally:
                    self._reading = False
                    self._turn.release()
        finally:
            self._hand_over(listening)
        return True

    def forget(self, listening: AsyncListening) -> None:
        """Stop to listen for *listening*; close the connection when it was the last."""
        self._listeners.pop(id(listening), None)
        if not self._listeners and not self._reading:
            self._disconnect()

    def close(self) -> None:
        """End all that is listening; may be called from anywhere."""
        self._ended = True
        self._ring()
        if not self._reading:
            self._disconnect()

    def after_fork_in_child(self) -> None:
        """Leave the connection to the parent."""
        connection, self._connection = self._connection, None
        self._pid, self._turn, self._reading = getpid(), TurnLock(), False
        self._listeners, self._channels = {}, set()
        if connection is not None:
            self._lost = monotonic(), _FORKED
            cast("AsyncGuard", connection).own_watcher().disown()
            forks.disown(connection.pgconn)

    def _is_over(self, mailbox: Mailbox) -> bool:
        return self._ended or mailbox.closed or process_ends()

    def _hand_over(self, done: AsyncListening) -> None:
        """Wake one that waits, to read in the place of the one that is *done*."""
        if self._reading:
            return
        others = [listening for listening in self._present() if listening is not done]
        waiting = [listening for listening in others if listening.bell.awaited]
        for listening in waiting[:1] or others:  # a thread may be about to wait
            listening.bell.ring()
        if self._ended or not self._listeners:
            self._disconnect()

    def _ring(self) -> None:
        for listening in self._present():
            listening.bell.ring()

    def _present(self) -> list[AsyncListening]:
        found = [reference() for reference in list(self._listeners.values())]
        return [listening for listening in found if listening is not None]

    # -- the connection ---------------------------------------------------------------------------------------------

    async def _read(self, mailbox: Mailbox, for_note: bool) -> None:
        """Give out what comes until *mailbox* has what it waits for, or is closed."""
        pause, longest = _PAUSE
        while not (mailbox.notes if for_note else mailbox.heard) and not self._is_over(mailbox):
            try:
                connection = self._connection or await self._connect()
                await self._subscribe(connection)
                pause = _PAUSE[0]
                if for_note or not mailbox.heard:
                    until = monotonic() + LOOK_EVERY
                    await connection.wait(arriving(connection.pgconn, self._arriving, until), interval=LOOK_EVERY)
                self._give_out()
            except psycopg.OperationalError as error:
                if self._connection is None and self._lost is None:
                    raise  # the first connection: its error is the listener's own
                self._lose(error)
                await self._rest(uniform(0, pause), mailbox)
                pause = min(2 * pause, longest)

    async def _connect(self) -> AsyncAnyConnection:
        connection = await self._connector.connect_alone(Deadline(monotonic() + self._timeout, self._timeout))
        self._arriving.attach(connection.pgconn)
        connection.__dict__["fast_cursor"] = fast_cursor  # by which a tracer sees what is executed
        self._channels = set()
        self._connection = connection
        return connection

    async def _subscribe(self, connection: AsyncAnyConnection) -> None:
        """Tell the server what to send; note who hears from now on, and who has missed something."""
        present = self._present()
        wanted = {name for listening in present for name in listening.mailbox.channels}
        if wanted != self._channels:
            commands = [(sql.SQL("LISTEN {}"), name) for name in wanted - self._channels]
            commands += [(sql.SQL("UNLISTEN {}"), name) for name in self._channels - wanted]
            texts = [command.format(sql.Identifier(name)) for command, name in commands]
            await connection.execute(sql.SQL("; ").join(texts))
            self._channels = wanted
        lost, self._lost = self._lost, None
        if lost is not None and lost[1] != _FORKED:
            logger.warning("%s: listening again after %.1f s", self._name, monotonic() - lost[0])
        for listening in present:
            mailbox = listening.mailbox
            if not mailbox.heard and wanted.issuperset(mailbox.channels):
                mailbox.heard = True
            elif lost is not None:
                mailbox.put(Gap(lost[1], monotonic() - lost[0]))
            else:
                continue
            listening.bell.ring()

    def _give_out(self) -> None:
        notes, present = self._arriving.take(), self._present()
        for note in notes:
            for listening in present:
                if note.channel in listening.mailbox.channels:
                    listening.mailbox.put(note)
                    listening.bell.ring()

    def _lose(self, error: psycopg.Error) -> None:
        self._give_out()  # what came before the end
        reason = self._arriving.last_words or " ".join(str(error).split())
        if self._lost is None:
            self._lost = monotonic(), reason
            logger.warning("%s: lost the connection that listens, reconnecting: %s", self._name, reason)
        self._disconnect()

    async def _rest(self, seconds: float, mailbox: Mailbox) -> None:
        end = monotonic() + seconds
        while (left := end - monotonic()) > 0 and not self._is_over(mailbox):
            await sleep(min(left, LOOK_EVERY))

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._pid == getpid():
            cast("AsyncGuard", connection).own_watcher().finish()


class AsyncListening:
    """The notifications of some channels: ``async for note in db.listen("orders")``.

    Each is a `psycopg.Notify`, with ``channel``, ``payload`` and ``pid``, or a `Gap`, where the connection was lost and
    some may have been missed.  The server is told to send them when the first one is waited for, or when
    ``async with db.listen("orders") as notes`` is entered.  It ends when it is closed, when the database is, and when
    the process ends.
    """

    _listener: AsyncListener | None = None

    def __init__(self, find: Callable[[], Awaitable[AsyncListener]], channels: tuple[str, ...]) -> None:
        self._find = find
        self.mailbox = Mailbox(channels)
        """What was heard and not taken yet."""
        self.bell = Bell()
        """Rung when there is something in it."""

    async def __aenter__(self) -> Self:
        await self._wait(for_note=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Note:
        while True:
            try:
                return self.mailbox.notes.popleft()
            except IndexError:
                pass
            if not await self._wait(for_note=True):
                raise StopAsyncIteration

    async def _wait(self, *, for_note: bool) -> bool:
        if self.mailbox.closed:
            return False
        if self._listener is None:
            self._listener = await self._find()
        return await self._listener.wait(self, for_note=for_note)

    async def aclose(self) -> None:
        """Stop listening; whoever waits gets no more."""
        self.stop()

    def stop(self) -> None:
        """Do as `aclose`, where nothing can be awaited."""
        self.mailbox.closed = True
        self.bell.ring()
        if self._listener is not None:
            self._listener.forget(self)

    def __del__(self) -> None:
        """Forget what nobody listens to any more."""
        if self._listener is not None:
            self._listener.forget(self)
