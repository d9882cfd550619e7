"""What the modules of this integration need of a `PGMonkey`, so that none of them imports it."""

from __future__ import annotations

from typing import Literal, Protocol

from pgmonkey import AsyncDatabase, Database, RequestDeadline

from ._threads import Threads

Transaction = Literal["request", "statement"]


class RequestDatabases(Protocol):
    """One database as requests use it: through the event loop and through threads."""

    transaction: Transaction
    cancel_on_disconnect: bool
    threads: Threads
    deadlines: RequestDeadline | None

    @property
    def async_database(self) -> AsyncDatabase[object]:
        """The database for coroutines."""
        ...

    @property
    def sync_database(self) -> Database[object]:
        """The database for threads."""
        ...
