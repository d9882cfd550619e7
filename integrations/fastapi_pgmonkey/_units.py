"""The units of work of a request in one database: one for coroutines, one for threads, ended together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg import AsyncConnection, Connection
from psycopg.pq import TransactionStatus
from starlette.exceptions import HTTPException

from pgmonkey import AsyncUnitOfWork, UnitOfWork

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
    """The two units of work of a request in one database, each begun when it is first needed."""

    _in_loop: AsyncUnitOfWork[object] | None = None
    _in_threads: UnitOfWork[object] | None = None
    committed = False
    """Whether one of them was committed that had done something."""

    def __init__(self, databases: RequestDatabases, scope: Scope, on_borrow: Callable[[], None] | None) -> None:
        self._databases = databases
        self._scope = scope
        self._on_borrow = on_borrow

    def begin(self, database: object) -> AsyncUnitOfWork[object] | UnitOfWork[object] | None:
        """Return the unit of work in *database*, which is begun at the first call; None where it is another one."""
        databases = self._databases
        # Called only when the pool reports who holds its connections: most requests never need the text.
        label = partial(_route_and_place, self._scope)
        if database is databases.async_database:
            if self._in_loop is None:
                self._in_loop = databases.async_database.begin(label=label, on_borrow=self._on_borrow)
            return self._in_loop
        if database is databases.sync_database:
            if self._in_threads is None:
                unit = databases.sync_database.begin(label=label, on_borrow=self._on_borrow)
                vars(self).setdefault("_in_threads", unit)  # another thread of the request may have come first
            return self._in_threads
        return None

    @property
    def borrowed(self) -> bool:
        """Whether a connection was needed."""
        return any(unit.borrowed for unit in (self._in_loop, self._in_threads) if unit is not None)

    @property
    def statements(self) -> int:
        """How many statements were executed."""
        return sum(unit.statements for unit in (self._in_loop, self._in_threads) if unit is not None)

    async def can_commit(self) -> bool:
        """Return whether no statement has failed, and the connections are still there."""
        in_loop, in_threads = self._in_loop, self._in_threads
        if in_loop is not None and in_loop.borrowed and _failed(await in_loop.connection()):
            return False
        return in_threads is None or not (in_threads.borrowed and _failed(in_threads.connection()))

    async def finish(self, error: BaseException | None) -> None:
        """Commit both, or roll both back when there is an *error*; raise what makes a COMMIT fail.

        What cannot be committed comes first, and takes the other with it.
        """
        failure = error
        in_loop, in_threads = self._in_loop, self._in_threads
        # Without a connection there is nothing that can have failed.
        if in_threads is not None and in_threads.borrowed and error is None and _failed(in_threads.connection()):
            failure = await self._finish_in_threads(in_threads, None)
        if in_loop is not None:
            try:
                await in_loop.finish(failure)
                self.committed = failure is None and in_loop.borrowed
            except BaseException as reason:
                failure = failure or reason
        if in_threads is not None:
            failure = await self._finish_in_threads(in_threads, failure) or failure
            self.committed = self.committed or (failure is None and in_threads.borrowed)
        if failure is not error and failure is not None:
            raise failure

    async def _finish_in_threads(self, unit: UnitOfWork[object], error: BaseException | None) -> BaseException | None:
        try:
            await self._databases.threads.end(unit, unit.finish, error)
        except BaseException as failure:
            return failure
        return error

    async def roll_back(self, error: BaseException) -> None:
        """Roll both back; the next statement starts a new transaction."""
        in_loop, in_threads = self._in_loop, self._in_threads
        if in_loop is not None and in_loop.borrowed:
            await in_loop.roll_back(error)
        if in_threads is not None and in_threads.borrowed:
            await self._databases.threads.end(in_threads, in_threads.roll_back, error)

    async def cancel(self, reason: str) -> None:
        """Cancel the running statement, roll both back, and refuse further statements."""
        for database in (self._databases.async_database, self._databases.sync_database):
            self.begin(database)  # so that those that were not used refuse, too
        if self._in_loop is not None:
            await self._in_loop.cancel(reason)
        if self._in_threads is not None:
            await self._databases.threads.end(self._in_threads, self._in_threads.cancel, reason)


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
