"""Deadlines for psycopg's generators, which yield whenever they wait for the server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextvars import ContextVar
from selectors import DefaultSelector
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg.abc import PQGen, PQGenConn
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.waiting import Wait

from ..errors import CommandTimeoutError, DeadlineExceededError

T = TypeVar("T")

INTERVAL = 0.1
"""Seconds after which a wait for the server looks at the clock, and a thread handles its signals."""

PRECISION = 0.01
"""The same in seconds when a deadline is nearer than `INTERVAL`."""


def too_slow(seconds: float) -> CommandTimeoutError:
    """Return the error of a statement that runs longer than *seconds*."""
    if isinstance(seconds, Limit):
        return seconds.deadline.exceeded("the statement did not end")
    return CommandTimeoutError(f"the statement took longer than {seconds:g} s (command_timeout)")


def resumed(waits: PQGen[T], wanted: Wait, stop: StopIteration | None = None) -> PQGen[T]:
    """Return a generator that continues *waits*, which waits for *wanted* or has ended with *stop*."""
    try:
        while stop is None:
            ready = yield wanted
            wanted = waits.send(ready)
    except StopIteration as end:
        stop = end
    result: T = stop.value
    return result


def patient(waits: PQGen[T], until: float) -> PQGen[tuple[T, None] | tuple[None, PQGen[T]]]:
    """Return what *waits* returns; or, when it has not ended by *until*, a generator that continues it."""
    try:
        wanted = next(waits)
        while monotonic() < until:
            ready = yield wanted
            wanted = waits.send(ready)
    except StopIteration as stop:
        return stop.value, None
    return None, resumed(waits, wanted)


def limited(waits: PQGen[T], pgconn: PGconn, deadline: float, seconds: float) -> PQGen[T]:
    """Return *waits*, raising `CommandTimeoutError` when a statement has not ended by the *deadline*.

    *seconds* is how long it was given.
    """
    try:
        wanted = next(waits)
        while True:
            ready = yield wanted
            wanted = waits.send(ready)
            if monotonic() >= deadline and pgconn.transaction_status == TransactionStatus.ACTIVE:
                raise too_slow(seconds)
    except StopIteration as stop:
        result: T = stop.value
        return result


class Deadline(NamedTuple):
    """When something must have ended: *at*, as `time.monotonic` tells, *seconds* after it began.

    *name* is that of the parameter, the setting or the header that says so, for messages.
    """

    at: float
    seconds: float
    name: str = "timeout"

    @classmethod
    def after(cls, seconds: float, name: str = "timeout") -> Deadline:
        """Return the deadline in so many *seconds* from now; of 0 and less, it has passed."""
        return cls(monotonic() + seconds, seconds, name)

    @property
    def left(self) -> float:
        """The seconds until then."""
        return max(0.0, self.at - monotonic())

    def late(self, what: str) -> psycopg.errors.ConnectionTimeout:
        """Return the error that says *what* did not happen in time."""
        return psycopg.errors.ConnectionTimeout(f"{what} within {self.seconds:g} s ({self.name})")

    def exceeded(self, what: str) -> DeadlineExceededError:
        """Return the error that says *what* did not happen in time, for the program."""
        return DeadlineExceededError(f"{what} within {self.seconds:g} s ({self.name})")

    def limit(self, usual: float | None) -> float:
        """Return how long a statement may take that begins now, *usual* being the ``command_timeout``.

        Raises `DeadlineExceededError` where no time is left.
        """
        left = self.left
        if not left:
            raise self.exceeded("no statement was begun: the work before it did not end")
        return Limit.of(self, left) if usual is None or left < usual else usual

    def wait(self, usual: float) -> float:
        """Return how long a wait for a connection may take that is *usual* seconds otherwise; raises as `limit`."""
        return min(usual, self.limit(None))


class Limit(float):
    """The seconds that a statement may take because of a *deadline*, which its error names."""

    deadline: Deadline

    @classmethod
    def of(cls, deadline: Deadline, left: float) -> Limit:
        """Return the limit of what has *left* seconds until the *deadline*."""
        limit = cls(left)
        limit.deadline = deadline
        return limit


def until(seconds: float | None) -> Deadline | None:
    """Return the deadline of a ``timeout`` of so many *seconds*; None is never."""
    return None if seconds is None else Deadline.after(seconds)


def earlier(one: Deadline | None, other: Deadline | None) -> Deadline | None:
    """Return which of two deadlines comes first; None is never."""
    if one is None or other is None:
        return one or other
    return min(one, other)


def limit_in(state: Mapping[str, Any]) -> float | None:
    """Return how long a statement may take that begins now on the connection with this *state*, which has a deadline.

    Raises `DeadlineExceededError` where that has passed.
    """
    deadline: Deadline = state["deadline"]
    return deadline.limit(state["command_timeout"])


def check_wait(error: psycopg.Error, deadline: Deadline | None) -> None:
    """Raise `DeadlineExceededError` if a wait for a connection ended with *error* because the *deadline* has passed."""
    if deadline is not None and deadline.left < PRECISION:
        raise deadline.exceeded("no connection became free") from error


connecting_until: ContextVar[Deadline | None] = ContextVar("pgmonkey_connecting_until", default=None)
"""When an attempt to connect that blocks its thread must end; None is never."""

SILENT = "the server did not answer"


def limited_connecting(waits: PQGenConn[T], deadline: Deadline) -> PQGenConn[T]:
    """Return *waits*, raising `psycopg.errors.ConnectionTimeout` at the *deadline*; blocks shortly before it."""
    try:
        fileno, wanted = next(waits)
        while True:
            if (left := deadline.left) > INTERVAL:
                ready = yield fileno, wanted  # psycopg looks at the clock as often
            else:
                with DefaultSelector() as selector:
                    selector.register(fileno, wanted)
                    ready = sum(events for _, events in selector.select(left))
            if not deadline.left:
                raise deadline.late(SILENT)
            fileno, wanted = waits.send(ready)
    except StopIteration as stop:
        result: T = stop.value
        return result


def by_its_key(error: psycopg.errors.ConnectionTimeout, connect_timeout: object) -> psycopg.errors.ConnectionTimeout:
    """Return psycopg's *error* in words that name the key of the limit, *connect_timeout*, which is in seconds."""
    given = str(connect_timeout or os.environ.get("PGCONNECT_TIMEOUT", ""))
    limit = f" within {max(2, int(given))} s" if given.strip().isdecimal() else ""  # psycopg's least is 2
    words = str(error).replace("connection timeout expired", f"{SILENT}{limit} (connect_timeout)")
    return psycopg.errors.ConnectionTimeout(words)
