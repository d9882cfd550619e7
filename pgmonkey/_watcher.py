"""How a connection waits in a thread.  `_watcher_async` does the same in event loops."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import Any

import psycopg
from psycopg import pq, waiting

from ._fetching import take, taking, told_why
from ._limits import INTERVAL, Waits, limited
from ._liveness import watch


class Watcher:
    """Waits for the answers of one connection: as psycopg does, but for the short ones."""

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        self._pgconn = pgconn
        self.arrived: Callable[[int], object] = watch(pgconn.socket)
        """Tells whether something has arrived, without reading it."""

    def fetch(self, limit: float | None) -> list[pq.abc.PGresult]:
        """Return the answer to what was sent; raise `CommandTimeoutError` after *limit* seconds."""
        pgconn = self._pgconn
        results: list[pq.abc.PGresult] = []
        patience = INTERVAL if limit is None else min(limit, INTERVAL)
        if not pgconn.flush() and self.arrived(int(patience * 1000)) and take(pgconn, results):
            return results
        try:
            results += self.run(taking(pgconn), None if limit is None else limit - patience)
        except psycopg.OperationalError:
            if not told_why(results):
                raise
        return results

    def run(self, waits: Waits[Any], limit: float | None, context: Context | None = None) -> Any:
        """Run *waits* to its end; raise `CommandTimeoutError` after *limit* seconds."""
        if limit is not None:
            waits = limited(waits, self._pgconn, limit)
        return waiting.wait(waits, self._pgconn.socket, INTERVAL)

    def run_as_psycopg(self, waits: Waits[Any], limit: float | None, **options: Any) -> Any:
        """Run *waits* with the *options* of psycopg's ``wait()``."""
        if limit is not None:
            waits = limited(waits, self._pgconn, limit)
        return waiting.wait(waits, self._pgconn.socket, **{"interval": INTERVAL, **options})

    def finish(self) -> None:
        """Close the connection."""
        self._pgconn.finish()

    def disown(self) -> None:
        """Do nothing: there is no event loop that a forked child would have to leave."""
