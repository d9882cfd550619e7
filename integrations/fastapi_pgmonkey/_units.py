"""The units of work of a request in one database: one for coroutines, one for threads, ended together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg.pq import TransactionStatus

from ._types import RequestDatabases

if TYPE_CHECKING:
    from starlette.types import Scope

_WORKING = (TransactionStatus.IDLE, TransactionStatus.INTRANS)


class RefusedError(Exception):
    """Why a unit of work is rolled back although nothing was raised: its text says who refused."""


class RequestUnits:
    """The two units of work of a request in one database."""

    def __init__(self, databases: RequestDatabases, scope: Scope, on_borrow: Callable[[], None] | None) -> None:
        # Called only when the pool reports who holds its connections: most requests never need the text.
        def label() -> str:
            return _route_and_place(scope)

        self.cancellable = databases.cancel_on_disconnect
        self.decision: bool | None = None
        """Whether to commit whatever the status says; None where the status decides."""
        self._threads = databases.threads
        self._in_loop = databases.async_database.begin(label=label, on_borrow=on_borrow)
        self._in_threads = databases.sync_database.begin(label=label, on_borrow=on_borrow)

    @property
    def borrowed(self) -> bool:
        """Whether a connection was needed."""
        return self._in_loop.borrowed or self._in_threads.borrowed

    async def finish(self, error: BaseException | None) -> BaseException | None:
        """Commit both or roll both back, as was decided, or else as there is an *error*; raise what fails a COMMIT.

        Returns why something was rolled back.
        """
        if self.decision is not None:
            try:
                error = await self._reason(error)
            except BaseException as interruption:
                error = interruption
        rolled_back = error is not None and self.borrowed
        try:
            await self._in_loop.finish(error)
        except BaseException as failure:
            # What the threads did must not be committed without what the coroutines did.
            await self._threads.end(self._in_threads, self._in_threads.finish, failure)
            raise
        # Without a connection there is nothing to wait for, and no thread is needed.
        if self._in_threads.borrowed:
            await self._threads.end(self._in_threads, self._in_threads.finish, error)
        else:
            self._in_threads.finish(error)
        if error is not None and not isinstance(error, Exception):
            raise error
        return error if rolled_back else None

    async def _reason(self, error: BaseException | None) -> BaseException | None:
        """Return why to roll back, None where to commit."""
        if self.decision is None:
            return error
        if not self.decision:
            return error or RefusedError("rollback_request()")
        if error is None or isinstance(error, RefusedError):
            return None  # a transaction that failed is an error of the COMMIT
        return None if isinstance(error, Exception) and await self._can_be_kept() else error

    async def roll_back(self, error: Exception) -> bool:
        """Roll both back after *error*, unless they are to be kept; return whether there was anything to roll back.

        The next statement starts a new transaction.
        """
        if await self._reason(error) is None:
            return False
        if self.decision:
            self.decision = None  # what it would have kept is gone
        borrowed = self.borrowed
        if self._in_loop.borrowed:
            await self._in_loop.roll_back(error)
        if self._in_threads.borrowed:
            await self._threads.end(self._in_threads, self._in_threads.roll_back, error)
        return borrowed

    async def _can_be_kept(self) -> bool:
        """Return whether no statement has failed, and the connections are still there."""
        found = []
        if self._in_loop.borrowed:
            found.append((await self._in_loop.connection()).pgconn.transaction_status)
        if self._in_threads.borrowed:
            found.append(self._in_threads.connection().pgconn.transaction_status)
        return all(status in _WORKING for status in found)

    async def cancel(self, reason: str) -> None:
        """Cancel the running statement, roll both back, and refuse further statements."""
        await self._in_loop.cancel(reason)
        await self._threads.end(self._in_threads, self._in_threads.cancel, reason)


def route_of(scope: Scope) -> str:
    """Return the method and the route, never the path of the URL: that may contain personal data."""
    return f"{scope['method']} {getattr(scope.get('route'), 'path', None) or '(no route)'}"


def _route_and_place(scope: Scope) -> str:
    code = getattr(scope.get("endpoint"), "__code__", None)
    if code is None:
        return route_of(scope)
    return f"{route_of(scope)}, {_relative(code.co_filename)}:{code.co_firstlineno} ({code.co_name})"


def _relative(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
