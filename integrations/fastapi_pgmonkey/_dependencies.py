"""What endpoints ask for with ``Depends``.

They are plain functions, because a ``yield`` costs more than a statement does.  What the middleware does not end, they
leave to FastAPI's stack for the scope "function", which ends before the response is sent.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Annotated, Any, NamedTuple, TypeVar

from fastapi import Depends
from psycopg import AsyncConnection, Connection
from starlette.requests import HTTPConnection

from pgmonkey import AsyncDatabase, AsyncUnitOfWork, Database

from ._compat import end_of_function, gives_to_plain_endpoint
from ._overrides import OVERRIDDEN_BY
from ._request import REQUEST, RequestState
from ._types import RequestDatabases
from ._units import is_answer

Value = TypeVar("Value")

# Applications annotate the rows that they expect; these fit all of them.
AnyAsyncConnection = AsyncConnection[Any]
AnyConnection = Connection[Any]
AnyAsyncDatabase = AsyncDatabase[Any]
AnyDatabase = Database[Any]


class Dependencies(NamedTuple):
    """The dependencies of one database."""

    connection: Callable[..., Awaitable[AnyAsyncConnection]]
    sync_connection: Callable[..., Awaitable[AnyConnection]]
    database: Callable[..., Awaitable[AnyAsyncDatabase]]
    sync_database: Callable[..., Awaitable[AnyDatabase]]


def dependencies_of(pgmonkey: RequestDatabases) -> Dependencies:
    """Return the dependencies of *pgmonkey*, which refuse applications that it is not set up on: nothing rolls back."""

    def find(request: HTTPConnection) -> RequestDatabases:
        state: RequestState | None = request.scope.get(REQUEST)
        if state is None or pgmonkey not in state.databases:
            raise _not_set_up("no PGMonkey" if state is None else "this PGMonkey is not the one that")
        return pgmonkey

    return _dependencies(find)


def _dependencies(find: Callable[[HTTPConnection], RequestDatabases]) -> Dependencies:
    """Return the dependencies of the `PGMonkey` that *find* returns for a request."""

    async def connection(request: HTTPConnection) -> AnyAsyncConnection:
        pgmonkey = find(request)
        _refuse_websockets(request)
        _refuse_plain_endpoints(request, connection, "RequestSyncConnection or Depends(db.sync_connection)")
        unit = await _joined_unit(pgmonkey, request)
        return await unit.connection()

    async def sync_connection(request: HTTPConnection) -> AnyConnection:
        pgmonkey = find(request)
        _refuse_websockets(request)
        unit = pgmonkey.sync_database.current_unit()
        if unit is not None:
            return await pgmonkey.threads.borrow(unit, pgmonkey.sync_database.timeout)
        return await _enter(request, pgmonkey.threads.connection(pgmonkey.sync_database))

    async def database(request: HTTPConnection) -> AnyAsyncDatabase:
        pgmonkey = find(request)
        _refuse_plain_endpoints(request, database, "RequestSyncDatabase, or db.sync_database itself,")
        found = pgmonkey.async_database
        # In a WebSocket, and with transaction="statement", each query or transaction() borrows for itself.
        no_unit = found.current_unit() is None
        if no_unit and request.scope["type"] != "websocket" and pgmonkey.transaction != "statement":
            await _joined_unit(pgmonkey, request)
        return found

    async def sync_database(request: HTTPConnection) -> AnyDatabase:
        return find(request).sync_database

    return Dependencies(connection, sync_connection, database, sync_database)


def _refuse_websockets(request: HTTPConnection) -> None:
    if request.scope["type"] == "websocket":
        raise RuntimeError(
            "a WebSocket would keep its connection for as long as it is open; depend on the database, and use "
            "'async with database.transaction() as connection:' for each message"
        )


def _refuse_plain_endpoints(request: HTTPConnection, dependency: object, cure: str) -> None:
    if gives_to_plain_endpoint(request.scope, dependency):
        raise RuntimeError(
            f"{request.scope['endpoint'].__qualname__}() is a def endpoint and cannot await what this dependency "
            f"provides: use {cure} there, or make it async def"
        )


async def _joined_unit(pgmonkey: RequestDatabases, request: HTTPConnection) -> AsyncUnitOfWork[object]:
    """Return the unit of work that the middleware opened, or else a new one that ends with the endpoint."""
    unit = pgmonkey.async_database.current_unit()
    if unit is not None:
        return unit
    return await _enter(request, pgmonkey.async_database.unit_of_work())


async def _enter(request: HTTPConnection, block: AbstractAsyncContextManager[Value]) -> Value:
    """Enter *block*, which is left when the endpoint returns, or raises what is an answer, or an error."""
    stack = end_of_function(request.scope)
    value = await block.__aenter__()

    async def leave(
        kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if is_answer(error):
            return await block.__aexit__(None, None, None)
        return await block.__aexit__(kind, error, traceback)

    stack.push_async_exit(leave)
    return value


def _only_database(request: HTTPConnection) -> RequestDatabases:
    state: RequestState | None = request.scope.get(REQUEST)
    databases = list(state.databases) if state is not None else []
    if len(databases) == 1:
        return databases[0]
    if databases:
        raise RuntimeError("this application has several databases; use Depends(db.connection) of the one you mean")
    raise _not_set_up("no PGMonkey")


def _not_set_up(what: str) -> RuntimeError:
    return RuntimeError(
        f"{what} is set up on this application; use FastAPI(lifespan=db.lifespan) or db.init_app(app), "
        "and run its lifespan"
    )


_of_only_database = _dependencies(_only_database)

RequestConnection = Annotated[AnyAsyncConnection, Depends(_of_only_database.connection)]
"""The request's connection, for ``async def`` endpoints of applications with one database."""
RequestSyncConnection = Annotated[AnyConnection, Depends(_of_only_database.sync_connection)]
"""The request's connection, for ``def`` endpoints of applications with one database."""
RequestDatabase = Annotated[AnyAsyncDatabase, Depends(_of_only_database.database)]
"""The `AsyncDatabase` of an application with one database; its query methods join the request's transaction."""
RequestSyncDatabase = Annotated[AnyDatabase, Depends(_of_only_database.sync_database)]
"""The same for ``def`` endpoints: the `Database`, whose query methods join the request's transaction."""

OVERRIDDEN_BY.update(
    {
        _of_only_database.connection: "connection",
        _of_only_database.sync_connection: "sync_connection",
        _of_only_database.database: "database",
        _of_only_database.sync_database: "sync_database",
    }
)
