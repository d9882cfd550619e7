"""Deadlines for psycopg's generators, which yield whenever they wait for the server."""

from __future__ import annotations

from contextvars import ContextVar
from time import monotonic
from typing import TypeVar

import psycopg
from psycopg.abc import PQGen, PQGenConn
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn

from ..errors import CommandTimeoutError

T = TypeVar("T")

INTERVAL = 0.1
"""Seconds after which a wait for the server looks at the clock, and a thread handles its signals."""

connecting_until: ContextVar[float | None] = ContextVar("pgmonkey_connecting_until", default=None)
"""When a connection attempt of the current context must end, as `time.monotonic` tells; None is never."""


def too_slow(seconds: float) -> CommandTimeoutError:
    """Return the error of a statement that runs longer than *seconds*."""
    return CommandTimeoutError(f"the statement took longer than {seconds:g} s (command_timeout)")


def limited(waits: PQGen[T], pgconn: PGconn, seconds: float) -> PQGen[T]:
    """Return *waits*, raising `CommandTimeoutError` when a statement runs longer than *seconds*.

    Waiting for notifications is not limited: no statement is running then.
    """
    deadline = monotonic() + seconds
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
