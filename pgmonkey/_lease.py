# Generated from _lease_async.py by tools/twins.py: change that file, then run the tool.

"""A lease: one connection in the hands of one borrower, given back exactly once and clean."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.abc import AdaptContext
from psycopg.errors import InFailedSqlTransaction, error_from_result
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult

from ._blueprint import CLEAN
from ._cancelling import hang_up, request_cancel
from ._colour import Runner, acquire, cannot_wait, take, wait_for
from ._connector import PooledConnection
from ._cursor import shortened
from ._fetching import taking
from ._lending import Place, hear, lend, take_back
from ._pool import Pool
from ._prepared import DEALLOCATE
from .errors import GivenBackError

logger = logging.getLogger("pgmonkey")

_CLEAN = CLEAN.encode()
_DEALLOCATE = DEALLOCATE.encode()
# As plain numbers, which are compared sooner.
_IDLE, _INTRANS = int(TransactionStatus.IDLE), int(TransactionStatus.INTRANS)
_DONE, _FATAL = int(ExecStatus.COMMAND_OK), int(ExecStatus.FATAL_ERROR)
# Seconds to wait for the end of what was cancelled, until it is cancelled again (a request may come between two
# statements), for a ROLLBACK, and for one whose borrower was interrupted.  A server that takes longer is not waited
# for: it rolls back what it loses.
_CANCEL_TIMEOUT = 5.0
_CANCEL_AGAIN = 0.02
_ROLLBACK_TIMEOUT = 5.0
_INTERRUPTED_TIMEOUT = 0.75


class Lease:
    """A borrowed connection.  Whoever holds the lease calls `finish`; a lease that is merely dropped is abandoned."""

    lent: Connection[Any] | None = None
    """The psycopg connection, if anybody has asked for it."""
    pooled: PooledConnection | None = None
    """What is borrowed; None when it was given back."""

    def __init__(
        self, pool: Pool, pooled: PooledConnection, autocommit: bool, context: AdaptContext | None = None
    ) -> None:
        self.pool = pool
        self.refusal: psycopg.Error | None = None
        """What everything raises that is executed from now on."""
        self.row_factory: Any = None
        """How rows are made, if not as psycopg does."""
        self.in_unit = False
        """Whether it belongs to a unit of work, whose end alone commits."""
        self.pooled = pooled
        self._autocommit = autocommit
        self._context = context

    @property
    def connection(self) -> Connection[Any]:
        """The psycopg connection; unusable once the lease is finished."""
        return self.lent or self._lend()

    def _lend(self) -> Connection[Any]:
        pooled, plan = self.pooled, self.pool.plan
        if pooled is None:
            raise GivenBackError("the connection of this lease was given back to its pool; borrow another one")
        connection: Connection[Any] = lend(
            pooled.connection,
            autocommit=self._autocommit,
            prepare_threshold=plan.connect.get("prepare_threshold", 5),
            context=self._context,
        )
        state = connection.__dict__
        state["pooled"] = pooled
        state["shortened"] = shortened
        if self.row_factory is not None:
            state["row_factory"] = self.row_factory
        if self.in_unit:
            state["in_unit"] = True
        if self.refusal is not None:
            state["refusal"] = self.refusal
        if plan.settings.close_returns:
            state["close"] = self.finish
        # Another thread of the borrower may be doing the same at this moment, or be finishing the lease.
        connection = self.__dict__.setdefault("lent", connection)
        hear(connection)
        if self.pooled is None:
            take_back(connection)
        return connection

    def settle(self, pooled: PooledConnection) -> None:
        """Remember who keeps the connection, which was taken for a frame that is not to be held."""
        if pooled.frame is not None:
            pooled.lent_at = Place.above(pooled.frame, pooled.label, Runner.current())
            pooled.frame = None

    @property
    def active(self) -> bool:
        """Whether the connection is still the borrower's."""
        return self.pooled is not None

    @property
    def idle(self) -> bool:
        """Whether no transaction is open."""
        return self.pooled is not None and self.pooled.pgconn.transaction_status == _IDLE

    @property
    def borrower_has_ended(self) -> bool:
        """Whether the thread or task that borrowed the connection will never do anything again."""
        place = self.pooled.place if self.pooled is not None else None
        return place is not None and place.runner is not None and place.runner.ended

    def __str__(self) -> str:
        return "given back" if self.pooled is None else str(self.pooled)

    def finish(self, error: BaseException | None = None, *, clean: bool = True) -> None:
        """Commit, or roll back when there is an *error*; clean the session; give the connection back.

        Commit and cleaning travel together, in one round trip.  *clean* is False where the borrower knows that nothing
        was left in the session.  Raises what makes the COMMIT fail; the connection is given back all the same.  A
        second call does nothing.
        """
        pooled, self.pooled = self.pooled, None
        if pooled is None:
            return
        reset = self.pool.plan.settings.reset
        try:
            if pooled.pgconn.transaction_status == _IDLE and reset is None and not (clean and pooled.prepared.unclean):
                """Nothing was done, or it is finished."""
            elif error is None:
                self._commit(pooled, clean)
            elif cannot_wait(error):
                pooled.close()
            else:
                self._roll_back(pooled, clean, error)
            if reset is not None and pooled.pgconn.status == ConnStatus.OK:
                reset(pooled.connection)
        except psycopg.Error:
            raise
        except BaseException:
            pooled.close()  # cancelled or interrupted half-way: nobody knows what is left in the session
            raise
        finally:
            if self.lent is not None:
                take_back(self.lent)
            if self.pool.give_back(pooled) and not cannot_wait(error):
                self.pool.replenish()

    def cancel(self, error: psycopg.Error) -> None:
        """End what is running, on the server, and wait for its end; from now on each statement raises *error*.

        Whoever runs a statement gets `psycopg.errors.QueryCanceled`.  The lease stays the borrower's.
        """
        pooled = self.pooled
        if pooled is None:
            return
        self.refusal = error
        if self.lent is not None:
            self.lent.__dict__["refusal"] = error
        lock, pgconn = pooled.connection.lock, pooled.pgconn
        deadline = monotonic() + _CANCEL_TIMEOUT
        while not acquire(lock, _CANCEL_AGAIN):
            if monotonic() >= deadline:
                logger.warning("a statement could not be cancelled: the server did not answer")
                hang_up(pgconn)
                return
            if pgconn.transaction_status == TransactionStatus.ACTIVE:
                wait_for(request_cancel(pgconn), deadline - monotonic())
        lock.release()

    def abandon(self) -> None:
        """Close the connection, whatever it is doing, and give its place back.  Never waits."""
        pooled, self.pooled = self.pooled, None
        if pooled is not None:
            if self.lent is not None:
                take_back(self.lent)
            pooled.close()
            self.pool.give_back(pooled)

    def __del__(self) -> None:
        """Take back what a dead thread or a forgotten variable held."""
        pooled = self.pooled
        if pooled is not None:
            self.pooled = None
            if self.lent is not None:
                take_back(self.lent)
            self.pool.reclaim(pooled)

    def _commit(self, pooled: PooledConnection, clean: bool) -> None:
        status = pooled.pgconn.transaction_status
        if status == _INTRANS:
            self._send_commit(pooled, clean)
        elif status == TransactionStatus.INERROR:
            self._roll_back(pooled, clean)
            raise InFailedSqlTransaction(
                "nothing was committed: a statement of this transaction failed and its error was ignored"
            )
        elif status == TransactionStatus.ACTIVE:
            pooled.close()
            raise psycopg.OperationalError("nothing was committed: a statement was still running at the end")
        elif status == TransactionStatus.IDLE:
            self._roll_back(pooled, clean)
        elif (self.lent or pooled.connection).broken:
            raise psycopg.OperationalError("nothing was committed: the connection was lost")

    def _send_commit(self, pooled: PooledConnection, clean: bool) -> None:
        if clean and pooled.prepared.unclean:
            results = self._send(pooled, [b"COMMIT"], clean)
        else:
            results = self._exchange(pooled, b"COMMIT")
        if results[0].status != _DONE:
            self._roll_back(pooled, clean)
            raise error_from_result(results[0])
        if results[-1].status == _FATAL:
            pooled.close()  # committed, but not clean

    def _roll_back(self, pooled: PooledConnection, clean: bool, error: BaseException | None = None) -> None:
        status = pooled.pgconn.transaction_status
        open_transaction = status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)
        if status == TransactionStatus.ACTIVE:
            pooled.close()
        if status in (TransactionStatus.ACTIVE, TransactionStatus.UNKNOWN):
            return
        state = pooled.connection.__dict__
        usual = state["command_timeout"]
        patience = _ROLLBACK_TIMEOUT if error is None or isinstance(error, Exception) else _INTERRUPTED_TIMEOUT
        state["command_timeout"] = min(patience, usual or patience)
        try:
            results = self._send(pooled, [b"ROLLBACK"] if open_transaction else [], clean)
            if any(result.status == _FATAL for result in results):
                pooled.close()
        except psycopg.Error as failure:
            # The borrower is handling a more important error; the server rolls back what it loses.
            logger.debug("closing a connection that could not be rolled back: %s", failure)
            pooled.close()
        finally:
            state["command_timeout"] = usual

    def _send(self, pooled: PooledConnection, ending: list[bytes], clean: bool) -> list[PGresult]:
        """Send *ending* and what cleans the session in one message; return the results."""
        plan, prepared = self.pool.plan, pooled.prepared
        statements = list(ending)
        # Behind PgBouncer, only what is in one message with the end of a transaction reaches the session it was in,
        # and PgBouncer knows better than we what was prepared there.
        clean = clean and plan.settings.clean_on_return and prepared.unclean
        if clean and (ending or not plan.pgbouncer):
            statements.append(_CLEAN)
        # psycopg, too, prepares anew after a ROLLBACK: what it prepared may be gone.
        anew = ending == [b"ROLLBACK"]
        if plan.pgbouncer:
            if anew:
                prepared.clear()
        elif anew or (clean and prepared.to_deallocate):
            statements.append(_DEALLOCATE)
            prepared.forget()
        if not statements:
            return []
        results = self._exchange(pooled, b"; ".join(statements))
        if clean:
            prepared.cleaned()
        return results

    def _exchange(self, pooled: PooledConnection, message: bytes) -> list[PGresult]:
        connection: Any = pooled.connection
        lock = connection.lock
        if not take(lock):
            lock.acquire()
        try:
            pooled.pgconn.send_query(message)
            return pooled.watcher.fetch(connection.__dict__["command_timeout"])
        except BaseException as error:
            connection.after(error, taking(pooled.pgconn))
            raise
        finally:
            lock.release()
