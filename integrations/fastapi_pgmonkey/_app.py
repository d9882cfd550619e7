"""The FastAPI integration: a lifespan, dependencies, and the middleware that ties both to the response."""

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from psycopg import AsyncConnection, Connection
from psycopg.rows import AsyncRowFactory, RowFactory
from starlette.middleware import Middleware

from pgmonkey import AsyncDatabase, Database, PoolFullError, PoolTimeoutError, UnitOfWork

from ._middleware import TransactionMiddleware

_RETRY_AFTER = "1"
# Threads that wait for a connection are not the threads that run endpoints, and those that commit are not the threads
# that wait: else 40 requests that wait could keep the one that would give its connection back from running.
_THREADS = 40


class PGMonkey:
    """PostgreSQL in a FastAPI application.

    A request is one transaction on one connection, borrowed when it first needs one.  It is committed before the
    response leaves when the status is below 400, and rolled back otherwise; a COMMIT that fails is an exception for
    the application's own handlers.  Background tasks and streamed bodies run after that: they get connections of
    their own from the database's verbs.

    *config* is the path of a YAML file, or a mapping.  *row_factory* and *sync_row_factory* are psycopg's, for
    ``async def`` and ``def`` endpoints; rows are tuples by default.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | Mapping[str, Any],
        *,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        row_factory: AsyncRowFactory[Any] | None = None,
        sync_row_factory: RowFactory[Any] | None = None,
    ) -> None:
        options = {"resolve_env": resolve_env, "allow_sensitive_defaults": allow_sensitive_defaults}
        self._async = AsyncDatabase(config, row_factory=row_factory, **options)
        self._sync = Database(config, row_factory=sync_row_factory, **options)
        self._borrowing = anyio.CapacityLimiter(_THREADS)
        self._finishing = anyio.CapacityLimiter(_THREADS)
        self.connection = self._connection_dependency()
        """Dependency: the request's psycopg.AsyncConnection, for ``async def`` endpoints."""
        self.sync_connection = self._sync_connection_dependency()
        """Dependency: the request's psycopg.Connection, for ``def`` endpoints."""
        self.database = self._database_dependency()
        """Dependency: the AsyncDatabase, whose verbs are part of the request's transaction."""

    # -- the application ------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Connect when *app* starts, failing with the server's own words, and close when it ends.

        To be given to ``FastAPI(lifespan=...)``, or entered in a lifespan of one's own.
        """
        self._install(app)
        await self._async.connect()
        try:
            yield
        finally:
            await self._async.close()
            self._sync.close()

    def init_app(self, app: FastAPI) -> None:
        """Set *app* up, around the lifespan that it has already."""
        self._install(app)
        inner: Callable[[Any], AbstractAsyncContextManager[Any]] = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[Any]:
            async with self.lifespan(app), inner(app) as state:
                yield state

        app.router.lifespan_context = lifespan

    def _install(self, app: FastAPI) -> None:
        if any(middleware.kwargs.get("pgmonkey") is self for middleware in app.user_middleware):
            return
        # The outermost: it sees the status that the client gets.
        app.user_middleware.insert(0, Middleware(TransactionMiddleware, pgmonkey=self))
        for error in (PoolTimeoutError, PoolFullError):
            app.exception_handlers.setdefault(error, _busy)
        if app.middleware_stack is not None:  # the lifespan is running already
            app.middleware_stack = app.build_middleware_stack()

    # -- the request ----------------------------------------------------------------------------------------------

    def begin(self) -> "RequestUnits":
        """Open what the request does, asynchronously and in threads; nothing is borrowed yet."""
        return RequestUnits(self._async.begin(), self._sync.begin(), self.finish_in_thread)

    async def finish_in_thread(self, unit: UnitOfWork, error: BaseException | None) -> None:
        """Finish a synchronous unit of work without blocking the event loop, also when the request is cancelled."""
        if unit.borrowed:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(unit.finish, error, limiter=self._finishing)
        else:
            unit.finish(error)

    # FastAPI leaves dependencies of the "function" scope before the response is sent, and shows them what was raised.
    # It cannot tell them the status that was returned: that is the middleware's part.

    def _connection_dependency(self) -> Callable[..., Any]:
        async def request_connection() -> AsyncIterator[AsyncConnection[Any]]:
            async with _joined(self._async) as unit:
                yield await unit.connection()

        async def connection(
            connection: AsyncConnection[Any] = Depends(request_connection, scope="function"),  # noqa: B008
        ) -> AsyncConnection[Any]:
            return connection

        return connection

    def _database_dependency(self) -> Callable[..., Any]:
        async def request_database() -> AsyncIterator[AsyncDatabase]:
            async with _joined(self._async):
                yield self._async

        async def database(
            database: AsyncDatabase = Depends(request_database, scope="function"),  # noqa: B008
        ) -> AsyncDatabase:
            return database

        return database

    def _sync_connection_dependency(self) -> Callable[..., Any]:
        async def request_connection() -> AsyncIterator[Connection[Any]]:
            outer = self._sync.current_unit()
            unit = outer or self._sync.begin()
            try:
                yield await anyio.to_thread.run_sync(unit.connection, limiter=self._borrowing)
            except BaseException as error:
                await self.finish_in_thread(unit, error)
                raise
            if outer is None:
                await self.finish_in_thread(unit, None)

        async def sync_connection(
            connection: Connection[Any] = Depends(request_connection, scope="function"),  # noqa: B008
        ) -> Connection[Any]:
            return connection

        return sync_connection


@asynccontextmanager
async def _joined(database: AsyncDatabase) -> AsyncIterator[Any]:
    """Join the unit of work that the middleware opened, or open one where there is no middleware in front."""
    unit = database.current_unit()
    if unit is None:
        async with database.unit_of_work() as own:
            yield own
        return
    try:
        yield unit
    except BaseException as error:
        # At once, so that the application's error handlers find no broken transaction.
        await unit.finish(error)
        raise


class RequestUnits:
    """The two units of work of a request: the event loop's and the threads'."""

    def __init__(self, in_loop: Any, in_threads: UnitOfWork, finish_in_thread: Callable[..., Any]) -> None:
        self._in_loop = in_loop
        self._in_threads = in_threads
        self._finish_in_thread = finish_in_thread

    async def finish(self, error: BaseException | None) -> None:
        """Commit both, or roll both back when there is an *error*; raise what makes a COMMIT fail."""
        try:
            await self._in_loop.finish(error)
        except BaseException as failure:
            await self._finish_in_thread(self._in_threads, failure)
            raise
        await self._finish_in_thread(self._in_threads, error)


async def _busy(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(
        {"detail": "The database is busy, please try again."}, status_code=503, headers={"Retry-After": _RETRY_AFTER}
    )
