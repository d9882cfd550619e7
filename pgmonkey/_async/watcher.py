"""How a connection waits in an event loop.  `pgmonkey._sync.watcher` does the same in threads."""

from __future__ import annotations

import asyncio
import weakref
from asyncio import get_running_loop
from collections.abc import Awaitable
from contextlib import suppress
from contextvars import Context
from os import getpid
from time import monotonic
from typing import Any, TypeAlias, TypeVar, cast

import psycopg
from psycopg import waiting
from psycopg.abc import PQGen
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

from .._driver.compat import GENERATORS
from .._driver.deadlines import INTERVAL, PRECISION, limited, patient, resumed, too_slow
from .._driver.liveness import Arrived, make_poller
from .._driver.wire import fetching, has_error, read_results

T = TypeVar("T")
_Answer: TypeAlias = "asyncio.Future[Any]"

_READ, _WRITE = int(Wait.R), int(Wait.W)
# As a plain number, which is faster to compare than a member of an enumeration.
_OK = int(ConnStatus.OK)


class Watcher:
    """Watches the socket of one connection in its event loop, for as long as the connection lives.

    psycopg begins to watch anew, and sets a timer, whenever it waits (`psycopg.waiting.wait_async`), which takes longer
    than a short statement does.  Here the callback drives psycopg's generator, and the task wakes up once, at its end.

    A descriptor has to leave the loop before it is closed: the loop knows it by its number, which the next socket gets.
    So the connection is closed by `finish` only.
    """

    __slots__ = (
        *("__weakref__", "_answer", "_context", "_loop", "pgconn"),
        *("_reading", "_results", "_socket", "_timer", "_waits", "_writing", "arrived", "pid"),
    )

    def __init__(self, pgconn: PGconn) -> None:
        self.pgconn = pgconn
        self.pid = getpid()
        """The process that made the connection."""
        self._socket = pgconn.socket
        self.arrived: Arrived = make_poller(self._socket)
        """Tells whether something has arrived, without reading it."""
        self._loop = get_running_loop()
        self._reading = self._writing = False
        self._waits: PQGen[object] | None = None
        self._answer: _Answer | None = None
        self._results: list[PGresult] = []
        self._context: Context | None = None
        self._timer: asyncio.TimerHandle | None = None

    def fetch(self, limit: float | None) -> Awaitable[list[PGresult]]:
        """Return an awaitable for the answer to what was sent; see `run`."""
        if get_running_loop() is not self._loop or self.pgconn.flush():
            return self.run(fetching(self.pgconn), limit)
        self._waits, self._results = None, []
        return self._answered(limit)

    def run(self, waits: PQGen[T], limit: float | None, context: Context | None = None) -> Awaitable[T]:
        """Return an awaitable for the end of *waits*; it raises `CommandTimeoutError` after *limit* seconds.

        *waits* runs in *context*, if that is given.
        """
        if get_running_loop() is not self._loop or self.pgconn.status != _OK:
            return self.run_as_psycopg(waits, limit)
        try:
            wanted = next(waits)
        except StopIteration as stop:
            if getattr(waits, "__name__", "") in GENERATORS:
                # A task that is cancelled when a pipeline is entered, but psycopg does not know, would leave it so.
                return _returned(stop.value)
            # psycopg yields to the loop now and then where a generator never has to wait; other tasks get their turn.
            return self.run_as_psycopg(resumed(waits, Wait.R, stop), limit)
        if wanted != _READ:  # to write, which psycopg tries at once, and nearly always can
            return self.run_as_psycopg(resumed(waits, wanted), limit)
        self._waits, self._context = waits, context
        return self._answered(limit)

    def _answered(self, limit: float | None) -> _Answer:
        if not self._reading:
            self._want(_READ)
        self._answer = answer = self._loop.create_future()
        if limit is not None:
            self._timer = self._loop.call_later(limit, self._late, answer, limit)
        return answer

    async def run_as_psycopg(self, waits: PQGen[T], limit: float | None, **options: Any) -> T:
        """Run *waits* as psycopg does, in whatever event loop is running, with the *options* of its ``wait()``."""
        self._forget()
        if get_running_loop() is self._loop:  # in another loop, the callback removes itself at the next answer
            self._stop()
        options = {"interval": INTERVAL, **options}
        if limit is not None:
            deadline = monotonic() + limit
            # Asked for anew each time: where the connection is closed, that is psycopg's error before anything else.
            result, rest = await waiting.wait_async(patient(waits, deadline - INTERVAL), self.pgconn.socket, **options)
            if rest is None:
                return cast(T, result)
            waits, options["interval"] = limited(rest, self.pgconn, deadline, limit), PRECISION
        return await waiting.wait_async(waits, self.pgconn.socket, **options)

    def _fetch(self, answer: _Answer) -> None:
        """Read what has arrived.  Not a generator: resuming one costs more than the reading."""
        results = self._results
        try:
            if not read_results(self.pgconn, results):
                return
        except psycopg.OperationalError:
            if not has_error(results):
                raise
        self._answer, self._results = None, []  # an idle connection must not keep a large result
        if self.pgconn.status != _OK:
            self._stop_at_the_end()
        if self._timer is not None:
            self._forget()
        answer.set_result(results)

    def _want(self, wanted: int) -> None:
        # The loop keeps the context of the call for as long as it watches, and with the caller's a whole request.
        this: weakref.ref[Watcher] = weakref.ref(self)
        add = Context().run
        if wanted & _READ:
            self._reading = True
            add(self._loop.add_reader, self._socket, _ready, this, Ready.R)
        if wanted & _WRITE:
            self._writing = True
            add(self._loop.add_writer, self._socket, _ready, this, Ready.W)

    def _stop(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket)
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket)

    def _stop_at_the_end(self) -> None:
        if self.pgconn.status != ConnStatus.OK:
            self._stop()  # libpq may have closed the socket, and the next one gets its number

    def _late(self, answer: _Answer, limit: float) -> None:
        if answer.done():
            return
        if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            answer.set_exception(too_slow(limit))
        else:
            self._timer = self._loop.call_later(limit, self._late, answer, limit)

    def _forget(self) -> None:
        self._waits = self._answer = self._context = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def finish(self) -> None:
        """Close the connection and wake the task that waits; from any thread, also when the loop is closed.

        In a forked child, leave it to the parent.
        """
        if self.pid != getpid():
            self.disown()
            return
        loop = self._loop
        if (self._reading or self._writing) and not loop.is_closed():
            if loop.is_running() and asyncio._get_running_loop() is not loop:
                # Another thread's loop, which may be looking at the socket at this moment.
                with suppress(RuntimeError):  # it is closed by now
                    loop.call_soon_threadsafe(self.finish)
                    return
            else:
                self._stop()
        answer = self._answer
        self._forget()
        self.pgconn.finish()
        if answer is not None and not answer.done() and not loop.is_closed():
            # Not through psycopg's generator, which would go on with what libpq has freed.
            answer.set_exception(psycopg.OperationalError("the connection is closed"))

    def disown(self) -> None:
        """Leave the loop to the parent, in a forked child: both share the epoll descriptor."""
        self._reading = self._writing = False
        self._forget()

    def __del__(self) -> None:
        """Leave the loop before the socket is closed."""
        if self._reading or self._writing:
            self.finish()


def _ready(this: weakref.ref[Watcher], how: Ready) -> None:
    """Read, or drive the generator, when the socket is ready: the event loop calls this."""
    self = this()
    if self is None:
        return
    waits, answer, context = self._waits, self._answer, self._context
    if answer is None or answer.done():
        # No task waits.  What has arrived, perhaps the end of the stream, is read when the connection is borrowed next.
        self._stop()
        return
    try:
        if waits is None:
            self._fetch(answer)
            return
        try:
            wanted = waits.send(how) if context is None else context.run(waits.send, how)
        except StopIteration as stop:
            self._forget()
            self._stop_at_the_end()
            answer.set_result(stop.value)
        else:
            if wanted != _READ or self._writing or not self._reading:
                self._stop()
                self._want(wanted)
    except BaseException as error:  # also what interrupts: else the task that waits would never know
        self._forget()
        self._stop_at_the_end()
        if not answer.done():
            answer.set_exception(error)
        del answer, waits, context  # they would be in a cycle with the error's traceback


async def _returned(value: T) -> T:
    return value
