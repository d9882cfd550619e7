# Generated from pgmonkey/_async/unit.py by tools/twins.py: change that file, then run the tool.

"""A unit of work: what a request, or a transaction block, does on one connection, committed or rolled back as one."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, cast

import psycopg
from psycopg import Connection, Transaction
from psycopg.pq import TransactionStatus
from psycopg.rows import Row

from .._driver.deadlines import Deadline, earlier
from .._driver.failure import Refusal
from .._driver.plan import Declined, Read
from .._driver.sql import Params, Statement
from .._driver.transaction_mode import DEFAULT, TransactionMode
from .._pool import scopes
from .._pool.place import Label
from .._pool.scopes import Ask
from .._telemetry.events import Loan
from ..errors import CancelledUnitError, GivenBackError, PoolTimeoutError
from .fastpath import FastPath, read_found
from .guard import Guard, in_itself
from .lease import Lease
from .nested import Nested
from .pool import AT_ONCE
from .psycopg_types import AnyConnection
from .waiting import TurnLock, cannot_wait, held_by_caller, try_acquire, wait_for_turn

T = TypeVar("T")

_IDLE, _INTRANS = int(TransactionStatus.IDLE), int(TransactionStatus.INTRANS)


class Source(Protocol):
    """What a unit of work borrows from."""

    ask: Ask | None
    """Returns what is to be set for the transaction."""
    timeout: float
    """How long to wait for a connection, in seconds."""

    def borrow(self, *, timeout: float | None, label: Label | None, deadline: Deadline | None) -> Lease:
        """Lend a connection that is not in autocommit, and whose statements end by the *deadline*."""
        ...


class UnitOfWork(Generic[Row]):
    """The work of a request or a transaction block: on one connection, committed or rolled back as a whole.

    The connection is borrowed by the first query method, or by `connection`.  `pgmonkey.Database.begin` makes a
    unit.
    """

    asking = False
    loan: Loan | None = None
    """What is told of the connection, when no lock is held any more; None when nobody listens."""

    def __init__(
        self,
        source: Source,
        mode: TransactionMode,
        label: Label | None = None,
        on_borrow: Callable[[], None] | None = None,
        *,
        values: Mapping[str, str | None] | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        self.source = source
        self.finished = False
        self.nests = False
        """Whether all blocks inside it must have ended when it ends, as it is a block itself."""
        self.mode = mode
        self._label = label
        self._on_borrow = on_borrow
        self._lease: Lease | None = None
        self._borrowing = False
        self._refusal: Refusal | None = None
        """Why nothing more is done and nothing will be committed."""
        self._deadline = deadline
        self._has_values = source.ask is not None or bool(values)
        self._asks = source.ask is not None and values is None
        self._values = values or {}
        """The session values that were asked for last."""
        self.blocks: list[weakref.ref[Nested]] = []
        """The open blocks, the innermost last."""
        # Tasks of one request work side by side: one may commit while another runs a query method, two may both be the
        # first to need the connection.  Each waits for its turn, also to begin and to end a savepoint.
        self._turn = TurnLock()
        self.busy = False
        """Whether it is in the middle of a statement."""
        self._cancelling: AbstractContextManager[object] | None = None
        """Taken while `cancel` uses the connection; None unless it was called."""

    def connection(self, *, timeout: float | None = None) -> Connection[Row]:
        """Return the connection of this unit, borrowed at the first call.

        *timeout* is how long to wait for a free one, in seconds, the pool's ``timeout`` by default.  Its
        ``transaction()`` blocks are savepoints: it is `finish` that commits.
        """
        values = self._asked() if self._has_values else None
        lease = self._lease
        if lease is None or (values is not None and values != lease.values):
            with self._turn:
                if self.busy:
                    raise in_itself()
                try:
                    self.busy = True
                    lease = self._lease or self._borrow(timeout)
                    if values is not None and values != lease.values:
                        self._set_values(lease, values)
                finally:
                    self.busy = False
            if self.loan is not None:
                self.loan.tell()
        connection: Connection[Row] = lease.connection
        return connection

    def idle_connection(self) -> Connection[Row] | None:
        """Return the connection of this unit as `connection` does, if it can be had without any wait; else None.

        None, too, where session values are to be asked for: the function may wait for anything.
        """
        if self._has_values or self._lease is not None or not try_acquire(self._turn):
            return None
        try:
            if self.busy or self.finished or self._refusal is not None:
                return None
            self.busy = True
            try:
                lease = self._lease or self._borrow(AT_ONCE)
            finally:
                self.busy = False
        except PoolTimeoutError:
            return None
        finally:
            self._turn.release()
        if self.loan is not None:
            self.loan.tell()
        connection: Connection[Row] = lease.connection
        return connection

    @property
    def borrowed(self) -> bool:
        """Whether a connection was needed."""
        return self._lease is not None or self._borrowing

    @property
    def statements(self) -> int:
        """How many statements were executed since it began, or was last rolled back, but for COPY and streams."""
        return 0 if self._lease is None else self._lease.statements

    def answer(self, fast: FastPath, query: Statement, params: Params, read: Read, block: Nested | None = None) -> Any:
        """Do as `FastPath.run`, as part of this unit, called in its open *block*."""
        values = self._asked() if self._has_values else None
        try:
            with self._turn:
                if self.finished or self.busy or self._refusal is not None or block is not None or self.blocks:
                    self._check(block)
                try:
                    self.busy = True
                    lease = self._lease or self._borrow(None)
                    if values is not None and values != lease.values:
                        self._set_values(lease, values)
                    found = fast.run_on(lease, query, params, read)
                finally:
                    self.busy = False
        finally:
            if self.loan is not None:
                self.loan.tell()
        # Rows are made by classes and functions of the program, and these may use the unit.
        return found if found.__class__ is Declined else read_found(found, read)

    def do(
        self,
        work: Callable[[Connection[Row]], T],
        block: Nested | None = None,
        deadline: Deadline | None = None,
    ) -> T:
        """Return what *work* returns, which is given the connection when it is its turn; *block* as for `answer`.

        All of it, the wait for its turn as well, ends by the *deadline*.
        """
        values = self._asked()

        def working() -> T:
            lease = self._lease or self._borrow(None, deadline)
            usual = lease.deadline
            if deadline is not None:
                lease.limit(earlier(deadline, usual))
            try:
                if values is not None and values != lease.values:
                    self._set_values(lease, values)
                return work(lease.connection)
            finally:
                if deadline is not None:
                    lease.limit(usual)

        if deadline is not None and not wait_for_turn(self._turn, deadline.left):
            raise deadline.exceeded("another statement of this transaction did not end")
        return self._in_turn(working, block)

    def _in_turn(self, work: Callable[[], T], block: Nested | None) -> T:
        try:
            with self._turn:
                self._check(block)
                if self._lease is not None and held_by_caller(self._lease.connection.lock):
                    raise in_itself()  # a statement on the connection itself, which does not wait for a turn
                try:
                    self.busy = True
                    return work()
                finally:
                    self.busy = False
        finally:
            if self.loan is not None:
                self.loan.tell()

    def _check(self, block: Nested | None) -> None:
        """Raise what forbids to do something in *block*, whose turn it is."""
        if self.finished or self._refusal is not None:
            raise self._over()
        if self.busy:
            raise in_itself()
        inner = self._innermost()
        if inner is block:
            return
        if block is not None and not self._holds(block):
            raise GivenBackError("the block that this belongs to has ended, or its transaction was rolled back")
        self._check_nesting(inner)

    def _check_nesting(self, inner: Nested | None) -> None:
        if inner is not None and inner.runs_elsewhere:
            raise psycopg.ProgrammingError(
                f"savepoints must nest: {inner.runner} is in a block inside this transaction, and this would become "
                "part of it; do one after the other, or give one of them a transaction of its own"
            )

    def check_statement(self) -> None:
        """Raise `psycopg.ProgrammingError` if a statement on the connection would become part of another's block."""
        inner = self._innermost()
        if inner is not scopes.find_in(self):
            self._check_nesting(inner)

    def _holds(self, block: Nested) -> bool:
        return any(reference() is block for reference in self.blocks)

    def _innermost(self) -> Nested | None:
        blocks = self.blocks
        while blocks:
            block = blocks[-1]()
            if block is not None and not block.finished:
                return block
            blocks.pop()  # interrupted while it was entered
        return None

    def _over(self) -> psycopg.Error:
        if self._refusal is not None:
            return self._refusal()
        return GivenBackError("this unit of work is finished, and its connection was given back")

    # -- the connection ---------------------------------------------------------------------------------------------

    def _asked(self) -> Mapping[str, str | None] | None:
        """Return the session values for what comes next; None where those that were asked for last are to hold.

        No lock is held here: the function may use the database, this unit as well.
        """
        if not self._has_values or scopes.is_asking(self.source):
            return None
        if self._asks:
            values, self._asks = scopes.ask(self.source)
            # What is not set any more is reset, also when a savepoint is rolled back in which that was done.
            self._values = {**dict.fromkeys(self._values), **values}
        return self._values

    def _set_values(self, lease: Lease, values: Mapping[str, str | None]) -> None:
        status = lease.status
        if status == _INTRANS:
            before = lease.values
            changed = {name: value for name, value in values.items() if name not in before or value != before[name]}
            cast("Guard", lease.connection).set_values(changed)
        if status in (_IDLE, _INTRANS):  # a transaction that has failed takes none
            lease.set_values(values)

    def _borrow(self, timeout: float | None, deadline: Deadline | None = None) -> Lease:
        if self.finished or self._refusal is not None:
            raise self._over()
        limited = []
        if self.blocks:
            # Those that began before anything was borrowed.
            limited = [block for reference in self.blocks if (block := reference()) is not None and block.deadline]
            for block in limited:
                deadline = earlier(deadline, block.deadline)
        if deadline is not None:
            timeout = deadline.wait(self.source.timeout if timeout is None else timeout)
        self._borrowing = True
        try:
            lease = self.source.borrow(timeout=timeout, label=self._label, deadline=self._deadline)
            # Until it is this unit's, nothing but this block gives it back.
            try:
                if self.finished or self._refusal is not None:  # by another task of the request, during the borrow
                    raise self._over()
                lease.unit = weakref.ref(self)
                if lease.loan is not None:
                    self.loan, lease.loan.unit = lease.loan, lease.unit
                if self.mode is not DEFAULT:
                    _set_mode(lease.connection, self.mode)
                if self._values:
                    lease.set_values(self._values)
                for block in limited:
                    block.limit(lease)
            except BaseException as error:
                lease.finish(error)
                raise
            self._lease = lease
        finally:
            self._borrowing = False
        if self._on_borrow is not None:
            self._on_borrow()
        return lease

    def set_mode(self, mode: TransactionMode) -> None:
        """Choose the mode of the transaction; raise `psycopg.ProgrammingError` when it has begun already."""
        if self._lease is not None:
            connection = self._lease.connection
            if connection.pgconn.transaction_status != TransactionStatus.IDLE:
                raise psycopg.ProgrammingError(
                    "the transaction has begun already; give its isolation and mode before its first statement"
                )
            _set_mode(connection, mode)
        self.mode = mode

    # -- the blocks inside it ---------------------------------------------------------------------------------------

    def nest(self, transaction: AbstractContextManager[Transaction], force_rollback: bool) -> Nested:
        """Return the block for *transaction* of this unit's connection: it is this unit's end alone that commits."""
        return Nested(self, transaction, force_rollback)

    def open_block(self, block: Nested, begin: Callable[[Guard | None], T]) -> T:
        """Begin *block* by *begin*, which is given the connection if one is borrowed, when it is its turn."""

        def working() -> T:
            lease = self._lease
            if lease is not None:
                block.values = lease.values
                block.limit(lease)
            # Known before it has begun: no statement may come between SAVEPOINT and what is known.
            self.blocks.append(weakref.ref(block))
            try:
                return begin(None if lease is None else cast("Guard", lease.connection))
            except BaseException:
                self.blocks.pop()
                block.lift_limit(lease)
                raise

        return self._in_turn(working, scopes.find_in(self))

    def close_block(self, block: Nested, end: Callable[[], bool | None], error: BaseException | None) -> bool | None:
        """End *block*, which ends with *error*, by *end* when it is its turn."""
        try:
            with self._turn:
                inner = self._innermost()
                if self.busy:
                    self.refuse("a block of it ended in the middle of a statement")
                elif inner is not block and self._holds(block):
                    self.refuse("a block of it ended before one inside that block had ended: savepoints must nest")
                if inner is not block or self._refusal is not None:
                    # A unit that ended first, as a request does before a dependency that yields, was decided then.
                    if error is None and (self._refusal is not None or not self.finished):
                        raise self._over()
                    return None
                try:
                    self.busy = True
                    if error is not None:
                        block.grant_grace(self._lease)
                    return end()
                finally:
                    self.busy = False
                    block.lift_limit(self._lease)
                    if self.blocks:
                        self.blocks.pop()
                    if self._lease is not None and (error is not None or block.force_rollback):
                        self._lease.set_values(block.values)
        except psycopg.Error:
            raise  # the server knows that the transaction has failed
        except BaseException:
            self.refuse("a block of it was interrupted while it ended")
            raise
        finally:
            if self.loan is not None:
                self.loan.tell()

    @contextmanager
    def savepoint(self, connection: Guard) -> Iterator[None]:
        """Do what is in the block, given to `do`, in a savepoint; what others execute on the connection raises."""
        transaction = connection.new_savepoint()
        block = Nested(self, transaction)
        block.runner = scopes.Runner(None)
        self.blocks.append(weakref.ref(block))
        try:
            connection.begin_savepoint(transaction)
            try:
                yield
            except BaseException as error:
                transaction.__exit__(type(error), error, error.__traceback__)
                raise
            transaction.__exit__(None, None, None)
        finally:
            block.finished = True  # `_innermost` forgets it

    def refuse(self, reason: str, what: str = "nothing of this transaction is committed") -> None:
        """Let nothing more be done, and nothing be committed; every statement raises an error of *what*: *reason*."""
        if self._refusal is None:
            self._refusal = partial(psycopg.ProgrammingError, f"{what}: {reason}")
            if self._lease is not None:
                self._lease.refuse(self._refusal)

    # -- the end ----------------------------------------------------------------------------------------------------

    def finish(self, error: BaseException | None = None) -> None:
        """Commit, or roll back when there is an *error*, and give the connection back; a second call does nothing.

        Raises what makes the COMMIT fail, and `CancelledUnitError` instead of committing what was cancelled.
        """
        if not self.finished:
            if self._borrowing and error is None:
                # A query method that waits for the connection is part of the unit, as one that runs on it is.
                with self._turn:
                    pass
            self.finished = True
            scopes.leave(self)
            if self._lease is not None:
                try:
                    self._end(error)
                finally:
                    if self.loan is not None:
                        self.loan.tell()
            if self._refusal is not None and error is None:
                raise self._refusal()
            if self.blocks:
                self.blocks.clear()

    def roll_back(self, error: BaseException) -> None:
        """Undo what was done and give the connection back; the unit goes on, and borrows again when it needs to."""
        try:
            self._end(error)
        finally:
            if self.loan is not None:
                self.loan.tell()
        self._start_anew()
        self.blocks.clear()

    def undo(self, error: BaseException) -> None:
        """Do as `roll_back` for a block before which nothing was done, nor before those around it."""
        if self._lease is not None:
            self._lease.finish(error)
        self._start_anew()

    def _start_anew(self) -> None:
        self._lease = None
        if self._cancelling is None:
            self._refusal = None

    def cancel(self, reason: str) -> None:
        """Undo what was done, end the statement that runs on the server, and refuse every statement that follows."""
        self._refusal = partial(CancelledUnitError, reason)
        self._cancelling = self._cancelling or TurnLock()
        lease = self._lease
        if lease is not None:
            with self._cancelling:
                lease.cancel(self._refusal)
            self.roll_back(self._refusal())

    def _end(self, error: BaseException | None) -> None:
        lease = self._lease
        if lease is None:
            return
        if error is not None and cannot_wait(error):
            # Neither lock can be waited for here, and `finish` waits for nothing with such an error.
            lease.finish(error)
            return
        try:
            with self._turn:
                if self.busy:
                    # In the middle of a statement of its own thread, which an interruption may have ended.
                    lease.abandon()
                    if error is None:
                        raise in_itself()
                    return
                if self._cancelling is not None:
                    with self._cancelling:
                        pass  # not before `cancel` has done with the connection
                if error is None and self.blocks:
                    self._look_at_open_blocks()
                lease.finish(error or (self._refusal and self._refusal()))
        except BaseException:
            lease.abandon()  # when interrupted before it was finished
            raise

    def _look_at_open_blocks(self) -> None:
        """Refuse to commit what is still going on in a block inside this unit.

        A request may end before a block does: that of a dependency of FastAPI that yields in it, in a task of its own
        where there is a middleware of class ``BaseHTTPMiddleware``.
        """
        for reference in self.blocks:
            block = reference()
            if block is not None and not block.finished and (self.nests or block.goes_on_elsewhere):
                self.refuse(f"{block.runner} was still in a block inside it; savepoints must nest")


def current_unit(source: Source) -> UnitOfWork[Any] | None:
    """Return the innermost unfinished unit of work of *source* that the current context is in."""
    scope: UnitOfWork[Any] | Nested | None = scopes.find(source)
    return None if scope is None else unit_of(scope)


def unit_of(scope: UnitOfWork[Any] | Nested) -> UnitOfWork[Any]:
    """Return *scope*, or the unit of work that it is a block of."""
    return cast("UnitOfWork[Any]", scope.unit) if isinstance(scope, Nested) else scope


def _set_mode(connection: AnyConnection, mode: TransactionMode) -> None:
    # What is not given stays as `configure` has set it.
    if mode.isolation is not None:
        connection.set_isolation_level(mode.isolation)
    if mode.read_only is not None:
        connection.set_read_only(mode.read_only)
    if mode.deferrable is not None:
        connection.set_deferrable(mode.deferrable)
