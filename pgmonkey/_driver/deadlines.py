"""Deadlines for psycopg's generators, which yield whenever they wait for the server."""

from __future__ import annotations

from contextvars import ContextVar
from time import monotonic
from typing import TypeVar

import psycopg
from psycopg.abc import PQGen, PQGenConn
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.waiting import Wait

from ..errors import CommandTimeoutError

T = TypeVar("T")

INTERVAL = 0.1
"""Seconds after which a wait for the server looks at the clock, and a thread handles its signals."""

PRECISION = 0.01
"""The same in seconds when a deadline is nearer than `INTERVAL`."""

connecting_until: ContextVar[float | None] = ContextVar("pgmonkey_connecting_until", default=None)
"""When a connection attempt of the current context must end, as `time.monotonic` tells; None is never."""


def too_slow(seconds: float) -> CommandTimeoutError:
    """Return the error of a statement that runs longer than *seconds*."""
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


def limited_connecting(waits: PQGenConn[T], deadline: float) -> PQGenConn[T]:
    """Return *waits*, raising `psycopg.errors.ConnectionTimeout` when the *deadline* has passed."""
    started = monotonic()
    try:
        wanted = next(waits)
        while True:
            ready = yield wanted
            wanted = waits.send(ready)
            if monotonic() >= deadline:
                raise psycopg.errors.ConnectionTimeout(
                    f"the server did not answer within {max(0.0, deadline - started):.1f} s"
                )
    except StopIteration as stop:
        result: T = stop.value
        return result
