"""The FastAPI integration: `PGMonkey`, with its lifespan and its dependencies."""

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Generic, Literal, TypedDict, cast, overload

import anyio
import anyio.to_thread
from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse
from psycopg import Error
from psycopg.rows import BaseRowFactory, Row, TupleRow
from starlette.requests import HTTPConnection

from pgmonkey import AsyncDatabase, Database, Deadline, Origin, PGConnectionManager, RequestDeadline

from ._compat import check
from ._dependencies import dependencies_of
from ._live import live_router
from ._middleware import install
from ._overload import RETRY_AFTER
from ._request import RequestState, current_request
from ._threads import Threads
from ._types import Transaction

Pools = Literal["async", "sync", "both"]
SessionValues = Callable[[HTTPConnection], Mapping[str, object] | None]


class Options(TypedDict):
    """How the configuration is read."""

    resolve_env: bool
    allow_sensitive_defaults: bool
    profile: str | None


logger = logging.getLogger("pgmonkey")

_READY_WITHIN = 2.0  # seconds: orchestrators give up on a probe after a few


class PGMonkey(Generic[Row]):
    """PostgreSQL in a FastAPI application.

    *config* is the path of a YAML file, a URL, or a mapping; *profile* chooses one of its ``profiles``.  *row_factory*
    is psycopg's; rows are tuples by default.

    With ``transaction="request"``, a request is one transaction, which starts with its first query.  It is committed
    before the response leaves if the status is below 400, and rolled back otherwise; a COMMIT that fails is an
    exception for the application's handlers.  With ``"statement"``, each statement is its own transaction
    (autocommit), and a connection from a dependency is committed when the endpoint returns.  Background tasks and
    streamed bodies, which run after the response has started, get separate connections.
    When a client disconnects before it is answered, its running statement is cancelled and its transaction rolled
    back, unless *cancel_on_disconnect* is False.

    *deadline* is how many seconds a request has until its response starts, *deadline_header* the name of a header in
    which a request may give itself less: what has not ended then is cancelled, and the answer is a 504, or what the
    application's handler of `pgmonkey.DeadlineExceededError` says.

    There is a pool for coroutines and one for threads; each is opened when it is first needed.  *open_at_start* names
    those that are opened when the application starts: ``"async"``, ``"sync"`` or ``"both"``.
    """

    @overload
    def __init__(
        self: "PGMonkey[TupleRow]",
        config: Origin,
        *,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        profile: str | None = None,
        row_factory: None = None,
        transaction: Transaction = "request",
        cancel_on_disconnect: bool = True,
        deadline: float | None = None,
        deadline_header: str | None = None,
        open_at_start: Pools | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        config: Origin,
        *,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        profile: str | None = None,
        row_factory: BaseRowFactory[Row],
        transaction: Transaction = "request",
        cancel_on_disconnect: bool = True,
        deadline: float | None = None,
        deadline_header: str | None = None,
        open_at_start: Pools | None = None,
    ) -> None: ...

    def __init__(
        self,
        config: Origin,
        *,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        profile: str | None = None,
        row_factory: BaseRowFactory[Row] | None = None,
        transaction: Transaction = "request",
        cancel_on_disconnect: bool = True,
        deadline: float | None = None,
        deadline_header: str | None = None,
        open_at_start: Pools | None = None,
    ) -> None:
        if transaction not in ("request", "statement"):
            raise ValueError(f"transaction: {transaction!r} is neither 'request' nor 'statement'")
        if open_at_start not in (None, "async", "sync", "both"):
            raise ValueError(f"open_at_start: {open_at_start!r} is neither 'async', 'sync' nor 'both'")
        # With None the rows are tuples, which the overloads have told type checkers already.
        factory = cast("BaseRowFactory[Row]", row_factory)
        self.async_database = AsyncDatabase(
            config,
            resolve_env=resolve_env,
            allow_sensitive_defaults=allow_sensitive_defaults,
            profile=profile,
            row_factory=factory,
        )
        """The database for coroutines outside endpoints: start-up, background tasks, scripts."""
        self.sync_database = Database(
            config,
            resolve_env=resolve_env,
            allow_sensitive_defaults=allow_sensitive_defaults,
            profile=profile,
            row_factory=factory,
        )
        """The database for threads.  In a ``def`` endpoint its query methods are part of the request's transaction."""
        self.async_database.framework = self.sync_database.framework = "fastapi"
        self.transaction: Transaction = transaction
        self.cancel_on_disconnect = cancel_on_disconnect
        self.deadlines: RequestDeadline | None = None
        """What gives each request its deadline."""
        if deadline is not None or deadline_header is not None:
            self.deadlines = RequestDeadline(deadline, deadline_header, "deadline")
            # Only now: most applications have none, and are not to be asked for it at each statement.
            self.async_database.deadline = self.sync_database.deadline = self._deadline_of_request
        self._config = config
        self._options: Options = {
            "resolve_env": resolve_env,
            "allow_sensitive_defaults": allow_sensitive_defaults,
            "profile": profile,
        }
        self._open_at_start = open_at_start
        self._session_values: SessionValues | None = None
        self.threads = Threads()
        """Two thread pools: one to wait for connections, one to commit."""
        own = dependencies_of(self)
        self.connection = own.connection
        """Dependency: the request's psycopg.AsyncConnection, for ``async def`` endpoints."""
        self.sync_connection = own.sync_connection
        """Dependency: the request's psycopg.Connection, for ``def`` endpoints."""
        self.database = own.database
        """Dependency: the AsyncDatabase, whose query methods are part of the request's transaction."""

    # -- the application ------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Connect when *app* starts and close when it ends: for ``FastAPI(lifespan=...)`` or your own lifespan.

        Raises `ServerUnavailableError` when no connection can be made, and RuntimeError for an unknown FastAPI.
        """
        self._install(app)
        try:
            if self._open_at_start is None:
                await self._try_connecting()
            if self._open_at_start in ("async", "both"):
                await self.async_database.connect()
            if self._open_at_start in ("sync", "both"):
                await anyio.to_thread.run_sync(self.sync_database.connect)
            yield
        finally:
            await self.async_database.close()
            self.sync_database.close()

    def init_app(self, app: FastAPI, *, readiness: str | None = None, liveness: str | None = None) -> None:
        """Set up *app*; its own lifespan runs inside `lifespan`.  Raises RuntimeError for an unknown FastAPI.

        *readiness* is the path of a route that answers 200 if the database answers, and 503 otherwise; *liveness* that
        of a route that answers 200 without querying the database.
        """
        self._install(app)
        if readiness is not None:
            app.add_api_route(readiness, self._ready, include_in_schema=False)
        if liveness is not None:
            app.add_api_route(liveness, _live, include_in_schema=False)
        own_lifespan = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, object]]:
            async with self.lifespan(app), own_lifespan(app) as state:
                yield cast("Mapping[str, object]", state)  # or None: Starlette's types allow one of the two

        app.router.lifespan_context = lifespan

    def live_router(self, require: Callable[..., object], *, path: str = "/pgmonkey") -> APIRouter:
        """Return a router with a page that shows the pools of all worker processes, as ``pgmonkey top`` does.

        *require* is a dependency that raises for whoever may not see it.  Pools are shown whose configuration says
        ``live_view: true``.
        """
        return live_router(require, path, lambda: {self.async_database.pool_name, self.sync_database.pool_name})

    def _install(self, app: FastAPI) -> None:
        check(app)
        install(app, self)

    async def _try_connecting(self) -> None:
        """Make a connection and close it: the first error is that of the start, and no pool is opened for it."""
        manager = PGConnectionManager()
        try:
            if isinstance(self._config, Mapping):
                await manager.get_database_connection_from_dict(self._config, "async", **self._options)
            else:
                await manager.get_database_connection(self._config, "async", **self._options)
        finally:
            manager.clear_cache()

    async def _ready(self) -> JSONResponse:
        try:
            await self._ping()
        except (Error, TimeoutError) as error:
            why = " ".join(str(error).split()) or f"the server did not answer within {_READY_WITHIN:.1f} s"
            logger.warning("not ready: %s", why)
            return JSONResponse({"status": "unavailable"}, 503, {"Retry-After": RETRY_AFTER})
        return JSONResponse({"status": "ready"})

    async def _ping(self) -> None:
        # By a pool that is open, so that a probe opens none that the application does not use.
        if self.async_database.stats():
            await self.async_database.ping(timeout=_READY_WITHIN)
        elif self.sync_database.stats():
            # Not in one of the threads that may all be waiting for the database.
            ping = partial(self.sync_database.ping, timeout=_READY_WITHIN)
            await anyio.to_thread.run_sync(ping, limiter=anyio.CapacityLimiter(1))
        else:
            with anyio.fail_after(_READY_WITHIN):
                await self._try_connecting()

    # -- the request ----------------------------------------------------------------------------------------------

    def rollback_request(self) -> None:
        """Roll back the transactions of the current request, whatever its status.

        The last call of this and `keep_request` wins.  Raises RuntimeError outside a request, and once its
        response has started.
        """
        _request().decide(keep=False)

    def keep_request(self) -> None:
        """Commit the transactions of the current request, even if its status is an error, or after an exception.

        A transaction in which a statement failed cannot be kept.  Raises the same errors as `rollback_request`.
        """
        _request().decide(keep=True)

    def session_values(self, function: SessionValues) -> SessionValues:
        """Set the configuration parameters that *function* returns in each transaction of a request; a decorator.

        It is called with the request or WebSocket before a transaction starts and before each query method in it.  The
        values last until the end of the transaction, also in streams and for single statements, as row-level security
        requires.
        """
        self._session_values = function
        # From now on: most applications have none, and are not to be asked for them at each statement.
        self.async_database.ask = self.sync_database.ask = self._values_of_request
        return function

    def _deadline_of_request(self) -> Deadline | None:
        request = current_request.get()
        return None if request is None else request.deadline(self)

    def _values_of_request(self) -> Mapping[str, object] | None:
        request = current_request.get()
        if self._session_values is None or request is None:
            return None
        return self._session_values(HTTPConnection(request.scope))


async def _live() -> JSONResponse:
    return JSONResponse({"status": "live"})


def _request() -> RequestState:
    request = current_request.get()
    if request is None:
        raise RuntimeError("there is no request: rollback_request() and keep_request() work only during one")
    return request
