"""How a connection waits in a thread.  `_watcher_async` does the same in event loops."""

from __future__ import annotations

from contextvars import Context
from typing import Any

import psycopg
from psycopg import pq, waiting
from psycopg.generators import execute
from psycopg.pq import ExecStatus

from ._limits import INTERVAL, Waits, limited
from ._liveness import watch


class Watcher:
    """Waits for the answers of one connection: as psycopg does, but for the short ones."""

    __slots__ = ("_pgconn", "arrived")

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        self._pgconn = pgconn
        self.arrived = watch(pgconn.socket)
        """Tells whether something has arrived, without reading it."""

    def fetch(self, limit: float | None) -> list[pq.abc.PGresult]:
        """Return the answer to a statement that was sent; raise `CommandTimeoutError` after *limit* seconds."""
        pgconn = self._pgconn
        patience = INTERVAL if limit is None else min(limit, INTERVAL)
        if not pgconn.flush() and self.arrived(int(patience * 1000)):
            pgconn.consume_input()
            if not pgconn.is_busy():
                result = pgconn.get_result()
                if result is not None and not pgconn.is_busy() and pgconn.get_result() is None:
                    return [result]
                if result is not None:
                    return [result, *self._rest(result, limit)]
        results: list[pq.abc.PGresult] = self.run(execute(pgconn), None if limit is None else limit - patience)
        return results

    def _rest(self, first: pq.abc.PGresult, limit: float | None) -> list[pq.abc.PGresult]:
        try:
            rest: list[pq.abc.PGresult] = self.run(execute(self._pgconn), limit)
        except psycopg.OperationalError:
            # The server said why before it went.
            if first.status != ExecStatus.FATAL_ERROR:
                raise
            return []
        return rest

    def run(self, waits: Waits[Any], limit: float | None, context: Context | None = None) -> Any:
        """Run *waits* to its end; raise `CommandTimeoutError` after *limit* seconds."""
        return self.run_as_psycopg(waits, limit)

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
