"""What listeners are told: statements that were executed, transactions that ended, connections lent and given back.

Everything is told afterwards, with the times at which it happened: so listeners, which are the program's log handlers,
tracers and exporters, run under no lock of ours and hold up no connection, and what they raise is logged, not raised.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from sys import _getframe
from time import perf_counter
from types import TracebackType
from typing import ClassVar, NamedTuple, TypeAlias

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn, PGresult

from .._config.telemetry import TelemetrySettings
from .._pool.place import Label, Place
from .._pool.pooled import Server

logger = logging.getLogger("pgmonkey")


class Subject(NamedTuple):
    """The pool that is listened to."""

    name: str
    settings: TelemetrySettings
    connects: deque[float]
    """How long it took to make the latest connections, in seconds, that nobody was told of yet."""


class Listener:
    """Is told of what has happened; each method is given what its event says."""

    def connected(self, event: Connect) -> None:
        """Take note of a connection that was made; told when the next one is lent."""

    def borrowed(self, event: Borrow) -> None:
        """Take note of a connection that was lent."""

    def executed(self, event: Execution) -> None:
        """Take note of a statement that was executed."""

    def ended(self, event: Ending) -> None:
        """Take note of a transaction that has ended."""

    def returned(self, event: Return) -> None:
        """Take note of a connection that was given back."""


class Loan:
    """What is told of one connection from its borrow to its return; all times are in seconds, as `perf_counter`."""

    __slots__ = ("_news", "began", "label", "listeners", "notes", "server", "since", "statements", "subject", "unit")

    def __init__(
        self, listeners: tuple[Listener, ...], subject: Subject, server: Server, asked: float, label: Label | None
    ) -> None:
        self.listeners = listeners
        self.subject = subject
        self.server = server
        self.label = label
        """Returns for whom it was borrowed, such as the route of a request."""
        self.began = perf_counter()
        self.since: float | None = None
        """When the transaction began that is open; None where none is."""
        self.statements = 0
        """How many statements that transaction has executed."""
        self.notes: dict[object, object] = {}
        """What a listener keeps about the open transaction."""
        self.unit: Callable[[], object] | None = None
        """Returns the unit of work that has borrowed it."""
        self._news: deque[Event] = deque()
        while subject.connects:
            with suppress(IndexError):  # another borrower tells it
                self.note(Connect(self, subject.connects.popleft()))
        self.note(Borrow(self, self.began - asked))

    @property
    def route(self) -> str | None:
        """For whom it was borrowed; None where that was not told."""
        return None if self.label is None else self.label()

    def executing(
        self, query: object, params: object, pgconn: PGconn | None = None, batch: int | None = None
    ) -> Execution:
        """Return what is told of an execution that begins now, as a block that lasts until it has ended."""
        return Execution(self, query, params, pgconn, batch)

    def note(self, event: Event) -> None:
        """Note *event*, which `tell` tells."""
        self._news.append(event)

    def end(self, outcome: str, error: BaseException | None = None) -> None:
        """Note that the open transaction, if there is one, has ended: "commit", or "rollback" because of *error*."""
        if self.since is not None:
            self.note(Ending(self, outcome, error))
            self.since, self.statements, self.notes = None, 0, {}

    def tell_all(self) -> None:
        """Tell all that was noted, and that the connection was given back."""
        self.note(Return(self))
        self.tell()

    def tell(self) -> None:
        """Tell all that was noted, unless the unit of work is in the middle of a statement, and tells it afterwards."""
        unit = None if self.unit is None else self.unit()
        if getattr(unit, "busy", False):
            return
        news = self._news
        if _telling.get():  # a listener that uses the database would be told of that for ever
            news.clear()
            return
        token = _telling.set(True)
        try:
            while news:
                try:
                    event = news.popleft()
                except IndexError:  # another thread of the borrower tells it
                    break
                for listener in self.listeners:
                    try:
                        getattr(listener, event.kind)(event)
                    except Exception as error:
                        _complain(listener, error)
        finally:
            _telling.reset(token)


_telling: ContextVar[bool] = ContextVar("pgmonkey_telling", default=False)
_failed: set[type[Listener]] = set()


def _complain(listener: Listener, error: Exception) -> None:
    """Log what a listener raises, once for each kind of listener."""
    if type(listener) not in _failed:
        _failed.add(type(listener))
        with suppress(Exception):  # of a log handler
            logger.warning("%s failed (logged only once): %r", type(listener).__name__, error)


class Execution:
    """One execution of a statement, or of many at once."""

    kind: ClassVar = "executed"
    __slots__ = ("_pgconn", "batch", "error", "loan", "notes", "params", "query", "rows", "seconds", "started")

    def __init__(self, loan: Loan, query: object, params: object, pgconn: PGconn | None, batch: int | None) -> None:
        self.loan = loan
        self._pgconn = pgconn
        self.query = query
        """The statement as the program gave it."""
        self.params = params
        """Its parameters, which are secret unless the configuration says `log_parameters`."""
        self.batch = batch
        """How many times an executemany() executes it; -1 where that is not known, None where it is none."""
        self.rows = -1
        """How many rows it returned or changed; -1 where that is not known."""
        self.error: BaseException | None = None
        self.seconds = 0.0
        """From when it was sent to when its answer was there."""
        self.notes: dict[object, object] | None = None
        """What listeners keep about the transaction that it is part of; None where it is alone."""
        self.started = perf_counter()

    def __enter__(self) -> Execution:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.ended(error)

    def ended(self, error: BaseException | None = None) -> None:
        """Note that it has ended, with *error*."""
        self.seconds = perf_counter() - self.started
        if error is not None and not isinstance(error, GeneratorExit):
            self.error = error
        loan, pgconn, self._pgconn = self.loan, self._pgconn, None
        if pgconn is not None and pgconn.transaction_status != TransactionStatus.IDLE:
            if loan.since is None:
                loan.since = self.started
            loan.statements += 1
            self.notes = loan.notes
        loan.note(self)

    def finished(self, result: PGresult) -> None:
        """Note that it has ended with *result*."""
        tuples = result.command_tuples
        self.rows = -1 if tuples is None else tuples
        self.ended()

    @property
    def place(self) -> Place:
        """Where in the program it was executed; to be asked for while it is told."""
        return Place.above(_getframe(1), None, None)


class Connect:
    """A connection that was made, by whomever: *loan* is the next one."""

    kind: ClassVar = "connected"
    __slots__ = ("loan", "seconds")

    def __init__(self, loan: Loan, seconds: float) -> None:
        self.loan = loan
        self.seconds = seconds
        """How long that took."""


class Borrow:
    """A connection that was lent."""

    kind: ClassVar = "borrowed"
    __slots__ = ("loan", "waited")

    def __init__(self, loan: Loan, waited: float) -> None:
        self.loan = loan
        self.waited = waited
        """How long the borrower has waited for it, in seconds."""


class Ending:
    """The end of a transaction."""

    kind: ClassVar = "ended"
    __slots__ = ("error", "loan", "notes", "outcome", "seconds", "statements")

    def __init__(self, loan: Loan, outcome: str, error: BaseException | None) -> None:
        self.loan = loan
        self.outcome = outcome
        """How it ended: "commit" or "rollback"."""
        self.error = error
        """What it was rolled back for."""
        self.seconds = perf_counter() - (loan.since or loan.began)
        """From its first statement to its end."""
        self.statements = loan.statements
        self.notes = loan.notes

    @property
    def reason(self) -> str | None:
        """What it was rolled back for, without values: the kind of the error, and the server's code."""
        return None if self.error is None else reason_of(self.error)


class Return:
    """A connection that was given back."""

    kind: ClassVar = "returned"
    __slots__ = ("loan", "seconds")

    def __init__(self, loan: Loan) -> None:
        self.loan = loan
        self.seconds = perf_counter() - loan.began
        """How long it was lent."""


Event: TypeAlias = "Connect | Borrow | Execution | Ending | Return"


def reason_of(error: BaseException) -> str:
    """Return the kind of *error* and the server's code: its text may hold the values of parameters."""
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    return type(error).__name__ + (f" ({state})" if state else "")
