"""A lease: one connection in the hands of one borrower, given back exactly once and clean."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.abc import AdaptContext
from psycopg.errors import InFailedSqlTransaction, error_from_result
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult

from ._blueprint import CLEAN
from ._cancelling import hang_up, request_cancel
from ._colour_async import acquire, cannot_wait, wait_for
from ._connector_async import AsyncPooledConnection
from ._cursor_async import AsyncPooledCursor
from ._fetching import taking
from ._lending import lend, take_back
from ._pool_async import AsyncPool
from ._prepared import DEALLOCATE

logger = logging.getLogger("pgmonkey")

_CLEAN = CLEAN.encode()
_DEALLOCATE = DEALLOCATE.encode()
# Seconds to wait for the end of what was cancelled, until it is cancelled again (a request may come between two
# statements), for a ROLLBACK, and for one whose borrower was interrupted.  A server that takes longer is not waited
# for: it rolls back what it loses.
_CANCEL_TIMEOUT = 5.0
_CANCEL_AGAIN = 0.02
_ROLLBACK_TIMEOUT = 5.0
_INTERRUPTED_TIMEOUT = 0.75


class AsyncLease:
    """A borrowed connection.  Whoever holds the lease calls `finish`; a lease that is merely dropped is abandoned."""

    def __init__(
        self, pool: AsyncPool, pooled: AsyncPooledConnection, autocommit: bool, context: AdaptContext | None = None
    ) -> None:
        self.connection: AsyncConnection[Any] = lend(
            pooled.connection,
            autocommit=autocommit,
            prepare_threshold=pool.plan.connect.get("prepare_threshold", 5),
            context=context,
        )
        """The psycopg connection; unusable once the lease is finished."""
        state = self.connection.__dict__
        state["pooled"] = pooled
        if state["cursor_factory"] is AsyncCursor:
            state["cursor_factory"] = AsyncPooledCursor
        self.pool = pool
        self._pooled: AsyncPooledConnection | None = pooled
        if pool.plan.settings.close_returns:
            state["close"] = self.finish

    @property
    def active(self) -> bool:
        """Whether the connection is still the borrower's."""
        return self._pooled is not None

    @property
    def pooled(self) -> AsyncPooledConnection | None:
        """What is borrowed; None when it was given back."""
        return self._pooled

    @property
    def borrower_has_ended(self) -> bool:
        """Whether the thread or task that borrowed the connection will never do anything again."""
        place = self._pooled.place if self._pooled is not None else None
        return place is not None and place.runner is not None and place.runner.ended

    def __str__(self) -> str:
        return "given back" if self._pooled is None else str(self._pooled)

    async def finish(self, error: BaseException | None = None, *, clean: bool = True) -> None:
        """Commit, or roll back when there is an *error*; clean the session; give the connection back.

        Commit and cleaning travel together, in one round trip.  *clean* is False where the borrower knows that nothing
        was left in the session.  Raises what makes the COMMIT fail; the connection is given back all the same.  A
        second call does nothing.
        """
        pooled, self._pooled = self._pooled, None
        if pooled is None:
            return
        try:
            if cannot_wait(error):
                pooled.close()
            elif error is None:
                await self._commit(pooled, clean)
            else:
                await self._roll_back(pooled, clean, error)
            if self.pool.plan.settings.reset is not None and pooled.connection.pgconn.status == ConnStatus.OK:
                await self.pool.plan.settings.reset(pooled.connection)
        except psycopg.Error:
            raise
        except BaseException:
            pooled.close()  # cancelled or interrupted half-way: nobody knows what is left in the session
            raise
        finally:
            take_back(self.connection)
            self.pool.give_back(pooled)
            if not cannot_wait(error):
                self.pool.replenish()

    async def cancel(self, error: psycopg.Error) -> None:
        """End what is running, on the server, and wait for its end; from now on each statement raises *error*.

        Whoever runs a statement gets `psycopg.errors.QueryCanceled`.  The lease stays the borrower's.
        """
        if self._pooled is None:
            return
        connection = self.connection
        connection.__dict__["refusal"] = error
        pgconn, deadline = connection.pgconn, monotonic() + _CANCEL_TIMEOUT
        while not await acquire(connection.lock, _CANCEL_AGAIN):
            if monotonic() >= deadline:
                logger.warning("a statement could not be cancelled: the server did not answer")
                hang_up(pgconn)
                return
            if pgconn.transaction_status == TransactionStatus.ACTIVE:
                await wait_for(request_cancel(pgconn), deadline - monotonic())
        connection.lock.release()

    def abandon(self) -> None:
        """Close the connection, whatever it is doing, and give its place back.  Never waits."""
        pooled, self._pooled = self._pooled, None
        if pooled is not None:
            take_back(self.connection)
            pooled.close()
            self.pool.give_back(pooled)

    def __del__(self) -> None:
        """Take back what a dead thread or a forgotten variable held."""
        pooled = getattr(self, "_pooled", None)
        if pooled is not None:
            take_back(self.connection)
            self.pool.reclaim(pooled)

    async def _commit(self, pooled: AsyncPooledConnection, clean: bool) -> None:
        status = pooled.connection.pgconn.transaction_status
        if status == TransactionStatus.INTRANS:
            await self._send_commit(pooled, clean)
        elif status == TransactionStatus.INERROR:
            await self._roll_back(pooled, clean)
            raise InFailedSqlTransaction(
                "nothing was committed: a statement of this transaction failed and its error was ignored"
            )
        elif status == TransactionStatus.ACTIVE:
            pooled.close()
            raise psycopg.OperationalError("nothing was committed: a statement was still running at the end")
        elif status == TransactionStatus.IDLE:
            await self._roll_back(pooled, clean)
        elif self.connection.broken:
            raise psycopg.OperationalError("nothing was committed: the connection was lost")

    async def _send_commit(self, pooled: AsyncPooledConnection, clean: bool) -> None:
        results = await self._send(pooled, [b"COMMIT"], clean)
        if results[0].status != ExecStatus.COMMAND_OK:
            await self._roll_back(pooled, clean)
            raise error_from_result(results[0])
        if any(result.status == ExecStatus.FATAL_ERROR for result in results):
            pooled.close()  # committed, but not clean

    async def _roll_back(self, pooled: AsyncPooledConnection, clean: bool, error: BaseException | None = None) -> None:
        status = pooled.connection.pgconn.transaction_status
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
            results = await self._send(pooled, [b"ROLLBACK"] if open_transaction else [], clean)
            if any(result.status == ExecStatus.FATAL_ERROR for result in results):
                pooled.close()
        except psycopg.Error as failure:
            # The borrower is handling a more important error; the server rolls back what it loses.
            logger.debug("closing a connection that could not be rolled back: %s", failure)
            pooled.close()
        finally:
            state["command_timeout"] = usual

    async def _send(self, pooled: AsyncPooledConnection, ending: list[bytes], clean: bool) -> list[PGresult]:
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
        connection: Any = pooled.connection
        async with connection.lock:
            try:
                pooled.pgconn.send_query(b"; ".join(statements))
                results = await pooled.watcher.fetch(connection.__dict__["command_timeout"])
            except BaseException as error:
                await connection.after(error, taking(pooled.pgconn))
                raise
        if clean:
            prepared.cleaned()
        return results
