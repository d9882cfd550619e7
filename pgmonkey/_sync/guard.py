# Generated from pgmonkey/_async/guard.py by tools/twins.py: change that file, then run the tool.

"""What a pooled connection does differently from psycopg's own while it waits for the server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import copy_context
from functools import partial
from os import getpid
from time import monotonic
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import psycopg
from psycopg import Pipeline, Transaction
from psycopg.abc import PQGen
from psycopg.errors import InFailedSqlTransaction, QueryCanceled
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGconn

from .._driver.begin import begin_statement, set_command
from .._driver.cancel import hang_up, request_cancel, stop_at_exit
from .._driver.deadlines import INTERVAL, limit_in
from .._driver.failure import Failure
from .._driver.lending import LendableConnection
from .._driver.prepared import Prepared
from .._driver.wire import check_answered, check_commit, fetching, pass_on_notifications
from .._pool.open_blocks import Exit, OpenBlocks, Runner, by_frame, current_exit, current_runner
from .._pool.place import query_above
from ..errors import CommandTimeoutError, CommitUnknownError, ForkedError, GivenBackError
from .psycopg_types import AnyConnection
from .waiting import acquire, cannot_wait, wait_for
from .watcher import Watcher

T = TypeVar("T")

# What type checkers infer for an async function.
_Entering: TypeAlias = "Any"
_Exiting: TypeAlias = "None"

if TYPE_CHECKING:

    class _Base(LendableConnection, AnyConnection):
        """What a guard is mixed into."""
else:
    _Base = object

# Seconds that an interrupted borrower waits for the end of its statement; then the connection is closed, not kept.
_PATIENCE = 0.75
# Seconds that whoever executes on a connection has to notice that it was closed.  A stream of the thread that closes
# it, which is between two rows, does not notice.
_CLOSING = 0.1
_NOT_GIVEN = -1.0
# As plain numbers, which are faster to compare than members of an enumeration.
_IDLE, _ACTIVE = int(TransactionStatus.IDLE), int(TransactionStatus.ACTIVE)
_INTRANS = int(TransactionStatus.INTRANS)

WITHOUT_VALUES = "session_values hold until the end of a transaction, and autocommit has none; use transaction()"

OnError = Callable[[psycopg.Error, PGconn], None]


class Guard(_Base):
    """Mixed into psycopg's connection class by the pool: every wait for the server ends in time.

    A statement that takes longer than ``command_timeout`` is cancelled and its connection closed; so is one whose
    borrower is interrupted, unless the server ends it at once.  The pool is told of every error.
    """

    def wait(self, gen: PQGen[T], interval: float | None = None, timeout: float | None = _NOT_GIVEN) -> T:
        """Run one of psycopg's generators to its end."""
        state = self.__dict__
        lock = self.lock  # noqa: F841  # which psycopg holds: `held_by_caller` looks for it
        # A cancelled unit of work refuses every statement, also those of cursors made before.
        if "refusal" in state:
            raise state["refusal"]()
        unit = state["unit"]() if "unit" in state else None
        if unit is not None and unit.blocks:
            unit.check_statement()
        watcher: Watcher = state.get("watcher") or self.own_watcher()
        if watcher.pid != getpid():
            raise ForkedError(watcher.pid, getpid())
        try:
            limit: float | None = state.get("command_timeout") if "deadline" not in state else limit_in(state)
        except CommandTimeoutError as error:
            if self.pgconn.transaction_status == _ACTIVE:  # in the middle of a COPY
                self.after(error, gen)
            raise
        prepared: Prepared | None = state.get("prepared")
        before = _IDLE
        if prepared is not None:  # None while it connects
            before = self.pgconn.transaction_status
            prepared.expect(getattr(gen, "__name__", ""), first=before == _IDLE)
        try:
            options: dict[str, Any] = {} if interval is None else {"interval": interval}
            if timeout != _NOT_GIVEN:
                options["timeout"] = timeout
            if options:  # for notifications: no statement runs that could take too long
                result: T = watcher.run_as_psycopg(gen, None, **options)
            else:
                # The borrower's handlers run in the borrower's context.
                result = watcher.run(gen, limit, copy_context() if self.has_handlers() else None)
        except BaseException as error:
            self.after(error, gen)
            if unit is not None:
                self._refuse_more(unit, before)
            raise
        if unit is not None and self._refuse_more(unit, before):
            raise state["refusal"]()
        return result

    def _refuse_more(self, unit: Any, before: int) -> bool:
        """Tell whether a statement has ended the transaction of *unit*, whose status was *before*; refuse all others.

        It is one that was not refused before it was sent: nobody has read it, or not for certain.
        """
        ended = before in (_ACTIVE, _INTRANS) and self.pgconn.transaction_status == _IDLE
        if ended:
            unit.refuse(
                "a statement that was executed in it, such as COMMIT, has ended it; what came before it may be stored",
                "nothing more of this transaction is committed",
            )
        return ended

    def after(self, error: BaseException, gen: PQGen[object]) -> None:
        """Do what is to be done after *error* has ended the wait for *gen*."""
        stop_at_exit()
        pgconn, state = self.pgconn, self.__dict__
        if isinstance(error, psycopg.Error):
            if isinstance(error, CommandTimeoutError):
                request_cancel(pgconn)
            if isinstance(error, (CommandTimeoutError, CommitUnknownError)):
                # Closed, not reused: a server that is too slow may be too slow to confirm the cancel.
                self.own_watcher().finish()
            reference: Callable[[], OnError | None] | None = state.get("on_error")
            on_error = reference and reference()
            if on_error is not None:
                on_error(error, pgconn)
            self._note_failure(error)
        elif not cannot_wait(error) and pgconn.transaction_status == TransactionStatus.ACTIVE:
            _stop(gen, pgconn, self.own_watcher())
            self._note_failure(QueryCanceled(f"interrupted by {type(error).__name__}"))

    def _note_failure(self, error: psycopg.Error) -> None:
        """Remember what the transaction fails with; tell it with what the server says about each later statement."""
        state = self.__dict__
        pgconn: PGconn | None = state.get("pgconn")
        prepared: Prepared | None = state.get("prepared")
        if pgconn is None or prepared is None:
            return
        # In a pipeline the server tells its end, and with it the state of the transaction, only afterwards.
        status, piped = pgconn.transaction_status, pgconn.pipeline_status != PipelineStatus.OFF
        if status == _IDLE or (status == _INTRANS and not piped):
            return
        first = prepared.failure
        if isinstance(error, InFailedSqlTransaction):
            if first is not None and error.__cause__ is None:
                error.__cause__ = first.error
        elif first is None or not Failure.may_precede(error):
            prepared.failure = Failure(error, *query_above(sys._getframe(1)))

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        """Return what psycopg returns, but of the class that takes the fast path."""
        state = self.__dict__
        fast_cursor: Callable[[type], type] | None = state.get("fast_cursor")
        if "tracer" in state and fast_cursor is not None:
            state["tracer"].prepare(self, fast_cursor)
        try:
            cursor = super().cursor(*arguments, **options)
        except psycopg.Error as error:  # the connection is closed
            self._note_failure(error)
            raise
        if "tracer" in state and fast_cursor is not None:
            return state["tracer"].show(cursor)
        # psycopg's own constructor has run, whatever class and arguments it was; only ``execute`` is another one.
        if fast_cursor is not None:
            cursor.__class__ = fast_cursor(cursor.__class__)
        return cursor

    def set_autocommit(self, value: bool) -> None:
        """Do as psycopg, which waits only for the end of what is running; a unit of work is a transaction."""
        if value:
            self.refuse_end("autocommit")
            if self.__dict__.get("session_values"):
                raise psycopg.ProgrammingError(WITHOUT_VALUES)
        with self.lock:
            if self.set_idle_autocommit(value):
                return
        super().set_autocommit(value)

    def commit(self) -> None:
        """Do as psycopg, more directly where nothing unusual is going on; not in a unit of work, whose end commits."""
        self.refuse_end("commit()")
        state, watcher = self.__dict__, self.own_watcher()
        with self.lock:
            if "refusal" not in state and watcher.pid == getpid() and self.can_commit_directly():
                pgconn, sent = self.pgconn, False
                limit: float | None = state.get("command_timeout") if "deadline" not in state else limit_in(state)
                try:
                    pgconn.send_query(b"COMMIT")
                    sent = True
                    results = watcher.fetch(limit)
                    check_commit(results, self)
                except BaseException as error:
                    self.after(error, fetching(pgconn))
                    if sent and isinstance(error, psycopg.Error):
                        check_answered(error)
                    raise
                if self.has_handlers():
                    pass_on_notifications(pgconn)
                if "loan" in state:
                    state["loan"].end("commit")
                return
        prepared: Prepared = state["prepared"]
        failure = prepared.failure
        try:
            super().commit()
            failure = None  # for which psycopg has rolled back
        finally:
            prepared.failure = failure

    def rollback(self) -> None:
        """Do as psycopg; not in a unit of work, which an error rolls back."""
        self.refuse_end("rollback()")
        super().rollback()

    def begin_alone(self) -> None:
        """Begin the transaction whose session values decide how the parameters of its first statement are dumped."""
        if begin_statement(self) == ():
            with self.lock:
                self.wait(self.starting())

    @contextmanager
    def pipeline(self) -> Iterator[Pipeline]:
        """Do as psycopg; what is dumped in a pipeline does not wait for what is set in it."""
        self.begin_alone()
        with super().pipeline() as pipeline:
            yield pipeline

    def tpc_begin(self, xid: Any) -> None:
        """Do as psycopg; not in a unit of work, which is one transaction of its own."""
        self.refuse_end("tpc_begin()")
        super().tpc_begin(xid)

    def refuse_end(self, what: str) -> None:
        """Raise `psycopg.ProgrammingError` where *what* would end a unit of work."""
        if self._in_unit:
            raise psycopg.ProgrammingError(
                f"{what} is forbidden in a unit of work, such as a request or a transaction() block, which commits at "
                "its end, and rolls back when it raises; use 'with db.transaction():' for a part that may fail"
            )

    @property
    def _in_unit(self) -> bool:
        return "unit" in self.__dict__

    def close(self) -> None:
        """Close the connection."""
        if not self.closed:
            # Whoever ends the borrow has to know whether something is lost by it.
            self.__dict__["closed_idle"] = self.pgconn.transaction_status == _IDLE
            self.mark_closed()
            watcher = self.own_watcher()
            if self.lock.locked() and watcher.pid == getpid():
                # Another task or thread may be inside libpq, which must not lose the connection there.
                hang_up(self.pgconn)
                if acquire(self.lock, _CLOSING):
                    self.lock.release()
            watcher.finish()

    @by_frame
    def __enter__(self, frame: FrameType) -> _Entering:
        """Do as psycopg, whose block commits at its end; in a unit of work, whose end alone does, open a savepoint."""
        entering: _Entering = cast(
            Any, self._enter(frame, current_runner(), current_exit(frame)) if self._in_unit else super().__enter__()
        )
        return entering

    @by_frame
    def __exit__(
        self,
        frame: FrameType,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> _Exiting:
        exit_block: Callable[..., Any] = super().__exit__
        if self._in_unit:
            # Now: what the statement looked up, which has the block, is gone when its coroutine runs.
            block = self._open_blocks.pop(frame)
            if block is None:
                raise RuntimeError("cannot tell which 'with' block of this connection ends here; use its transaction()")
            exit_block = partial(self._exit, block)
        exiting: _Exiting = exit_block(exc_type, exc, traceback)
        return exiting

    def _enter(self, frame: FrameType, runner: Runner, exit_: Exit | None) -> Guard:
        block = self.transaction()
        block.__enter__()
        self._open_blocks.push(frame, runner, exit_, block)
        return self

    def _exit(self, block: AbstractContextManager[Transaction], *error: Any) -> None:
        with suppress(GivenBackError):  # by the end of the unit, which has done everything
            block.__exit__(*error)

    @property
    def _open_blocks(self) -> OpenBlocks[AbstractContextManager[Transaction]]:
        blocks: OpenBlocks[Any] = self.__dict__.setdefault("open_blocks", OpenBlocks())
        return blocks

    def transaction(self, savepoint_name: str | None = None, force_rollback: bool = False) -> Any:
        """Do as psycopg; in a unit of work, whose end alone commits, open a savepoint."""
        reference: Callable[[], Any] | None = self.__dict__.get("unit")
        if reference is None:
            return super().transaction(savepoint_name, force_rollback)
        unit = reference()
        if unit is None:
            raise GivenBackError("the unit of work of this connection is gone")
        return unit.nest(self.new_savepoint(savepoint_name, force_rollback), force_rollback)

    def new_savepoint(
        self, name: str | None = None, force_rollback: bool = False
    ) -> AbstractContextManager[Transaction]:
        """Return psycopg's block, for `begin_savepoint`."""
        if self.in_pipeline():
            return super().transaction(name, force_rollback)
        # What that does outside a pipeline, but not as a generator, which could not be forgotten half-way.
        return Transaction(self, name, force_rollback)

    def begin_savepoint(self, transaction: AbstractContextManager[Transaction]) -> Transaction:
        """Enter psycopg's *transaction* as a savepoint."""
        # psycopg's block begins, and so commits, the whole transaction where none is open.
        with self.lock:
            self.wait(self.starting())
        depth = self.depth
        try:
            return transaction.__enter__()
        except BaseException:
            self.set_depth(depth)  # psycopg counts it, and nobody will end it
            raise

    def set_values(self, values: Mapping[str, str | None] | None = None) -> None:
        """Set session *values* until the end of the transaction that is open, by default those that hold in it."""
        command = self.__dict__.get("session_values") if values is None else set_command(values, self)
        if command is not None:
            with self.lock:
                self.wait(self.setting(command))

    def own_watcher(self) -> Watcher:
        """Return what waits for this connection's answers."""
        state = self.__dict__
        watcher: Watcher | None = state.get("watcher")
        if watcher is None:
            watcher = state["watcher"] = Watcher(self.pgconn)
        return watcher


def in_itself() -> psycopg.Error:
    """Return the error for a statement that would wait for the end of one in the midst of which it is called."""
    return psycopg.ProgrammingError(
        "this transaction is executing a statement in this very thread: type adapters, notice handlers and signal "
        "handlers cannot use it meanwhile"
    )


def after_error(connection: AnyConnection, error: BaseException) -> None:
    """Do what is to be done after *error* has ended the wait for an answer on a pooled *connection*."""
    cast("Guard", connection).after(error, fetching(connection.pgconn))


def _stop(gen: PQGen[object], pgconn: PGconn, watcher: Watcher) -> None:
    """End the statement that *gen* waits for; close the connection when that cannot be done at once."""
    deadline = monotonic() + _PATIENCE
    cancelled = request_cancel(pgconn)
    try:
        with suppress(psycopg.errors.QueryCanceled):  # by which the server confirms the cancel
            watcher.run_as_psycopg(gen, _PATIENCE, interval=INTERVAL / 2)
        wait_for(cancelled, deadline - monotonic())
        if not cancelled.done():
            watcher.finish()
    except Exception:  # of psycopg; or TypeError, where its generators (3.2) cannot go on after an interruption
        watcher.finish()
    except BaseException:  # interrupted again
        watcher.finish()
        raise
