"""One connection of a pool, with what the pool knows about it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from os import getpid
from time import monotonic
from types import FrameType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn

from .._driver.cancel import hang_up, request_cancel
from .._driver.liveness import Arrived
from .._driver.plan import Plans
from .._driver.prepared import Prepared
from .._driver.psycopg_types import AnyConnection
from . import forks
from .place import Label, Place
from .schedule import uniform


class Watching(Protocol):
    """What waits for a connection's answers: a `Watcher` of either colour."""

    pid: int
    """The process that made the connection."""

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


# Shares of max_lifetime: how much sooner a connection may expire, so that those which were made at once do not end at
# once (as psycopg_pool), and how long before that it is replaced in the background, so that no borrower misses it.
_JITTER = 0.05
EARLY = 0.05

C = TypeVar("C", bound=AnyConnection)
W = TypeVar("W", bound=Watching)


class Server(NamedTuple):
    """What a connection is connected to."""

    address: str
    """The host, or the folder of the socket."""
    port: int | None
    database: str

    @classmethod
    def of(cls, pgconn: PGconn) -> Server:
        """Return what *pgconn*, which is open, is connected to."""
        host, port = pgconn.host.decode(errors="replace"), pgconn.port.decode()
        socket = host.startswith(("/", "@"))
        return cls(host, None if socket or not port.isdecimal() else int(port), pgconn.db.decode(errors="replace"))


class Ticket:
    """The right to one of the connections that a pool may have.  It ends when the object does."""

    __slots__ = ("__weakref__", "pooled")

    pooled: Callable[[], Pooled[Any, Any] | None]


class Pooled(Generic[C, W]):
    """One connection of a pool, with what the pool knows about it; times as `time.monotonic` gives them.

    Whoever refers to it has it: the pool's idle list, one borrower, or one waiter.  When the last reference is lost,
    wherever that happens, the connection is closed and the pool may make another one in its place.
    """

    __slots__ = (
        *("__weakref__", "arrived", "autocommit", "begin", "borrowed_at", "connected", "connection", "expires"),
        *("frame", "idle_since", "label", "lent_at", "pgconn", "plans", "prepared", "renew_at", "reported", "server"),
        *("ticket", "unconfigured", "watcher", "weak"),
    )

    connection: C
    watcher: W

    def __init__(self, ticket: Ticket) -> None:
        self.connected = False
        """Whether there ever was a connection: a place in the pool comes first."""
        self.ticket: Ticket | None = ticket
        """None when it is no longer the pool's: it was closed, or belongs to the parent process."""
        self.weak: Callable[[], Pooled[C, W] | None] = weakref.ref(self)
        self.idle_since = 0.0
        self.borrowed_at = monotonic()
        self.lent_at: Place | None = None
        self.frame: FrameType | None = None
        self.label: Label | None = None
        self.reported = False
        ticket.pooled = self.weak

    def attach(self, connection: C, watcher: W, max_lifetime: float) -> None:
        """Take the *connection* that was made for it; *max_lifetime* is in seconds."""
        self.connection = connection
        self.pgconn = connection.pgconn
        self.watcher = watcher
        self.server = Server.of(connection.pgconn)
        self.prepared = Prepared.install(connection)
        self.autocommit = False
        """Whether it is lent in autocommit to a borrower that does not say."""
        self.begin = b"BEGIN"
        """What begins a transaction in the mode that `configure` set."""
        self.unconfigured: C | None = None
        """A copy of the connection as it was before `configure` was called."""
        self.plans = Plans(connection, self.prepared)
        self.arrived = watcher.arrived  # looked up once: the ledger asks at each borrow
        self.borrowed_at = monotonic()
        lifetime = max_lifetime * uniform(1 - _JITTER, 1)
        self.expires = monotonic() + lifetime
        self.renew_at = monotonic() + lifetime * (1 - EARLY)
        """When upkeep replaces it, if it is idle then."""
        self.connected = True

    @property
    def inherited(self) -> bool:
        """Whether another process has made the connection, of which this one is a fork."""
        return self.connected and self.watcher.pid != getpid()

    @property
    def place(self) -> Place | None:
        """Where it was borrowed; None while it is idle, or used by the pool itself."""
        return Place.above(self.frame, self.label, None) if self.frame is not None else self.lent_at

    def settle_place(self) -> None:
        """Keep the place itself, and not the frame that it can be told from."""
        if self.frame is not None:
            self.lent_at, self.frame = self.place, None

    def __str__(self) -> str:
        age, place = f"{monotonic() - self.borrowed_at:.1f} s", self.place
        return age if place is None else f"{age}, borrowed {place}"

    def close(self) -> None:
        """Close the socket at once; the server ends what is running, and the session, and rolls back what was open."""
        if self.ticket is None:
            return  # it is closed, or the parent's
        if self.inherited:
            self.disown()
            return
        if self.connected:
            # Without this the server would notice the closed socket only when it sends the answer.
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                request_cancel(self.pgconn)
            if self.connection.__dict__["lock"].locked():
                # Whoever has it may be inside libpq, which must not lose the connection there.  It is freed when the
                # last reference to it is gone.
                hang_up(self.pgconn)
            else:
                self.watcher.finish()
        # Last: interrupted before, it is closed when it is dropped.
        self.ticket = None

    def disown(self) -> None:
        """Leave the connection, in a forked child, to the parent."""
        if self.ticket is None:
            return
        self.ticket = None
        if self.connected:
            self.watcher.disown()
            forks.disown(self.pgconn)
            lock = self.connection.__dict__["lock"]
            if lock.locked():
                lock.release()  # by a thread of the parent, which does not run here

    def __del__(self) -> None:
        """Close what was lost between two steps."""
        if getattr(self, "ticket", None) is not None:
            self.close()
