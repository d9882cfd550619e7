"""The FastAPI integration: `PGMonkey`, with its lifespan and its dependencies."""

import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Generic, cast, overload

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from psycopg import Error
from psycopg.rows import BaseRowFactory, Row, TupleRow
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection

from pgmonkey import AsyncDatabase, Database, PoolFullError, PoolTimeoutError

from ._compat import add_innermost, add_outermost, check, has_innermost, has_middleware, with_mounted
from ._dependencies import dependencies
from ._middleware import RollbackBeforeHandlers, TransactionMiddleware
from ._threads import Threads
from ._types import Transaction
from ._units import current_scope

Config = str | os.PathLike[str] | Mapping[str, object]
SessionValues = Callable[[HTTPConnection], Mapping[str, object] | None]

logger = logging.getLogger("pgmonkey")

_RETRY_AFTER = "1"  # seconds
_READY_WITHIN = 2.0  # seconds: orchestrators give up on a probe after a few


class PGMonkey(Generic[Row]):
    """PostgreSQL in a FastAPI application.

    *config* is the path of a YAML file, or a mapping.  *row_factory* is psycopg's; rows are tuples by default.

    With ``transaction="request"``, a request is one transaction, begun by its first query.  It is committed before the
    response leaves when the status is below 400, and rolled back otherwise; a COMMIT that fails is an exception for the
    application's own handlers.  With ``"statement"``, each statement is its own transaction (autocommit), and a
    connection from a dependency is committed when the endpoint returns.  What runs after the response has started, as
    background tasks and streamed bodies do, gets connections of its own.
    When a client disconnects before it is answered, its running statement is cancelled and its transaction rolled
    back, unless *cancel_on_disconnect* is False.
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
        row_factory: BaseRowFactory[Row] | None = None,
        transaction: Transaction = "request",
        cancel_on_disconnect: bool = True,
    ) -> None:
        if transaction not in ("request", "statement"):
            raise ValueError(f"transaction: {transaction!r} is neither 'request' nor 'statement'")
        # With None the rows are tuples, which the overloads have told type checkers already.
        factory = cast("BaseRowFactory[Row]", row_factory)
        self.async_database = AsyncDatabase(
            config,
            resolve_env=resolve_env,
            allow_sensitive_defaults=allow_sensitive_defaults,
            row_factory=factory,
            session_values=self._values_of_request,
        )
        """The database for coroutines outside endpoints: start-up, background tasks, scripts."""
        self.sync_database = Database(
            config,
            resolve_env=resolve_env,
            allow_sensitive_defaults=allow_sensitive_defaults,
            row_factory=factory,
            session_values=self._values_of_request,
        )
        """The database for threads.  In a ``def`` endpoint its query methods are part of the request's transaction."""
        self.transaction: Transaction = transaction
        self.cancel_on_disconnect = cancel_on_disconnect
        self._session_values: SessionValues | None = None
        self.threads = Threads()
        """The threads that wait for connections, and those that commit."""
        own = dependencies(lambda request: self)
        self.connection = own.connection
        """Dependency: the request's psycopg.AsyncConnection, for ``async def`` endpoints."""
        self.sync_connection = own.sync_connection
        """Dependency: the request's psycopg.Connection, for ``def`` endpoints."""
        self.database = own.database
        """Dependency: the AsyncDatabase, whose query methods are part of the request's transaction."""

    # -- the application ------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Connect when *app* starts, and close when it ends: for ``FastAPI(lifespan=...)``, or inside of your lifespan.

        Raises what psycopg raises when the server cannot be reached, and RuntimeError for an unknown FastAPI.
        """
        # Again after init_app(): applications may have been mounted since.
        self._install(app)
        # The synchronous pool opens with its first query, because many applications never use it.
        await self.async_database.connect()
        try:
            yield
        finally:
            await self.async_database.close()
            self.sync_database.close()

    def init_app(self, app: FastAPI, *, readiness: str | None = None) -> None:
        """Set *app* up; its own lifespan runs inside `lifespan`.  Raises RuntimeError for an unknown FastAPI.

        *readiness* is the path of a route that answers 200 when the database does, and 503 otherwise.
        """
        self._install(app)
        if readiness is not None:
            app.add_api_route(readiness, self._ready, include_in_schema=False)
        own_lifespan = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, object]]:
            async with self.lifespan(app), own_lifespan(app) as state:
                yield cast("Mapping[str, object]", state)  # or None: Starlette's types allow one of the two

        app.router.lifespan_context = lifespan

    def _install(self, app: FastAPI) -> None:
        # Mounted applications have exception handlers of their own.  All are checked before the first is changed, so
        # that a refused application stays as it was.
        applications = list(with_mounted(app))
        for each in applications:
            check(each)
        for each in applications:
            # Not where the application has a handler for it.
            for error in (PoolTimeoutError, PoolFullError):
                each.exception_handlers.setdefault(error, _answer_busy)
            if not has_innermost(each, RollbackBeforeHandlers):
                add_innermost(each, RollbackBeforeHandlers)
        if not has_middleware(app, "pgmonkey", self):
            # The outermost, because it must see the status that the client gets.
            add_outermost(app, Middleware(TransactionMiddleware, pgmonkey=self))

    async def _ready(self) -> JSONResponse:
        try:
            # A busy pool could keep the probe waiting for its whole timeout.
            with anyio.fail_after(_READY_WITHIN):
                await self.async_database.ping()
        except (Error, TimeoutError) as error:
            logger.warning("not ready: %s", error or f"no answer within {_READY_WITHIN:g} s")
            return JSONResponse({"status": "unavailable"}, 503, {"Retry-After": _RETRY_AFTER})
        return JSONResponse({"status": "ready"})

    # -- the request ----------------------------------------------------------------------------------------------

    def session_values(self, function: SessionValues) -> SessionValues:
        """Set the configuration parameters that *function* returns, in each transaction of a request: a decorator.

        It is called with the request, or the WebSocket, when a transaction begins.  The values hold until its end, also
        for streams and single statements; row-level security needs this.
        """
        self._session_values = function
        return function

    def _values_of_request(self) -> Mapping[str, object] | None:
        scope = current_scope.get()
        if self._session_values is None or scope is None:
            return None
        return self._session_values(HTTPConnection(scope))


async def _answer_busy(request: Request, error: Exception) -> JSONResponse:
    logger.warning("%s", error)
    return JSONResponse({"detail": "The database is busy, please try again."}, 503, {"Retry-After": _RETRY_AFTER})
