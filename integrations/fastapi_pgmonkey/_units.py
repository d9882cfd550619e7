"""The units of work of a request in one database: one for coroutines, one for threads, ended together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg import AsyncConnection, Connection
from psycopg.pq import TransactionStatus
from starlette.exceptions import HTTPException

from ._types import RequestDatabases

if TYPE_CHECKING:
    from starlette.types import Scope

AnyConnection = AsyncConnection[object] | Connection[object]

_WORKING = (TransactionStatus.IDLE, TransactionStatus.INTRANS)


class RefusedError(Exception):
    """Why a unit of work is rolled back although nothing was raised: its text says who refused."""


def is_answer(error: BaseException | None) -> bool:
    """Return whether *error* is one of the framework's own, whose status commits."""
    return isinstance(error, HTTPException) and error.status_code < 400


class RequestUnits:
    """The two units of work of a request in one database."""

    def __init__(self, databases: RequestDatabases, scope: Scope, on_borrow: Callable[[], None] | None) -> None:
        # Called only when the pool reports who holds its connections: most requests never need the text.
        def label() -> str:
            return _route_and_place(scope)

        self.committed = False
        """Whether one of them was committed that had done something."""
        self._threads = databases.threads
        # The one that is ended first comes last.
        self._in_threads = databases.sync_database.begin(label=label, on_borrow=on_borrow)
        self._in_loop = databases.async_database.begin(label=label, on_borrow=on_borrow)

    @property
    def borrowed(self) -> bool:
        """Whether a connection was needed."""
        return self._in_loop.borrowed or self._in_threads.borrowed

    @property
    def statements(self) -> int:
        """How many statements were executed."""
        return self._in_loop.statements + self._in_threads.statements

    async def can_commit(self) -> bool:
        """Return whether no statement has failed, and the connections are still there."""
        if self._in_loop.borrowed and _failed(await self._in_loop.connection()):
            return False
        return not (self._in_threads.borrowed and _failed(self._in_threads.connection()))

    async def finish(self, error: BaseException | None) -> None:
        """Commit both, or roll both back when there is an *error*; raise what makes a COMMIT fail.

        What cannot be committed comes first, and takes the other with it.
        """
        failure = error
        # Without a connection there is nothing to wait for, and no thread is needed.
        in_threads = self._in_threads.borrowed
        if in_threads and error is None and _failed(self._in_threads.connection()):
            failure = await self._finish_in_threads(None)
        try:
            await self._in_loop.finish(failure)
            self.committed = failure is None and self._in_loop.borrowed
        except BaseException as reason:
            failure = failure or reason
        if in_threads:
            failure = await self._finish_in_threads(failure) or failure
            self.committed = self.committed or failure is None
        else:
            self._in_threads.finish(failure)
        if failure is not error and failure is not None:
            raise failure

    async def _finish_in_threads(self, error: BaseException | None) -> BaseException | None:
        try:
            await self._threads.end(self._in_threads, self._in_threads.finish, error)
        except BaseException as failure:
            return failure
        return error

    async def roll_back(self, error: BaseException) -> None:
        """Roll both back; the next statement starts a new transaction."""
        if self._in_loop.borrowed:
            await self._in_loop.roll_back(error)
        if self._in_threads.borrowed:
            await self._threads.end(self._in_threads, self._in_threads.roll_back, error)

    async def cancel(self, reason: str) -> None:
        """Cancel the running statement, roll both back, and refuse further statements."""
        await self._in_loop.cancel(reason)
        await self._threads.end(self._in_threads, self._in_threads.cancel, reason)


def _failed(connection: AnyConnection) -> bool:
    return connection.pgconn.transaction_status not in _WORKING


def route_of(scope: Scope) -> str:
    """Return the method and the route, never the path of the URL: that may contain personal data."""
    return f"{scope['method']} {getattr(scope.get('route'), 'path', None) or '(no route)'}"


def _route_and_place(scope: Scope) -> str:
    code = getattr(scope.get("endpoint"), "__code__", None)
    if code is None:
        return route_of(scope)
    return f"{route_of(scope)}, {_relative(code.co_filename)}:{code.co_firstlineno} ({code.co_name})"


def _relative(file: str) -> str:
    with suppress(OSError, ValueError):  # the working directory is gone, or the file is elsewhere
        return str(Path(file).relative_to(Path.cwd()))
    return file
