"""How a connection waits in a thread.  `pgmonkey._async.watcher` does the same in event loops."""

from __future__ import annotations

from contextvars import Context
from typing import Any, TypeVar

import psycopg
from psycopg import waiting
from psycopg.abc import PQGen
from psycopg.pq.abc import PGconn, PGresult

from .._driver.deadlines import INTERVAL, limited
from .._driver.liveness import Arrived, make_poller
from .._driver.wire import fetching, has_error, read_results

T = TypeVar("T")


class Watcher:
    """Waits for the answers of one connection: as psycopg does, but for the short ones."""

    def __init__(self, pgconn: PGconn) -> None:
        self.pgconn = pgconn
        self.arrived: Arrived = make_poller(pgconn.socket)
        """Tells whether something has arrived, without reading it."""

    def fetch(self, limit: float | None) -> list[PGresult]:
        """Return the answer to what was sent; raise `CommandTimeoutError` after *limit* seconds."""
        pgconn = self.pgconn
        results: list[PGresult] = []
        # Most answers come within the first interval and are read without a generator.
        patience = INTERVAL if limit is None else min(limit, INTERVAL)
        if not pgconn.flush() and self.arrived(int(patience * 1000)) and read_results(pgconn, results):
            return results
        try:
            results += self.run(fetching(pgconn), None if limit is None else limit - patience)
        except psycopg.OperationalError:
            if not has_error(results):
                raise
        return results

    def run(self, waits: PQGen[T], limit: float | None, context: Context | None = None) -> T:
        """Run *waits* to its end; raise `CommandTimeoutError` after *limit* seconds."""
        if limit is not None:
            waits = limited(waits, self.pgconn, limit)
        return waiting.wait(waits, self.pgconn.socket, INTERVAL)

    def run_as_psycopg(self, waits: PQGen[T], limit: float | None, **options: Any) -> T:
        """Run *waits* with the *options* of psycopg's ``wait()``."""
        if limit is not None:
            waits = limited(waits, self.pgconn, limit)
        return waiting.wait(waits, self.pgconn.socket, **{"interval": INTERVAL, **options})

    def finish(self) -> None:
        """Close the connection."""
        self.pgconn.finish()

    def disown(self) -> None:
        """Do nothing: there is no event loop that a forked child would have to leave."""
