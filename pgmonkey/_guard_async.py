"""What a pooled connection does differently from psycopg's own while it waits for the server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import copy_context
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncTransaction, ConnectionInfo, pq
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, TransactionStatus

from ._cancelling import request_cancel
from ._colour_async import INTERRUPTS, Lock, wait_for
from ._fetching import taking
from ._limits import INTERVAL, Waits, connecting_until, limited_connecting
from ._prepared import Prepared
from ._watcher_async import Watcher
from .errors import CommandTimeoutError

T = TypeVar("T")

# Seconds that an interrupted borrower waits for the end of its statement; then the connection is closed, not kept.
_PATIENCE = 0.75


OnError = Callable[[psycopg.Error, pq.abc.PGconn], None]


class AsyncGuard:
    """Mixed into psycopg's connection class by the pool: a wait for the server ends in time, whatever happens.

    A statement that takes longer than ``command_timeout`` is cancelled and its connection closed; so is one whose
    borrower is interrupted, unless the server ends it at once.  The pool is told of every error.
    """

    pgconn: pq.abc.PGconn
    closed: bool
    lock: Lock
    _closed: bool
    _notice_handlers: list[Any]
    _notify_handlers: list[Any]
    _start_query: Callable[[], Waits[None]]
    _autocommit: bool
    _pipeline: Any
    _num_transactions: int
    _tpc: Any
    info: ConnectionInfo

    async def wait(self, gen: Waits[T], interval: float | None = None, **options: Any) -> T:
        """Run one of psycopg's generators to its end."""
        state = self.__dict__
        if "refusal" in state:
            raise state["refusal"]
        watcher: Watcher = state.get("watcher") or self.own_watcher()
        limit: float | None = state.get("command_timeout")
        prepared = state["_prepared"]
        if prepared.__class__ is Prepared:  # not while it connects
            prepared.expect(getattr(gen, "__name__", ""))
        try:
            if interval is not None or options:
                options.update({} if interval is None else {"interval": interval})
                result: T = await watcher.run_as_psycopg(gen, limit, **options)
            else:
                handlers = self._notice_handlers or self._notify_handlers
                result = await watcher.run(gen, limit, copy_context() if handlers else None)
        except BaseException as error:
            await self.after(error, gen)
            raise
        return result

    async def after(self, error: BaseException, gen: Waits[Any]) -> None:
        """Do what is to be done after *error* has ended the wait for *gen*."""
        pgconn, state = self.pgconn, self.__dict__
        if isinstance(error, psycopg.Error):
            if isinstance(error, CommandTimeoutError):
                request_cancel(pgconn)
                self.own_watcher().finish()
            reference: Callable[[], OnError | None] | None = state.get("on_error")
            on_error = reference and reference()
            if on_error is not None:
                on_error(error, pgconn)
        elif isinstance(error, INTERRUPTS) and pgconn.transaction_status == TransactionStatus.ACTIVE:
            await _stop(gen, pgconn, self.own_watcher())

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        """Return what psycopg returns, but of the class that takes the short way."""
        cursor: Any = super().cursor(*arguments, **options)  # type: ignore[misc]
        shortened: Callable[[type], type] | None = self.__dict__.get("shortened")
        if shortened is not None:
            cursor.__class__ = shortened(cursor.__class__)
        return cursor

    async def set_autocommit(self, value: bool) -> None:
        """Do as psycopg does, which waits for nothing but the end of what is running."""
        async with self.lock:
            if self.pgconn.transaction_status == TransactionStatus.IDLE and self._pipeline is None:
                self._autocommit = bool(value)
                return
        await super().set_autocommit(value)  # type: ignore[misc]

    async def commit(self) -> None:
        """Do as psycopg does, in a shorter way where nothing unusual is going on."""
        state = self.__dict__
        async with self.lock:
            pgconn = self.pgconn
            in_transaction = pgconn.transaction_status == TransactionStatus.INTRANS
            if in_transaction and not (self._num_transactions or self._tpc or self._pipeline or "refusal" in state):
                try:
                    pgconn.send_query(b"COMMIT")
                    result = (await self.own_watcher().fetch(state.get("command_timeout")))[0]
                    if result.status != ExecStatus.COMMAND_OK:
                        raise error_from_result(result, encoding=self.info.encoding)
                except BaseException as error:
                    await self.after(error, taking(pgconn))
                    raise
                return
        await super().commit()  # type: ignore[misc]

    async def close(self) -> None:
        """Close the connection."""
        if not self.closed:
            self._closed = True
            self.own_watcher().finish()

    def transaction(self, savepoint_name: str | None = None, force_rollback: bool = False) -> Any:
        """Do as psycopg does; in a unit of work, whose end alone commits, open a savepoint."""
        usual: Any = super().transaction(savepoint_name, force_rollback)  # type: ignore[misc]
        return self._savepoint(usual) if "in_unit" in self.__dict__ else usual

    @asynccontextmanager
    async def _savepoint(self, usual: AbstractAsyncContextManager[AsyncTransaction]) -> AsyncIterator[AsyncTransaction]:
        # Where nothing was done yet, psycopg would begin, and so commit, the whole.
        async with self.lock:
            await self.wait(self._start_query())
        async with usual as transaction:
            yield transaction

    def own_watcher(self) -> Watcher:
        """Return what waits for this connection's answers."""
        state = self.__dict__
        watcher: Watcher | None = state.get("watcher")
        if watcher is None:
            watcher = state["watcher"] = Watcher(self.pgconn)
        return watcher

    @classmethod
    def _connect_gen(cls, *arguments: Any, **options: Any) -> Any:
        connecting: Any = super()._connect_gen(*arguments, **options)  # type: ignore[misc]
        deadline = connecting_until.get()
        return connecting if deadline is None else limited_connecting(connecting, deadline)


async def _stop(gen: Waits[Any], pgconn: pq.abc.PGconn, watcher: Watcher) -> None:
    """End the statement that *gen* waits for; close the connection when that cannot be done at once."""
    deadline = monotonic() + _PATIENCE
    cancelled = request_cancel(pgconn)
    try:
        try:
            await watcher.run_as_psycopg(gen, _PATIENCE, interval=INTERVAL / 2)
        except psycopg.errors.QueryCanceled:
            """As was to be expected."""
        await wait_for(cancelled, deadline - monotonic())
        if not cancelled.done():
            watcher.finish()
    except psycopg.Error:
        watcher.finish()
    except BaseException:  # interrupted again
        watcher.finish()
        raise
