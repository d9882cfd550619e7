# Generated from _lease_async.py by tools/twins.py: change that file, then run the tool.

"""A lease: one connection in the hands of one borrower, given back exactly once and clean."""

from __future__ import annotations

import logging
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.abc import AdaptContext
from psycopg.errors import InFailedSqlTransaction, error_from_result
from psycopg.generators import execute
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus

from ._blueprint import CLEAN
from ._colour import cannot_wait
from ._lending import lend, take_back
from ._pool import Pool, PooledConnection

logger = logging.getLogger("pgmonkey")

_CLEAN = CLEAN.encode()
_CANCEL_TIMEOUT = 5.0


class Lease:
    """A borrowed connection.  Whoever holds the lease calls `finish`; a lease that is merely dropped is abandoned."""

    def __init__(
        self, pool: Pool, pooled: PooledConnection, autocommit: bool, context: AdaptContext | None = None
    ) -> None:
        self.connection: Connection[Any] = lend(
            pooled.connection,
            autocommit=autocommit,
            prepare_threshold=pool.plan.connect.get("prepare_threshold", 5),
            context=context,
        )
        """The psycopg connection; unusable once the lease is finished."""
        self.pool = pool
        self._pooled: PooledConnection | None = pooled
        if pool.plan.settings.close_returns:
            self.connection.__dict__["close"] = self.finish

    @property
    def active(self) -> bool:
        """Whether the connection is still the borrower's."""
        return self._pooled is not None

    def finish(self, error: BaseException | None = None, *, clean: bool = True) -> None:
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
                self._commit(pooled, clean)
            else:
                self._roll_back(pooled, clean)
            if self.pool.plan.settings.reset is not None and pooled.connection.pgconn.status == ConnStatus.OK:
                self.pool.plan.settings.reset(pooled.connection)
        except psycopg.Error:
            raise
        except BaseException:
            pooled.close()  # cancelled or interrupted half-way: nobody knows what is left in the session
            raise
        finally:
            take_back(self.connection)
            self.pool.give_back(pooled)

    def cancel(self) -> None:
        """End the statement that is running, on the server, and wait for its end; the lease stays the borrower's.

        Whoever runs the statement gets `psycopg.errors.QueryCanceled`.
        """
        connection = self.connection
        if self._pooled is not None and connection.pgconn.transaction_status == TransactionStatus.ACTIVE:
            try:
                connection.cancel_safe(timeout=_CANCEL_TIMEOUT)
            except psycopg.Error as error:
                logger.warning("a statement could not be cancelled: %s", error)
            with connection.lock:
                """The statement has ended."""

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

    def _commit(self, pooled: PooledConnection, clean: bool) -> None:
        status = pooled.connection.pgconn.transaction_status
        if status == TransactionStatus.INTRANS:
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
        elif self.connection.broken:
            raise psycopg.OperationalError("nothing was committed: the connection was lost")

    def _send_commit(self, pooled: PooledConnection, clean: bool) -> None:
        connection, pgconn = pooled.connection, pooled.connection.pgconn
        with connection.lock:
            pgconn.send_query(b"COMMIT; " + _CLEAN if clean else b"COMMIT")
            results = connection.wait(execute(pgconn))
        if results[0].status != ExecStatus.COMMAND_OK:
            self._roll_back(pooled, clean)
            raise error_from_result(results[0])
        if any(result.status == ExecStatus.FATAL_ERROR for result in results):
            pooled.close()  # committed, but not clean

    def _roll_back(self, pooled: PooledConnection, clean: bool) -> None:
        status = pooled.connection.pgconn.transaction_status
        statements = [b"ROLLBACK"] if status in (TransactionStatus.INTRANS, TransactionStatus.INERROR) else []
        statements += [_CLEAN] if clean else []
        try:
            if status == TransactionStatus.ACTIVE:
                pooled.close()
            elif statements and status != TransactionStatus.UNKNOWN:
                # By way of psycopg's own, which forgets what it prepared when it sees a ROLLBACK.
                pooled.connection.execute(b"; ".join(statements), prepare=False)
        except psycopg.Error as error:
            # The borrower is handling a more important error; the server rolls back what it loses.
            logger.debug("closing a connection that could not be rolled back: %s", error)
            pooled.close()
