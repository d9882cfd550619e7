"""Bound what psycopg's generators may take: they yield whenever they wait for the server."""

from __future__ import annotations

from collections.abc import Generator
from contextvars import ContextVar
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg import pq
from psycopg.pq import TransactionStatus

from .errors import CommandTimeoutError

T = TypeVar("T")
Waits = Generator[Any, Any, T]

INTERVAL = 0.1
"""Seconds after which a wait for the server looks at the clock, and a thread at its signals."""

connecting_until: ContextVar[float | None] = ContextVar("pgmonkey_connecting_until", default=None)
"""When, as `time.monotonic` tells, whoever connects here has waited long enough."""


def too_slow(seconds: float) -> CommandTimeoutError:
    """Return the error of a statement that runs longer than *seconds*."""
    return CommandTimeoutError(f"the statement took longer than {seconds:g} s (command_timeout)")


def limited(waits: Waits[T], pgconn: pq.abc.PGconn, seconds: float) -> Waits[T]:
    """Return *waits*, raising `CommandTimeoutError` when a statement runs longer than *seconds*.

    Waiting for notifications is not limited: there the server owes nothing.
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


def limited_connecting(waits: Waits[T], deadline: float) -> Waits[T]:
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
