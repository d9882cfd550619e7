"""The transaction of a request on one database."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import psycopg
from django.db.transaction import Atomic, TransactionManagementError
from django.db.utils import DatabaseErrorWrapper, Error
from django.utils.functional import cached_property
from psycopg.errors import InFailedSqlTransaction
from psycopg.pq import TransactionStatus

from pgmonkey import CommitUnknownError, Deadline, Lease

from ._compat import PostgresWrapper

if TYPE_CHECKING:
    from types import TracebackType

    from ._settings import DatabaseSettings

logger = logging.getLogger("pgmonkey")

_CURE = "put what may fail into 'with transaction.atomic():' and catch its error around that block"


def _refuse(what: str) -> None:
    raise psycopg.ProgrammingError(
        f"{what} is forbidden in a request, which is a transaction that commits at its end, and rolls back when its "
        "status is an error; use 'with transaction.atomic():' for a part that may fail"
    )


def _refuse_method(name: str) -> Callable[..., None]:
    return lambda *args, **kwargs: _refuse(f"{name}()")


_REFUSED = {name: _refuse_method(name) for name in ("commit", "rollback", "set_autocommit", "tpc_begin")}
_REFUSED["refuse_end"] = _refuse  # by which pgmonkey's cursors refuse a COMMIT that is executed as a statement


class NotingErrors(DatabaseErrorWrapper):
    """Raises Django's errors for psycopg's, and remembers which one made the request's transaction fail."""

    wrapper: TransactionalWrapper

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is not None:
            request = self.wrapper.request_transaction
            # The latest is the one: earlier ones were undone by savepoints, and the server refuses what follows it.
            if request is not None and not issubclass(exc_type, InFailedSqlTransaction):
                request.error = exc_value
            super().__exit__(exc_type, exc_value, traceback)


class RequestTransaction:
    """An atomic block around a request, which begins when the connection is first needed."""

    def __init__(
        self, wrapper: TransactionalWrapper, route: Callable[[], str], outer: RequestTransaction | None = None
    ) -> None:
        self.route = route
        self.outer = outer
        """The transaction of the request in which this request is served, as by a test client in a view."""
        self.decision: bool | None = None
        """What `keep_request` (True) or `rollback_request` (False) decided, whatever the status."""
        self.error: BaseException | None = None
        self._wrapper = wrapper
        self._atomic: Atomic | None = None
        self._blocks = self._savepoints = self._statements = 0
        self._beginning = False
        self._lost = False
        self._told_to_roll_back = False

    @property
    def begun(self) -> bool:
        """Whether there is anything to commit or roll back."""
        return self._atomic is not None

    def prepare(self) -> None:
        """Connect, which begins the transaction, unless that was done or is going on.

        An atomic block of the view must find this one open, to be a savepoint of it.
        """
        if self._atomic is None and not self._beginning:
            self._beginning = True
            try:
                self._wrapper.ensure_connection()
            finally:
                self._beginning = False

    def begin(self) -> None:
        """Begin on the open connection; the server hears of it with the first statement."""
        if self._atomic is not None:
            return
        wrapper = self._wrapper
        self._atomic = atomic = Atomic(wrapper.alias, savepoint=True, durable=False)
        try:
            if not wrapper.in_atomic_block:
                wrapper.set_autocommit(True)  # AUTOCOMMIT may be False, and Atomic would not commit then
                wrapper.rollback_exc = None
            atomic.__enter__()
        except BaseException:
            self._atomic = None
            raise
        self._blocks, self._savepoints = len(wrapper.atomic_blocks), len(wrapper.savepoint_ids)
        self._statements = wrapper.statements
        # Of psycopg's connection, which Django itself calls at the end only.
        vars(wrapper.connection).update(_REFUSED)
        wrapper.show_atomic_requests(self.decision is not True)

    def decide(self, keep: bool) -> None:
        """Commit or roll back whatever the status."""
        self.decision = keep
        if self.begun:
            self._wrapper.show_atomic_requests(not keep)

    def told_to_roll_back(self, rollback: bool) -> None:
        """Note what ``set_rollback()`` was called with, unless an inner savepoint is all that it rolls back."""
        self._told_to_roll_back = rollback and not any(self._wrapper.savepoint_ids[self._savepoints :])

    def closing(self) -> None:
        """Note whether closing the connection, which is about to happen, loses anything."""
        connection = self._wrapper.connection
        if not self.begun or connection is None or self._wrapper.closed_in_transaction:
            return
        lost = bool(self._wrapper.run_on_commit)
        status = connection.pgconn.transaction_status
        if status == TransactionStatus.INTRANS and not lost:
            try:
                asked = connection.execute("SELECT pg_current_xact_id_if_assigned() IS NOT NULL").fetchone()
                lost = asked is None or bool(asked[0])
            except psycopg.Error:
                lost = True
        self._lost = self._lost or lost or status not in (TransactionStatus.IDLE, TransactionStatus.INTRANS)

    def reconnecting(self) -> None:
        """Forget the atomic block: ``connect()`` was called after ``close()``, and resets Django's state."""
        self._atomic = None

    def failure(self) -> Exception | None:
        """Return why a COMMIT would not store what the request did, if so."""
        wrapper = self._wrapper
        if self._lost:
            return psycopg.InterfaceError(
                "nothing was committed: the connection was closed before the end of the request's transaction"
            )
        if not self.begun or wrapper.closed_in_transaction:
            return None
        connection = wrapper.connection
        # PostgreSQL answers the COMMIT of a failed transaction with ROLLBACK, and neither psycopg nor Django report it.
        if connection is not None and connection.pgconn.transaction_status == TransactionStatus.INERROR:
            first = wrapper.lease.failure if wrapper.lease is not None else None
            what = first or "a statement of this transaction failed and its error was ignored"
            failure = InFailedSqlTransaction(f"nothing was committed: {what}; {_CURE}")
            failure.__cause__ = first.error if first is not None else None
            return failure
        if wrapper.needs_rollback:
            return TransactionManagementError(
                "nothing was committed: an error in save(), in delete() or in an atomic block without a savepoint was"
                f" ignored; {_CURE}"
            )
        if len(wrapper.atomic_blocks) > self._blocks:
            return TransactionManagementError("nothing was committed: an atomic block was entered and never left")
        return None

    def end(self, refusal: str | None) -> None:
        """Commit, or roll back for the reason *refusal*, if it has begun; raise what keeps it from being committed."""
        wrapper = self._wrapper
        if refusal is None and wrapper.needs_rollback and self._told_to_roll_back:
            refusal = "set_rollback(True) was called"
        failure = self.failure() if refusal is None else None
        cause = self.error or wrapper.rollback_exc
        atomic, self._atomic = self._atomic, None
        did_something = atomic is not None and wrapper.did_something
        statements = max(0, wrapper.statements - self._statements)  # of a connection that was closed, none
        outcome = "rolled back"
        try:
            if atomic is not None:
                wrapper.show_atomic_requests(False)
                if wrapper.connection is not None and not (self.outer is not None and self.outer.begun):
                    for name in _REFUSED:
                        vars(wrapper.connection).pop(name, None)
                del wrapper.atomic_blocks[self._blocks :], wrapper.savepoint_ids[self._savepoints :]
                if failure is not None or refusal is not None:
                    wrapper.needs_rollback = True
                wrapper.ends_request = True
                atomic.__exit__(None, None, None)
            if failure is not None:
                with wrapper.wrap_database_errors:
                    raise failure from failure.__cause__ or cause
        except Exception as error:
            if wrapper.run_commit_hooks_on_set_autocommit_on:
                raise  # by a function of on_commit(): it is committed
            if isinstance(error.__cause__, CommitUnknownError):
                outcome = "outcome unknown"
            refusal = refusal or " ".join(str(error).split())
            raise
        finally:
            wrapper.ends_request = False
            if refusal is not None and did_something:
                logger.debug("%s: %s: %s (statements: %d)", self.route(), outcome, refusal, statements)


class TransactionalWrapper(PostgresWrapper):
    """Django's wrapper with the transaction of a request, which the middleware begins and ends."""

    request_transaction: RequestTransaction | None = None
    """The transaction of the request that this thread serves."""
    lease: Lease | None = None
    """What lends the connection."""
    deadline: Deadline | None = None
    """When the statements of the request that this thread serves must have ended; None is never."""
    ends_request = False
    """Whether the transaction of a request is being committed, or rolled back."""
    # While it has begun, settings_dict says ATOMIC_REQUESTS, which packages look at; these are that and the real one.
    _shown: DatabaseSettings | None = None
    _hidden: DatabaseSettings | None = None

    @property
    def statements(self) -> int:
        """How many statements were executed on the connection that is borrowed."""
        return 0 if self.lease is None else self.lease.statements

    @property
    def did_something(self) -> bool:
        """Whether a statement was executed in the present transaction, or the connection was closed in it."""
        connection = self.connection
        return connection is None or connection.pgconn.transaction_status != TransactionStatus.IDLE

    def limit(self, deadline: Deadline | None) -> None:
        """Let every statement from now on end by the *deadline*; None lifts it."""
        self.deadline = deadline
        if self.lease is not None:
            self.lease.limit(deadline)

    def show_atomic_requests(self, shown: bool) -> None:
        """Let ``settings_dict`` say that requests are atomic, or what it really says."""
        if self._hidden is not None and self.settings_dict is self._shown:
            self.settings_dict = self._hidden
        self._shown = self._hidden = None
        if shown:
            self._hidden = self.settings_dict
            self._shown = self.settings_dict = {**self.settings_dict, "ATOMIC_REQUESTS": True}

    @cached_property
    def wrap_database_errors(self) -> NotingErrors:
        """Raise Django's errors for psycopg's."""
        return NotingErrors(self)

    def _get_in_atomic_block(self) -> bool:
        # Django asks before it opens an atomic block or runs a query; the request's transaction must have begun then.
        if self.request_transaction is not None:
            self.request_transaction.prepare()
        return self._in_atomic_block

    def _set_in_atomic_block(self, value: bool) -> None:
        self._in_atomic_block = value

    def _get_atomic_blocks(self) -> list[Atomic]:
        # A durable block asks for them first: it must not be inside of another one.
        if self.request_transaction is not None:
            self.request_transaction.prepare()
        return self._atomic_blocks

    def _set_atomic_blocks(self, value: list[Atomic]) -> None:
        self._atomic_blocks = value

    if not TYPE_CHECKING:  # for type checkers they stay attributes, as Django declares them
        in_atomic_block = property(_get_in_atomic_block, _set_in_atomic_block)
        atomic_blocks = property(_get_atomic_blocks, _set_atomic_blocks)

    def set_rollback(self, rollback: bool) -> None:
        """Set whether the innermost atomic block is to be rolled back."""
        super().set_rollback(rollback)
        if self.request_transaction is not None:
            self.request_transaction.told_to_roll_back(rollback)

    def close(self) -> None:
        """Give the connection back."""
        if self.request_transaction is not None:
            self.request_transaction.closing()
        super().close()
        if self.ends_request and not self.autocommit:
            # After a COMMIT that failed: or Django connects anew, and what goes wrong in that hides why it failed.
            self.closed_in_transaction = True

    def begin_request(self, route: Callable[[], str]) -> None:
        """Make the request one transaction, which begins with the first query; *route* names it in the log."""
        self._set_request(RequestTransaction(self, route, outer=self.request_transaction))

    def end_request(self, refusal: str | None) -> None:
        """Commit what `begin_request` announced, or roll it back for the reason *refusal*, if it has begun."""
        request, self.request_transaction = self.request_transaction, None
        if request is None:
            return
        try:
            request.end(refusal)
        finally:
            self._set_request(request.outer)

    def restart_request(self, reason: str) -> None:
        """Roll back what the request did; what it does from here on is a new transaction."""
        request, self.request_transaction = self.request_transaction, None
        if request is None:
            return
        new = RequestTransaction(self, request.route, outer=request.outer)
        new.decision = None if request.decision else request.decision
        try:
            request.end(reason)
            self._set_request(new)
        except Error:
            # The connection is of no use; the error that made the request fail is the one to tell.
            self.request_transaction = None
            self.close()
            self.request_transaction = new

    def _set_request(self, request: RequestTransaction | None) -> None:
        # On a connection that is open already, nothing else would begin it.
        if request is not None and self.connection is not None:
            # A view without a transaction may have left one that it began itself, or a connection that is dead.
            if not self.connection.closed and (self.autocommit or self._in_atomic_block):
                self.request_transaction = request
                request.begin()
                return
            self.close()
        self.request_transaction = request
