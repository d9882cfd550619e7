"""The FastAPI integration: a lifespan, dependencies, and the middleware that ties both to the response."""

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, Literal, overload

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from psycopg import Connection, Error
from psycopg.rows import BaseRowFactory, Row, TupleRow
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.routing import Mount

from pgmonkey import AsyncDatabase, Database, PoolFullError, PoolTimeoutError

from ._dependencies import dependencies
from ._middleware import RollBackFirst, TransactionMiddleware
from ._requests import current
from ._threads import Threads

Config = str | os.PathLike[str] | Mapping[str, Any]
SessionValues = Callable[[HTTPConnection], Mapping[str, object] | None]
Transaction = Literal["request", "statement"]

logger = logging.getLogger("pgmonkey")

_RETRY_AFTER = "1"
_READY_WITHIN = 2.0


class PGMonkey(Generic[Row]):
    """PostgreSQL in a FastAPI application.

    With ``transaction="request"``, a request is one transaction on one connection, borrowed when it first needs one.
    It is committed before the response leaves when the status is below 400, and rolled back otherwise; a COMMIT that
    fails is an exception for the application's own handlers.  With ``"statement"`` each statement stands for itself,
    and a connection that is depended on is committed when the endpoint returns.  Background tasks and streamed bodies
    run after that: they get connections of their own from the database's verbs.

    A client that leaves before it is answered has its running statement cancelled and its transaction rolled back,
    unless *cancel_on_disconnect* is False.

    *config* is the path of a YAML file, or a mapping.  *row_factory* is psycopg's; rows are tuples by default.
    """

    @overload
    def __init__(
        self: "PGMonkey[TupleRow]",
        config: Config,
        *,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        row_factory: None = None,
        transaction: Transaction = "request",
        cancel_on_disconnect: bool = True,
    ) -> None: ...

    @overload
    def __init__(
        self,
        config: Config,
        *,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        row_factory: BaseRowFactory[Row],
        transaction: Transaction = "request",
        cancel_on_disconnect: bool = True,
    ) -> None: ...

    def __init__(
        self,
        config: Config,
        *,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        row_factory: BaseRowFactory[Any] | None = None,
        transaction: Transaction = "request",
        cancel_on_disconnect: bool = True,
    ) -> None:
        if transaction not in ("request", "statement"):
            raise ValueError(f"transaction: {transaction!r} is neither 'request' nor 'statement'")
        options: dict[str, Any] = {
            "resolve_env": resolve_env,
            "allow_sensitive_defaults": allow_sensitive_defaults,
            "row_factory": row_factory,
            "session_values": self._values_now,
        }
        async_database: AsyncDatabase[Any] = AsyncDatabase(config, **options)
        self.async_database: AsyncDatabase[Row] = async_database
        """The database itself, for coroutines outside endpoints: start-up, background tasks, scripts."""
        sync_database: Database[Any] = Database(config, **options)
        self.sync_database: Database[Row] = sync_database
        """The database itself, for threads: in a ``def`` endpoint its verbs are part of the request's transaction."""
        self.transaction = transaction
        self.cancel_on_disconnect = cancel_on_disconnect
        self._session_values: SessionValues | None = None
        self.threads = Threads()
        """The threads that wait for connections, and those that commit."""
        mine = dependencies(lambda request: self)
        self.connection = mine.connection
        """Dependency: the request's psycopg.AsyncConnection, for ``async def`` endpoints."""
        self.sync_connection = mine.sync_connection
        """Dependency: the request's psycopg.Connection, for ``def`` endpoints."""
        self.database = mine.database
        """Dependency: the AsyncDatabase, whose verbs are part of the request's transaction."""

    # -- the application ------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Connect when *app* starts, failing with the server's own words, and close when it ends.

        To be given to ``FastAPI(lifespan=...)``, or entered in a lifespan of one's own.
        """
        self._install(app)
        await self.async_database.connect()
        try:
            yield
        finally:
            await self.async_database.close()
            self.sync_database.close()

    def init_app(self, app: FastAPI, *, readiness: str | None = None) -> None:
        """Set *app* up, around the lifespan that it has already.

        *readiness* is the path of a route that answers 200 when the database does, and 503 otherwise.
        """
        self._install(app)
        if readiness is not None:
            app.add_api_route(readiness, self._ready, include_in_schema=False)
        inner: Callable[[Any], AbstractAsyncContextManager[Any]] = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[Any]:
            async with self.lifespan(app), inner(app) as state:
                yield state

        app.router.lifespan_context = lifespan

    def _install(self, app: FastAPI) -> None:
        for each in _with_mounted(app):
            for error in (PoolTimeoutError, PoolFullError):
                each.exception_handlers.setdefault(error, _busy)
            if not isinstance(each.router.middleware_stack, RollBackFirst):
                each.router.middleware_stack = RollBackFirst(each.router.middleware_stack)
        if not any(middleware.kwargs.get("pgmonkey") is self for middleware in app.user_middleware):
            # The outermost: it sees the status that the client gets.
            app.user_middleware.insert(0, Middleware(TransactionMiddleware, pgmonkey=self))
            if app.middleware_stack is not None:  # the lifespan is running already
                app.middleware_stack = app.build_middleware_stack()

    async def _ready(self) -> JSONResponse:
        try:
            with anyio.fail_after(_READY_WITHIN):
                await self.async_database.ping()
        except (Error, TimeoutError) as error:
            logger.warning("not ready: %s", error or f"no answer within {_READY_WITHIN:g} s")
            return JSONResponse({"status": "unavailable"}, 503, {"Retry-After": _RETRY_AFTER})
        return JSONResponse({"status": "ready"})

    # -- the request ----------------------------------------------------------------------------------------------

    def session_values(self, function: SessionValues) -> SessionValues:
        """Let *function* say which configuration parameters each transaction of a request gets: a decorator.

        It is called with the request, or the WebSocket, when a transaction of it begins.  The values hold until the
        end of the transaction, also of those of streams and single statements: what row-level security needs.
        """
        self._session_values = function
        return function

    def _values_now(self) -> Mapping[str, object] | None:
        scope = current.get()
        if self._session_values is None or scope is None:
            return None
        return self._session_values(HTTPConnection(scope))

    @asynccontextmanager
    async def borrowed_in_thread(self) -> AsyncIterator[Connection[Row]]:
        """Lend the connection of a unit of work of its own, waiting for it in none of the endpoints' threads."""
        database = self.sync_database
        unit = database.begin()
        try:
            yield await self.threads.borrow(unit, database.timeout)
        except BaseException as error:
            await self.threads.end(unit, unit.finish, error)
            raise
        await self.threads.end(unit, unit.finish, None)


def _with_mounted(app: Starlette) -> Iterator[Starlette]:
    yield app
    for route in app.routes:
        if isinstance(route, Mount) and isinstance(route.app, Starlette):
            yield from _with_mounted(route.app)


async def _busy(request: Request, error: Exception) -> JSONResponse:
    logger.warning("%s", error)
    return JSONResponse({"detail": "The database is busy, please try again."}, 503, {"Retry-After": _RETRY_AFTER})
