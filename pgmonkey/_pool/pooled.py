"""One connection of a pool, with what the pool knows about it."""

from __future__ import annotations

from time import monotonic
from types import FrameType
from typing import Generic, Protocol, TypeVar

from psycopg.pq import TransactionStatus

from .._driver.cancel import request_cancel
from .._driver.liveness import Arrived
from .._driver.plan import Plans
from .._driver.prepared import Prepared
from .._driver.psycopg_types import AnyConnection
from . import forks
from .place import Label, Place


class Watching(Protocol):
    """What waits for a connection's answers: a `Watcher` of either colour."""

    @property
    def arrived(self) -> Arrived:
        """Tells whether something has arrived."""
        ...

    def finish(self) -> None:
        """Close the connection."""
        ...

    def disown(self) -> None:
        """Leave what is watched, and what it is watched with, to the parent process."""
        ...


C = TypeVar("C", bound=AnyConnection)
W = TypeVar("W", bound=Watching)


class Pooled(Generic[C, W]):
    """One connection of a pool, with what the pool knows about it; times as `time.monotonic` gives them."""

    __slots__ = (
        *("arrived", "autocommit", "begin", "borrowed_at", "connection", "expires", "frame", "idle_since"),
        *("label", "lent_at", "pgconn", "plans", "prepared", "reported", "unconfigured", "watcher"),
    )

    def __init__(self, connection: C, watcher: W, max_lifetime: float) -> None:
        self.connection = connection
        self.pgconn = connection.pgconn
        self.watcher = watcher
        self.prepared = Prepared.install(connection)
        self.autocommit = False
        """Whether it is lent in autocommit to a borrower that does not say."""
        self.begin = b"BEGIN"
        """What begins a transaction in the mode that `configure` set."""
        self.unconfigured: C | None = None
        """A copy of the connection as it was before `configure` was called."""
        self.plans = Plans(connection, self.prepared)
        self.arrived = watcher.arrived  # looked up once: the ledger asks at each borrow
        self.expires = monotonic() + max_lifetime
        self.idle_since = 0.0
        self.borrowed_at = monotonic()
        self.lent_at: Place | None = None
        self.frame: FrameType | None = None
        self.label: Label | None = None
        self.reported = False

    @property
    def place(self) -> Place | None:
        """Where it was borrowed; None while it is idle, or used by the pool itself."""
        return Place.above(self.frame, self.label, None) if self.frame is not None else self.lent_at

    def __str__(self) -> str:
        age, place = f"{monotonic() - self.borrowed_at:.1f} s", self.place
        return age if place is None else f"{age}, borrowed {place}"

    def close(self) -> None:
        """Close the socket at once; the server ends what is running, and the session, and rolls back what was open."""
        # Without this the server would notice the closed socket only when it sends the answer.
        if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            request_cancel(self.pgconn)
        self.watcher.finish()

    def disown(self) -> None:
        """Leave the connection, in a forked child, to the parent."""
        self.watcher.disown()
        forks.disown(self.pgconn)
