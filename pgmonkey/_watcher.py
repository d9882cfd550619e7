"""How a connection waits in a thread.  `_watcher_async` does the same in event loops."""

from __future__ import annotations

from typing import Any

from psycopg import pq, waiting

from ._limits import INTERVAL, Waits, limited


class Watcher:
    """Waits for the answers of one connection as psycopg does, which for threads could not be better."""

    __slots__ = ("_pgconn",)

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        self._pgconn = pgconn

    def run(self, waits: Waits[Any], limit: float | None, interval: float | None, **options: Any) -> Any:
        """Run *waits* to its end; raise `CommandTimeoutError` after *limit* seconds.

        *interval* and *options* are those of psycopg's ``wait()``, when somebody gives them.
        """
        if limit is not None:
            waits = limited(waits, self._pgconn, limit)
        return waiting.wait(waits, self._pgconn.socket, interval or INTERVAL, **options)

    run_as_psycopg = run

    def finish(self) -> None:
        """Close the connection."""
        self._pgconn.finish()

    def disown(self) -> None:
        """Do nothing: there is no event loop that a forked child would have to leave."""
