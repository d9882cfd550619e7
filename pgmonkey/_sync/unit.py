# Generated from pgmonkey/_async/unit.py by tools/twins.py: change that file, then run the tool.

"""A unit of work: what a request, or a transaction block, does on one connection, committed or rolled back as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Generic, Protocol, TypeAlias

import psycopg
from psycopg import Connection, Rollback, Transaction
from psycopg.pq import TransactionStatus
from psycopg.rows import Row

from .._driver.plan import Read
from .._driver.sql import Params, Statement
from .._driver.transaction_mode import DEFAULT, TransactionMode
from .._pool.place import Label
from ..errors import CancelledUnitError, GivenBackError
from .fastpath import FastPath, SessionValues, set_values
from .lease import Lease
from .psycopg_types import AnyConnection
from .waiting import Lock, cannot_wait, try_acquire


class Source(Protocol):
    """What a unit of work borrows from."""

    def borrow(self, *, timeout: float | None, label: Label | None) -> Lease:
        """Lend a connection that is not in autocommit."""
        ...

    def session_values(self) -> SessionValues:
        """Return what is to be set for the transaction."""
        ...


class UnitOfWork(Generic[Row]):
    """What a request, or a transaction block, does: all of it on one connection, committed or rolled back as one.

    The connection is borrowed by the first query method, or by `connection`.  `pgmonkey.Database.begin` makes a
    unit.
    """

    def __init__(
        self,
        source: Source,
        mode: TransactionMode,
        label: Label | None = None,
        on_borrow: Callable[[], None] | None = None,
    ) -> None:
        self.source = source
        self.finished = False
        self._mode = mode
        self._label = label
        self._on_borrow = on_borrow
        self._lease: Lease | None = None
        self._borrowing = False
        self._cancelled: CancelledUnitError | None = None
        # Tasks of one request work side by side: one may commit while another runs a query method, two may both be the
        # first to need the connection, and the client may disconnect while it is borrowed or given back.
        self._working = Lock()
        self._leasing = Lock()

    def connection(self, *, timeout: float | None = None) -> Connection[Row]:
        """Return the connection of this unit, borrowed at the first call.

        *timeout* is how long to wait for a free one, in seconds, the pool's ``timeout`` by default.  Its
        ``transaction()`` blocks are savepoints: it is `finish` that commits.
        """
        leasing = self._leasing
        if not try_acquire(leasing):
            leasing.acquire()
        try:
            lease = self._lease or self._borrow(timeout)
            connection: Connection[Row] = lease.connection
            return connection
        finally:
            leasing.release()

    def _first_lease(self) -> Lease:
        leasing = self._leasing
        if not try_acquire(leasing):
            leasing.acquire()
        try:
            return self._lease or self._borrow(None)
        finally:
            leasing.release()

    def _borrow(self, timeout: float | None) -> Lease:
        if self.finished or self._cancelled is not None:
            raise self._over()
        self._borrowing = True
        try:
            lease = self.source.borrow(timeout=timeout, label=self._label)
            # Until it is this unit's, nothing but this block gives it back.
            try:
                if self.finished or self._cancelled is not None:  # by another task of the request, during the borrow
                    raise self._over()
                lease.in_unit = True
                if self._mode is not DEFAULT:
                    _set_mode(lease.connection, self._mode)
                if values := self.source.session_values():
                    set_values(lease.connection, values)
            except BaseException as error:
                lease.finish(error)
                raise
            self._lease = lease
        finally:
            self._borrowing = False
        if self._on_borrow is not None:
            self._on_borrow()
        return lease

    def _over(self) -> psycopg.Error:
        return self._cancelled or GivenBackError("this unit of work is finished, and its connection was given back")

    @property
    def borrowed(self) -> bool:
        """Whether a connection was needed."""
        return self._lease is not None or self._borrowing

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Keep the unit from being finished while a query method runs.

        Raises `GivenBackError` when it was finished while the method waited for its turn: a statement is never executed
        outside the unit that it was called in.
        """
        with self._working:
            if self.finished:
                raise self._over()
            yield

    def answer(self, fast: FastPath, query: Statement, params: Params, read: Read) -> Any:
        """Do as `FastPath.run`, as part of this unit."""
        working = self._working
        if not try_acquire(working):
            working.acquire()
        try:
            if self.finished:  # while it waited for its turn
                raise self._over()
            lease = self._lease or self._first_lease()
            return fast.run_on(lease, query, params, read)
        finally:
            working.release()

    def set_mode(self, mode: TransactionMode) -> None:
        """Choose the mode of the transaction; raise `psycopg.ProgrammingError` when it has begun already."""
        if self._lease is not None:
            connection = self._lease.connection
            if connection.pgconn.transaction_status != TransactionStatus.IDLE:
                raise psycopg.ProgrammingError(
                    "the transaction has begun already; give its isolation and mode before its first statement"
                )
            _set_mode(connection, mode)
        self._mode = mode

    # -- the end ----------------------------------------------------------------------------------------------------

    def finish(self, error: BaseException | None = None) -> None:
        """Commit, or roll back when there is an *error*, and give the connection back; a second call does nothing.

        Raises what makes the COMMIT fail, and `CancelledUnitError` instead of committing what was cancelled.
        """
        if not self.finished:
            if self._borrowing and error is None:
                # A query method that waits for the connection is part of the unit, as one that runs on it is.
                with self._leasing:
                    pass
            self.finished = True
            # Finished units of this context are dropped with it, or a long-lived task would collect them.
            inside = units.get()
            units.set(() if inside == (self,) else tuple(unit for unit in inside if not unit.finished))
            if self._lease is not None:
                self._end(error)
            if self._cancelled is not None and error is None:
                raise self._cancelled

    def roll_back(self, error: BaseException) -> None:
        """Undo what was done and give the connection back; the unit goes on, and borrows again when it needs to."""
        self._end(error)
        self._lease = None

    def cancel(self, reason: str) -> None:
        """Undo what was done, end the statement that runs on the server, and refuse every statement that follows."""
        self._cancelled = CancelledUnitError(reason)
        lease = self._lease
        if lease is not None:
            with self._leasing:
                lease.cancel(self._cancelled)
            self.roll_back(self._cancelled)

    def _end(self, error: BaseException | None) -> None:
        lease = self._lease
        if lease is None:
            return
        if error is not None and cannot_wait(error):
            # Neither lock can be waited for here, and `finish` waits for nothing with such an error.
            lease.finish(error)
            return
        working, leasing = self._working, self._leasing
        try:
            if not try_acquire(working):
                working.acquire()
            try:
                if not try_acquire(leasing):
                    leasing.acquire()
                try:
                    lease.finish(error)
                finally:
                    leasing.release()
            finally:
                working.release()
        except BaseException:
            lease.abandon()  # when interrupted before it was finished
            raise


_AnyUnit: TypeAlias = "UnitOfWork[Any]"
units: ContextVar[tuple[_AnyUnit, ...]] = ContextVar("pgmonkey_units", default=())
"""The units of work that the current context is in, the innermost last."""


def enter(unit: UnitOfWork[Row]) -> UnitOfWork[Row]:
    """Let the query methods of the current context join *unit*."""
    units.set((*units.get(), unit))
    return unit


def current_unit(source: Source) -> _AnyUnit | None:
    """Return the innermost unfinished unit of work of *source* that the current context is in."""
    unit: _AnyUnit
    for unit in reversed(units.get()):
        if unit.source is source and not unit.finished:
            return unit
    return None


class UnitBlock(AbstractContextManager["UnitOfWork[Row]"], Generic[Row]):
    """A unit of work that is finished at the end of a block, with the block's error if there is one."""

    def __init__(self, begin: Callable[[], UnitOfWork[Row]]) -> None:
        self._begin = begin
        self._unit: UnitOfWork[Row] | None = None

    def __enter__(self) -> UnitOfWork[Row]:
        if self._unit is not None:
            raise _used("unit_of_work()")
        self._unit = self._begin()
        return self._unit

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._unit is not None:
            self._unit.finish(error)


class TransactionBlock(AbstractContextManager["Connection[Row]"], Generic[Row]):
    """A transaction, or a savepoint inside the unit of work that the block is in."""

    def __init__(self, source: Source, mode: TransactionMode) -> None:
        self._source = source
        self._mode = mode
        self._unit: UnitOfWork[Row] | None = None
        self._savepoint: AbstractContextManager[Transaction] | None = None

    def __enter__(self) -> Connection[Row]:
        if self._unit is not None or self._savepoint is not None:
            raise _used("transaction()")
        outer: UnitOfWork[Row] | None = current_unit(self._source)
        if outer is None:
            unit: UnitOfWork[Row] = UnitOfWork(self._source, self._mode)
            self._unit = enter(unit)
            try:
                return unit.connection()
            except BaseException as error:
                unit.finish(error)
                raise
        if self._mode is not DEFAULT:
            outer.set_mode(self._mode)
        # On a unit's connection psycopg's block is a savepoint, also when it is the first thing in it.
        connection = outer.connection()
        self._savepoint = connection.transaction()
        self._savepoint.__enter__()
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._savepoint is not None:
            return self._savepoint.__exit__(kind, error, traceback)
        if self._unit is not None:
            self._unit.finish(error)
        # As psycopg's outermost block: Rollback() ends it, and the program goes on behind it.
        return error is not None and isinstance(error, Rollback) and error.transaction is None


def _used(method: str) -> RuntimeError:
    return RuntimeError(f"this block was entered before, and each is good for one use; call {method} again")


def _set_mode(connection: AnyConnection, mode: TransactionMode) -> None:
    connection.set_isolation_level(mode.isolation)
    connection.set_read_only(mode.read_only)
    connection.set_deferrable(mode.deferrable)
