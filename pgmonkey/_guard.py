# Generated from _guard_async.py by tools/twins.py: change that file, then run the tool.

"""What a pooled connection does differently from psycopg's own while it waits for the server."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg import pq, waiting
from psycopg.pq import TransactionStatus

from ._cancelling import request_cancel
from ._colour import INTERRUPTS, wait_for
from ._limits import INTERVAL, Waits, connecting_until, limited, limited_connecting
from .errors import CommandTimeoutError

T = TypeVar("T")

# Seconds that an interrupted borrower waits for the end of its statement; then the connection is closed, not kept.
_PATIENCE = 0.75


OnError = Callable[[psycopg.Error, pq.abc.PGconn], None]


class Guard:
    """Mixed into psycopg's connection class by the pool: a wait for the server ends in time, whatever happens.

    A statement that takes longer than ``command_timeout`` is cancelled and its connection closed; so is one whose
    borrower is interrupted, unless the server ends it at once.  The pool is told of every error.
    """

    pgconn: pq.abc.PGconn

    def wait(self, gen: Waits[T], interval: float = INTERVAL, **options: Any) -> T:
        """Run one of psycopg's generators to its end."""
        pgconn, state = self.pgconn, self.__dict__
        if "refusal" in state:
            raise state["refusal"]
        limit: float | None = state.get("command_timeout")
        waits = gen if limit is None else limited(gen, pgconn, limit)
        try:
            result: T = waiting.wait(waits, pgconn.socket, interval or INTERVAL, **options)
        except psycopg.Error as error:
            if isinstance(error, CommandTimeoutError):
                request_cancel(pgconn)
                pgconn.finish()
            reference: Callable[[], OnError | None] | None = state.get("on_error")
            on_error = reference and reference()
            if on_error is not None:
                on_error(error, pgconn)
            raise
        except INTERRUPTS:
            if pgconn.transaction_status == TransactionStatus.ACTIVE:
                _stop(gen, pgconn)
            raise
        return result

    @classmethod
    def _connect_gen(cls, *arguments: Any, **options: Any) -> Any:
        connecting: Any = super()._connect_gen(*arguments, **options)  # type: ignore[misc]
        deadline = connecting_until.get()
        return connecting if deadline is None else limited_connecting(connecting, deadline)


def _stop(gen: Waits[Any], pgconn: pq.abc.PGconn) -> None:
    """End the statement that *gen* waits for; close the connection when that cannot be done at once."""
    deadline = monotonic() + _PATIENCE
    cancelled = request_cancel(pgconn)
    try:
        try:
            waiting.wait(limited(gen, pgconn, _PATIENCE), pgconn.socket, INTERVAL / 2)
        except psycopg.errors.QueryCanceled:
            """As was to be expected."""
        wait_for(cancelled, deadline - monotonic())
        if not cancelled.done():
            pgconn.finish()
    except psycopg.Error:
        pgconn.finish()
    except BaseException:  # interrupted again
        pgconn.finish()
        raise
