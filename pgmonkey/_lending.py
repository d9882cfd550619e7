"""Lend a pooled connection so that it can be taken back for certain.

A borrower gets a connection object of its own over the pooled one's libpq connection: a real `psycopg.Connection` with
its own handlers, row factory and isolation level.  Taking it back removes the libpq connection from that object, so
that whoever kept it, or a cursor made from it, gets an error and never somebody else's transaction.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache, partial
from time import monotonic
from types import CodeType, FrameType
from typing import Any, Generic, Protocol, TypeVar

from psycopg import BaseConnection, pq
from psycopg.abc import AdaptContext
from psycopg.adapt import AdaptersMap
from psycopg.errors import error_from_result
from psycopg.generators import execute
from psycopg.pq import ExecStatus, TransactionStatus

from . import _forks
from ._cancelling import request_cancel
from ._prepared import Prepared
from .errors import GivenBackError

C = TypeVar("C", bound="BaseConnection[Any]")
W = TypeVar("W", bound="Watching")

_TAKEN_BACK = ("pgconn", "lock", "watcher", "pooled")
# What calls on behalf of the program, and so is no place in it.
_FRAMEWORKS = ("fastapi", "starlette", "flask", "anyio", "asyncio")
# What stands between us and who borrows: ourselves, and what stands on us.
_BETWEEN = ("pgmonkey", "flask_pgmonkey", "fastapi_pgmonkey", "django_pgmonkey", "contextlib", "django")


class _Lent:
    """What a lent connection does differently from psycopg's own."""

    # What psycopg looks at to tell that the end of ``with conn:`` must not close the connection.
    _pool = True
    # psycopg's.
    pgconn: pq.abc.PGconn
    _autocommit: bool
    _pipeline: Any
    _exec_command: Any
    _get_tx_start_command: Any

    def _start_query(self) -> Any:
        """Begin a transaction as psycopg does, in one message with the settings that no session keeps (PgBouncer)."""
        settings: bytes = self.__dict__.get("transaction_settings", b"")
        if not settings or self._autocommit or self.pgconn.transaction_status != TransactionStatus.IDLE:
            yield from super()._start_query()  # type: ignore[misc]
        elif self._pipeline is not None:
            yield from super()._start_query()  # type: ignore[misc]
            yield from self._exec_command(settings)
        else:
            self.pgconn.send_query(self._get_tx_start_command() + b"; " + settings)
            for result in (yield from execute(self.pgconn)):
                if result.status == ExecStatus.FATAL_ERROR:
                    raise error_from_result(result)

    def __del__(self) -> None:
        """Say nothing: the pool closes what it owns."""


class _TakenBack:
    """What a lent connection becomes when it is given back: a class of its own, or it would be slow until then."""

    @property
    def closed(self) -> bool:
        """Whether the connection is closed, or was given back."""
        return True

    def __getattr__(self, name: str) -> Any:
        if name in _TAKEN_BACK:
            # What was cancelled was also given back, perhaps between two steps of a statement.
            refusal: Exception | None = self.__dict__.get("refusal")
            raise refusal or GivenBackError(
                "this connection was given back to its pool and is no longer yours; borrow another one"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__} [GIVEN BACK] at 0x{id(self):x}>"


@lru_cache
def lendable(connection_class: Any, guard: Any) -> Any:
    """Return the subclass of *connection_class* that a pool connects with and lends; *guard* is mixed in."""
    name, module = connection_class.__name__, {"__module__": connection_class.__module__}
    lent: Any = type(name, (_Lent, guard, connection_class), module)
    lent.when_taken_back = type(name, (_TakenBack, lent), module)
    return lent


def lend(pooled: C, *, autocommit: bool, prepare_threshold: int | None, context: AdaptContext | None) -> C:
    """Return a connection for one borrower over the libpq connection of *pooled*.

    *context* is where its type adapters come from, *pooled* itself when None.
    """
    lent = object.__new__(pooled.__class__)
    state: dict[str, Any] = pooled.__dict__.copy()
    state["_autocommit"] = autocommit
    state["_notice_handlers"] = list(state["_notice_handlers"])
    state["_notify_handlers"] = list(state["_notify_handlers"])
    state["_notifies_backlog"] = deque()
    adapters = state["_adapters"] if context is None else context.adapters
    if adapters:
        state["_adapters"] = AdaptersMap(adapters)
    lent.__dict__ = state
    lent.prepare_threshold = prepare_threshold  # kept where prepared statements are, which all borrowers share
    return lent


def hear(lent: BaseConnection[Any]) -> None:
    """Let *lent* have the notices and notifications that come."""
    # psycopg hands them to the object that the libpq connection names here.
    reference: Any = weakref.ref(lent)
    lent.pgconn.notice_handler = partial(BaseConnection._notice_handler, reference)
    lent.pgconn.notify_handler = partial(BaseConnection._notify_handler, reference)


def take_back(lent: Any) -> None:
    """Make *lent*, and every cursor made from it, unusable."""
    state = lent.__dict__
    pgconn = state.get("pgconn")
    if pgconn is not None:
        pgconn.notice_handler = pgconn.notify_handler = None  # what comes next is not for it
        lent.__class__ = lent.when_taken_back
        for name in _TAKEN_BACK:
            state.pop(name, None)


Label = Callable[[], str]
"""Says on whose behalf a connection is borrowed; asked when somebody wants to know."""


class Borrower(Protocol):
    """A thread or a task; ``str()`` gives its name."""

    @property
    def ended(self) -> bool:
        """Whether it will never do anything again."""
        ...


class Place:
    """Where in the program a connection was borrowed, by whom, and on whose behalf."""

    __slots__ = ("_code", "_globals", "_instruction", "_label", "runner")

    def __init__(self, frame: FrameType, label: Label | None, runner: Borrower | None) -> None:
        self.runner = runner
        self._code = frame.f_code
        self._instruction = frame.f_lasti  # which line that is, only those want to know who read it
        self._globals = frame.f_globals
        self._label = label

    @classmethod
    def above(cls, frame: FrameType, label: Label | None, runner: Borrower | None) -> Place:
        """Return the place nearest to *frame*, or the frame's own, that is outside pgmonkey and Django."""
        while (file := frame.f_code.co_filename) in _between or (file not in _outside and _is_between(frame)):
            above = frame.f_back
            if above is None:
                break
            frame = above
        return cls(frame, label, runner)

    def __str__(self) -> str:
        place = location(self._code, _line(self._code, self._instruction))
        if self._label is None:
            return f"at {place}"
        label = self._label()
        return f"for {label}" if _module(self._globals) in _FRAMEWORKS else f"for {label}, at {place}"


def location(code: CodeType, line: int | None = None) -> str:
    """Return the place of *code*, as ``file:line (name)``."""
    return f"{os.path.relpath(code.co_filename)}:{line or code.co_firstlineno} ({code.co_name})"


# The files of code, which is what a frame tells soonest, that is of `_BETWEEN`, and that is not.
_between: set[str] = set()
_outside: set[str] = set()


def _is_between(frame: FrameType) -> bool:
    found = _module(frame.f_globals) in _BETWEEN
    (_between if found else _outside).add(frame.f_code.co_filename)
    return found


def _line(code: CodeType, instruction: int) -> int | None:
    return next((line for start, end, line in code.co_lines() if start <= instruction < end), None)


def _module(variables: Mapping[str, Any]) -> str:
    name: str = variables.get("__name__", "")
    return name.partition(".")[0]


class Watching(Protocol):
    """What waits for a connection's answers."""

    @property
    def arrived(self) -> Callable[[int], object]:
        """Tells, waiting for as many milliseconds as it is given, whether something has arrived."""
        ...

    def finish(self) -> None:
        """Close the connection."""
        ...

    def disown(self) -> None:
        """Leave what is watched, and what it is watched with, to the parent process."""
        ...


class Pooled(Generic[C, W]):
    """One connection of a pool, with what the pool knows about it; times as `time.monotonic` gives them."""

    __slots__ = (
        *("arrived", "borrowed_at", "connection", "expires", "frame", "idle_since"),
        *("label", "lent_at", "pgconn", "plans", "prepared", "reported", "watcher"),
    )

    def __init__(self, connection: C, watcher: W, max_lifetime: float) -> None:
        self.connection = connection
        self.pgconn = connection.pgconn
        self.watcher = watcher
        self.prepared = Prepared.watch(connection)
        self.plans: dict[Any, Any] = {}
        self.arrived = watcher.arrived
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
        if place is None:
            return age
        return f"{age}, borrowed {place}" + (f" by {place.runner}" if place.runner is not None else "")

    def close(self) -> None:
        """Close the socket at once; the server ends what is running, and the session, and rolls back what was open."""
        if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            request_cancel(self.pgconn)
        self.watcher.finish()

    def disown(self) -> None:
        """Leave the connection, in a forked child, to the parent."""
        self.watcher.disown()
        _forks.disown(self.pgconn)


def load(lent: Collection[Pooled[Any, Any]], max_size: int, waiting: int, last_error: str | None) -> str:
    """Say how busy a pool is, with what, and why it may not grow."""
    parts = [f"{len(lent)} of at most {max_size} in use, {waiting} waiting"]
    held = [pooled for pooled in lent if pooled.place is not None]
    if held:
        parts.append(f"held longest: {min(held, key=lambda pooled: pooled.borrowed_at)}")
    if last_error is not None:
        parts.append(f"last connection error: {last_error}")
    return "; ".join(parts)
