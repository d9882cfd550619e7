"""How a connection waits in a thread.  `pgmonkey._async.watcher` does the same in event loops."""

from __future__ import annotations

from contextvars import Context
from os import getpid
from time import monotonic
from typing import Any, TypeVar, cast

import psycopg
from psycopg import waiting
from psycopg.abc import PQGen
from psycopg.pq.abc import PGconn, PGresult

from .._driver.deadlines import INTERVAL, PRECISION, limited, patient
from .._driver.liveness import Arrived, make_poller
from .._driver.wire import fetching, has_error, read_results

T = TypeVar("T")
_INTERVAL = int(INTERVAL * 1000)


class Watcher:
    """Waits for the answers of one connection: as psycopg does, but for the short ones."""

    def __init__(self, pgconn: PGconn) -> None:
        self.pgconn = pgconn
        self.pid = getpid()
        """The process that made the connection."""
        self.arrived: Arrived = make_poller(pgconn.socket)
        """Tells whether something has arrived, without reading it."""

    def fetch(self, limit: float | None) -> list[PGresult]:
        """Return the answer to what was sent; raise `CommandTimeoutError` after *limit* seconds."""
        pgconn = self.pgconn
        results: list[PGresult] = []
        # Most answers come within the first interval and are read without a generator.
        milliseconds, deadline = _INTERVAL, None
        if limit is not None:
            milliseconds, deadline = int(min(limit, INTERVAL) * 1000), monotonic() + limit
        if not pgconn.flush() and self.arrived(milliseconds) and read_results(pgconn, results):
            return results
        try:
            results += self.run_as_psycopg(fetching(pgconn), limit, deadline)
        except psycopg.OperationalError:
            if not has_error(results):
                raise
        return results

    def run(self, waits: PQGen[T], limit: float | None, context: Context | None = None) -> T:
        """Run *waits* to its end; raise `CommandTimeoutError` after *limit* seconds."""
        return self.run_as_psycopg(waits, limit)

    def run_as_psycopg(self, waits: PQGen[T], limit: float | None, deadline: float | None = None, **options: Any) -> T:
        """Run *waits* with the *options* of psycopg's ``wait()``; *deadline* is the end of the *limit*."""
        options = {"interval": INTERVAL, **options}
        if limit is not None:
            deadline = monotonic() + limit if deadline is None else deadline
            result, rest = waiting.wait(patient(waits, deadline - INTERVAL), self.pgconn.socket, **options)
            if rest is None:
                return cast(T, result)
            waits, options["interval"] = limited(rest, self.pgconn, deadline, limit), PRECISION
        return waiting.wait(waits, self.pgconn.socket, **options)

    def finish(self) -> None:
        """Close the connection; in a forked child, leave it to the parent."""
        if self.pid == getpid():
            self.pgconn.finish()

    def disown(self) -> None:
        """Do nothing: there is no event loop that a forked child would have to leave."""
