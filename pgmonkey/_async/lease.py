"""A lease: one connection in the hands of one borrower, given back exactly once and clean."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from os import getpid
from time import monotonic, perf_counter

import psycopg
from psycopg.abc import AdaptContext
from psycopg.errors import InFailedSqlTransaction
from psycopg.pq import ConnStatus, ExecStatus, PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGresult

from .._driver.begin import Begin, Trace, begins_alone, set_command, with_trace
from .._driver.cancel import hang_up, request_cancel, stop_at_exit
from .._driver.deadlines import Deadline, limit_in
from .._driver.failure import Failure, Refusal
from .._driver.lending import begun, lend, route_notices, take_back
from .._driver.psycopg_types import RowFactory
from .._driver.sql import Effect
from .._driver.tags import tagged_cursor
from .._driver.wire import check_answered, check_commit, pass_on_notifications
from .._pool.place import Label
from .._telemetry.events import Listener, Loan, Return
from ..errors import CommitUnknownError, ForkedError, GivenBackError
from .connector import AsyncPooledConnection
from .cursor import adopted, fast_cursor
from .guard import after_error
from .observed import observed_cursor
from .pool import AsyncPool
from .psycopg_types import AsyncAnyConnection, AsyncAnyCursor
from .waiting import acquire, cannot_wait, try_acquire, wait_for

logger = logging.getLogger("pgmonkey")

# As plain numbers, which are faster to compare than members of an enumeration.
_IDLE, _INTRANS = int(TransactionStatus.IDLE), int(TransactionStatus.INTRANS)
_BEGIN: Begin = (b"BEGIN",)
_FATAL = int(ExecStatus.FATAL_ERROR)
# Seconds to wait for the end of a statement that was cancelled, and until it is cancelled again: a request that arrives
# between two statements has no effect.
_CANCEL_TIMEOUT = 5.0
_CANCEL_AGAIN = 0.02
# Seconds to wait for a connection on which no statement runs, but that is in use.
_LOCK_TIMEOUT = 0.75
# Seconds to wait for a ROLLBACK, and for one whose borrower was interrupted.  When the server takes longer, the
# connection is closed, and the server rolls back.
_ROLLBACK_TIMEOUT = 5.0
_INTERRUPTED_TIMEOUT = 0.75


class AsyncLease:
    """A borrowed connection, which the borrower gives back by `finish`; a garbage-collected lease closes its own."""

    lent: AsyncAnyConnection | None = None
    """The psycopg connection, once the borrower has asked for it."""
    pooled: AsyncPooledConnection | None = None
    """What is borrowed; None after it was given back."""
    deadline: Deadline | None = None
    """When every statement must have ended, also a COMMIT; None is never."""
    loan: Loan | None = None
    """What is told of it; None when nobody listens."""
    tag: bytes | None = None
    """The comment that each statement ends with."""
    _trace: Trace | None = None

    def __init__(
        self, pool: AsyncPool, pooled: AsyncPooledConnection, autocommit: bool, context: AdaptContext | None = None
    ) -> None:
        self.pool = pool
        self.refusal: Refusal | None = None
        """Makes the error that every later statement raises."""
        self.row_factory: RowFactory | None = None
        """The row factory; None for the connection's own."""
        self.unit: Callable[[], object] | None = None
        """Returns the unit of work that it belongs to, whose end alone commits; None where that is gone."""
        self.values: Mapping[str, str | None] = {}
        """The session values of the transaction that is open, and of each that begins."""
        self.begin: Begin = _BEGIN
        """The commands that begin a transaction."""
        self.pooled = pooled
        prepared = pooled.prepared
        prepared.failure, prepared.statements = None, 0
        self._statements = 0
        self.in_autocommit = autocommit
        """Whether each statement is its own transaction."""
        self._context = context

    def observe(self, listeners: tuple[Listener, ...], asked: float, label: Label | None) -> None:
        """Tell *listeners* what becomes of it; *asked* is when the borrow began, 0 when that did not wait."""
        if self.pooled is not None:
            now = perf_counter()
            self.loan = Loan(listeners, self.pool.subject, self.pooled.server, asked or now, label)

    def show_trace(self, trace: Trace) -> None:
        """Have each transaction begin with what *trace* returns then."""
        self._trace = trace
        self.begin = with_trace(self.begin, trace)

    @property
    def connection(self) -> AsyncAnyConnection:
        """The psycopg connection; unusable once the lease is finished."""
        return self.lent or self._lend()

    def _lend(self) -> AsyncAnyConnection:
        pooled, blueprint = self.pooled, self.pool.blueprint
        if pooled is None:
            raise GivenBackError("the connection of this lease was given back to its pool; borrow another one")
        connection = lend(
            pooled.connection,
            autocommit=self.in_autocommit,
            context=self._context,
        )
        state = connection.__dict__
        # Weak: the lease alone has the connection, whoever refers to what was lent.
        state["pooled"], state["pool"] = pooled.weak, self.pool.weak
        state["fast_cursor"] = fast_cursor
        if self.loan is not None:
            state["fast_cursor"], state["loan"] = observed_cursor, self.loan
        if self.tag is not None:
            state["fast_cursor"], state["tag"] = partial(tagged_cursor, make_fast=state["fast_cursor"]), self.tag
        if self._trace is not None:
            state["trace"] = self._trace
        if self.row_factory is not None:
            state["row_factory"] = self.row_factory
        if self.unit is not None:
            state["unit"] = self.unit
        if self.values:
            state["session_values"], state["begins_alone"] = self._command, not self.begin
        if self.refusal is not None:
            state["refusal"] = self.refusal
        if blueprint.settings.close_returns:
            # A unit of work gives its connection back at its end.
            state["close"] = self.finish if self.unit is None else self._stay
        # Another thread of the borrower may do the same at this moment, or finish the lease: the first one counts.
        first: AsyncAnyConnection = self.__dict__.setdefault("lent", connection)
        route_notices(first)
        if self.pooled is None:
            take_back(first)
        if self.loan is not None:
            self.loan.tell()  # of the borrow, before anything is done
        return first

    def limit(self, deadline: Deadline | None) -> None:
        """Let every statement from now on, also the COMMIT, end by the *deadline*; None lifts it.

        What has not ended then raises `DeadlineExceededError`, is cancelled, and its connection closed.
        """
        self.deadline = deadline
        for connection in (self.lent, self.pooled and self.pooled.connection):
            if connection is not None:
                if deadline is None:
                    connection.__dict__.pop("deadline", None)
                else:
                    connection.__dict__["deadline"] = deadline

    def adopt(self, cursor: AsyncAnyCursor) -> AsyncAnyCursor:
        """Return *cursor*, which its class has made and not the connection, as the connection would have made it."""
        return adopted(cursor, self.connection)

    def set_values(self, values: Mapping[str, str | None]) -> None:
        """Have each transaction begin with these session values; one that is open has them already."""
        command = None
        if values and self.pooled is not None:
            command = set_command(values, self.pooled.connection)
        self.values, self._command = values, command
        self.begin = _BEGIN if command is None else () if begins_alone(values) else (*_BEGIN, command)
        if self._trace is not None:
            self.begin = with_trace(self.begin, self._trace)
        if self.lent is not None:
            state = self.lent.__dict__
            state["session_values"], state["begins_alone"] = command, not self.begin

    @property
    def active(self) -> bool:
        """Whether the connection is still the borrower's."""
        return self.pooled is not None

    @property
    def idle(self) -> bool:
        """Whether no transaction is open."""
        return self.pooled is not None and self.pooled.pgconn.transaction_status == _IDLE

    @property
    def status(self) -> int:
        """The status of the transaction, one of `psycopg.pq.TransactionStatus`."""
        return TransactionStatus.UNKNOWN if self.pooled is None else self.pooled.pgconn.transaction_status

    @property
    def failure(self) -> Failure | None:
        """What failed first in the transaction that is open: as text, its statement, its place and the reason."""
        return None if self.pooled is None else self.pooled.prepared.failure

    @property
    def statements(self) -> int:
        """How many statements were executed, but for COPY and streams."""
        return self._statements if self.pooled is None else self.pooled.prepared.statements

    @property
    def unclean(self) -> bool:
        """Whether the session has certainly to be cleaned: a function of the application's own has no such effect."""
        return self.pooled is not None and self.pooled.prepared.unclean is Effect.LASTING

    @property
    def has_mode(self) -> bool:
        """Whether `configure` has set what holds for transactions only: isolation level, read-only, deferrable."""
        return self.pooled is not None and self.pooled.begin != b"BEGIN"

    def __str__(self) -> str:
        return "given back" if self.pooled is None else str(self.pooled)

    async def finish(self, error: BaseException | None = None, *, clean: bool = True) -> None:
        """Commit, or roll back when there is an *error*; clean the session; give the connection back.

        Commit and cleaning travel together, in one round trip.  *clean* is False where the borrower knows that nothing
        was left in the session.  Raises what makes the COMMIT fail; the connection is given back all the same.  A
        second call does nothing.
        """
        # Taken in one step, so that whatever happens below, nothing gives the connection back a second time.
        pooled: AsyncPooledConnection | None = self.__dict__.pop("pooled", None)
        if pooled is None:
            return
        self._statements = pooled.prepared.statements
        reset = self.pool.blueprint.settings.reset
        try:
            try:
                if self.lent is not None:
                    await self._let_end(self.lent, pooled, error)
                if (
                    pooled.pgconn.transaction_status == _IDLE
                    and reset is None
                    and not (clean and pooled.prepared.unclean)
                ):
                    pass  # nothing was done, or it is finished
                elif error is None:
                    await self._commit(pooled, clean)
                elif cannot_wait(error):
                    pooled.close()
                else:
                    await self._roll_back(pooled, clean, error)
            except psycopg.Error:
                pooled.connection.__dict__.pop("deadline", None)
                await self._restore(pooled)
                raise
            if self.deadline is not None:
                pooled.connection.__dict__.pop("deadline", None)
            if reset is not None or pooled.prepared.bare:
                await self._restore(pooled)
        except psycopg.Error as failure:
            if self.loan is not None:
                self.loan.end("unknown" if isinstance(failure, CommitUnknownError) else "rollback", failure)
            raise
        except BaseException as failure:
            pooled.close()  # interrupted half-way: what is left in the session is unknown
            if self.loan is not None:
                self.loan.end("rollback", failure)
            raise
        finally:
            if self.lent is not None:
                take_back(self.lent)
            if pooled.connection.lock.locked():
                pooled.close()  # by whom it was held was interrupted, and would let nobody else in
            # Upkeep needs a running loop, which a coroutine that is being closed may not have.
            if self.pool.give_back(pooled) and not cannot_wait(error):
                self.pool.replenish()
            if self.loan is not None:
                self._tell_end(self.loan, error)

    def _tell_end(self, loan: Loan, error: BaseException | None) -> None:
        """Tell that the borrow has ended; a unit of work tells it when it has left its turn."""
        loan.end("commit" if error is None else "rollback", error)
        if self.unit is None:
            loan.tell_all()
        else:
            loan.note(Return(loan))

    async def _let_end(
        self, lent: AsyncAnyConnection, pooled: AsyncPooledConnection, error: BaseException | None
    ) -> None:
        """Refuse what another task or thread executes from now on; wait for the end of what it is executing.

        Otherwise that would be acknowledged, and lost: it would come behind the COMMIT, or there would be none.
        """
        state, lock = lent.__dict__, pooled.connection.lock
        if "refusal" not in state:
            state["refusal"] = GivenBackError
        # Statements look at the refusal while they have the lock.
        if lock.locked() and not cannot_wait(error) and await acquire(lock, _LOCK_TIMEOUT):
            lock.release()

    def refuse(self, refusal: Refusal) -> None:
        """Let every statement from now on raise what *refusal* makes."""
        self.refusal = refusal
        if self.lent is not None:
            self.lent.__dict__["refusal"] = refusal

    async def _restore(self, pooled: AsyncPooledConnection) -> None:
        """Call the functions of the settings that make a connection fit for the next borrower; else close it.

        What they raise is no error of the borrower, whose work is done.
        """
        try:
            if pooled.prepared.bare and pooled.pgconn.status == ConnStatus.OK:
                await self.pool.configure(pooled)
            if pooled.pgconn.status == ConnStatus.OK:
                await self.pool.reset(pooled)
        except Exception as failure:
            logger.warning("%s: closing a connection that was given back: %r", self.pool.name, failure)
            pooled.close()

    async def cancel(self, refusal: Refusal) -> None:
        """End what is running, on the server, and wait for its end; from now on every statement is refused.

        A statement that is running raises `psycopg.errors.QueryCanceled`.  The lease stays the borrower's.
        """
        pooled = self.pooled
        if pooled is None or pooled.inherited:
            return
        self.refuse(refusal)
        lock, pgconn = pooled.connection.lock, pooled.pgconn
        deadline = monotonic() + _CANCEL_TIMEOUT
        while not await acquire(lock, _CANCEL_AGAIN):
            if monotonic() >= deadline:
                logger.warning("could not cancel a statement, so its connection was closed: the server did not answer")
                hang_up(pgconn)
                return
            if pgconn.transaction_status == TransactionStatus.ACTIVE:
                await wait_for(request_cancel(pgconn), deadline - monotonic())
        lock.release()

    def abandon(self) -> None:
        """Close the connection, whatever it is doing, and give its place back.  Never waits."""
        pooled: AsyncPooledConnection | None = self.__dict__.pop("pooled", None)
        if pooled is not None:
            if self.lent is not None:
                take_back(self.lent)
            pooled.close()
            self.pool.serve()

    def __del__(self) -> None:
        """Take back what a dead thread or a forgotten variable held."""
        if self.pooled is not None and not self.pooled.inherited:
            self.abandon()

    async def _stay(self) -> None:
        """Leave the connection to the end of the unit of work."""

    async def _commit(self, pooled: AsyncPooledConnection, clean: bool) -> None:
        status = pooled.pgconn.transaction_status
        if pooled.pgconn.pipeline_status != PipelineStatus.OFF and status not in (_IDLE, TransactionStatus.UNKNOWN):
            pooled.close()
            raise psycopg.OperationalError("nothing was committed: a pipeline() block on this connection has not ended")
        if status == _INTRANS:
            if self.unit is None and self.lent is not None and (what := begun(self.lent)):
                await self._roll_back(pooled, clean)
                raise psycopg.ProgrammingError(f"nothing was committed: {what}")
            if self.deadline is not None and not self.deadline.left:
                pooled.close()
                raise self.deadline.exceeded("nothing was committed: the transaction did not end")
            await self._send_commit(pooled, clean)
        elif status == TransactionStatus.INERROR:
            failure = pooled.prepared.failure  # which the rollback forgets
            await self._roll_back(pooled, clean)
            raise _failed(failure) from _cause(failure)
        elif status == TransactionStatus.ACTIVE:
            pooled.close()
            raise psycopg.OperationalError("nothing was committed: a statement was still running at the end")
        elif status == TransactionStatus.IDLE:
            await self._roll_back(pooled, clean)  # nothing to commit, but something to clean
        else:
            self._check_closed(pooled)

    def _check_closed(self, pooled: AsyncPooledConnection) -> None:
        """Raise unless the borrower has closed the connection when nothing was open, and not used it since."""
        connection, failure = self.lent or pooled.connection, pooled.prepared.failure
        if failure is not None or not connection.__dict__.get("closed_idle"):
            how = "lost" if connection.broken else "closed: close() was called before its end"
            raise psycopg.OperationalError(f"nothing was committed: the connection was {how}") from _cause(failure)

    async def _send_commit(self, pooled: AsyncPooledConnection, clean: bool) -> None:
        if clean and pooled.prepared.unclean:
            results = await self._send(pooled, b"COMMIT", clean)
        else:
            results = await self._exchange(pooled, b"COMMIT")
        if not results or results[0].command_status != b"COMMIT":
            await self._not_committed(pooled, results, clean)
        if results[-1].status == _FATAL:
            pooled.close()  # committed, but not clean

    async def _not_committed(self, pooled: AsyncPooledConnection, results: list[PGresult], clean: bool) -> None:
        """Raise what *results* say in the place of COMMIT."""
        stop_at_exit()  # which may have cancelled it
        try:
            check_commit(results, pooled.connection)
        except CommitUnknownError:
            pooled.close()
            raise
        except psycopg.Error:
            await self._roll_back(pooled, clean)
            raise
        # ROLLBACK: a statement of another task or thread failed while this waited for the connection's lock.
        failure = pooled.prepared.failure
        raise _failed(failure) from _cause(failure)

    async def _roll_back(self, pooled: AsyncPooledConnection, clean: bool, error: BaseException | None = None) -> None:
        status = pooled.pgconn.transaction_status
        patience = _ROLLBACK_TIMEOUT if error is None or isinstance(error, Exception) else _INTERRUPTED_TIMEOUT
        if self.deadline is not None:
            patience = min(patience, self.deadline.left)
            if not patience:
                pooled.close()
                return
        open_transaction = status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)
        if status == TransactionStatus.ACTIVE:
            pooled.close()
        if status in (TransactionStatus.ACTIVE, TransactionStatus.UNKNOWN):
            return
        state = pooled.connection.__dict__
        usual = state["command_timeout"]
        state["command_timeout"] = min(patience, usual or patience)
        try:
            results = await self._send(pooled, b"ROLLBACK" if open_transaction else None, clean)
            if results and results[-1].status == _FATAL:
                pooled.close()
        except psycopg.Error as failure:
            # The borrower is handling a more important error, and the server rolls back when it loses a connection.
            logger.debug("closing a connection that could not be rolled back: %s", failure)
            pooled.close()
        finally:
            state["command_timeout"] = usual

    async def _send(self, pooled: AsyncPooledConnection, end: bytes | None, clean: bool) -> list[PGresult]:
        """Send *end* and what cleans the session in one message; return the results."""
        blueprint, prepared = self.pool.blueprint, pooled.prepared
        clean = clean and bool(blueprint.settings.clean_on_return) and prepared.needs_cleaning(end)
        message = prepared.ending(end, clean=clean, pgbouncer=blueprint.pgbouncer)
        if not message:
            return []
        results = await self._exchange(pooled, message)
        # The server executes nothing behind a statement that failed, such as COMMIT: the error comes last.
        if clean and not (results and results[-1].status == _FATAL):
            prepared.cleaned()
            pass_on_notifications(pooled.pgconn)  # or the next borrower would get them
        return results

    async def _exchange(self, pooled: AsyncPooledConnection, message: bytes) -> list[PGresult]:
        if pooled.watcher.pid != getpid():
            raise ForkedError(pooled.watcher.pid, getpid())
        connection = pooled.connection
        lock, state = connection.lock, connection.__dict__
        # Not for ever: whoever holds it may have been interrupted, and does not release it any more.
        if not try_acquire(lock) and not await acquire(lock, _LOCK_TIMEOUT):
            pooled.close()
            raise psycopg.OperationalError("nothing was committed: the connection was still in use at the end")
        sent = False
        try:
            limit: float | None = state["command_timeout"] if "deadline" not in state else limit_in(state)
            pooled.pgconn.send_query(message)
            sent = True
            return await pooled.watcher.fetch(limit)
        except BaseException as error:
            await after_error(connection, error)
            if sent and message.startswith(b"COMMIT") and isinstance(error, psycopg.Error):
                check_answered(error)
            raise
        finally:
            lock.release()


def _failed(failure: Failure | None) -> psycopg.Error:
    what = failure or "a statement of this transaction failed and its error was ignored"
    return InFailedSqlTransaction(
        f"nothing was committed: {what}; put it into 'async with db.transaction():', which is a savepoint, to go on "
        "after an error"
    )


def _cause(failure: Failure | None) -> psycopg.Error | None:
    return None if failure is None else failure.error
