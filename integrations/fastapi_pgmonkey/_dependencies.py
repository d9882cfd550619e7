"""What endpoints ask for with ``Depends``.

FastAPI leaves dependencies of the "function" scope before the response is sent.  Those that need no end of their own,
because the middleware ends the request's transaction, are plain functions: each more costs more than a statement does.
"""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from fastapi import Depends
from psycopg import AsyncConnection, Connection
from starlette.requests import HTTPConnection

from pgmonkey import AsyncDatabase, AsyncUnitOfWork

from ._middleware import UNITS

if TYPE_CHECKING:
    from ._app import PGMonkey


class Dependencies(NamedTuple):
    """The dependencies of one database."""

    connection: Callable[..., Awaitable[AsyncConnection[Any]]]
    sync_connection: Callable[..., Awaitable[Connection[Any]]]
    database: Callable[..., Awaitable[AsyncDatabase[Any]]]


def dependencies(find: Callable[[HTTPConnection], "PGMonkey[Any]"]) -> Dependencies:
    """Return the dependencies of the `PGMonkey` that *find* returns for a request."""

    async def connection(request: HTTPConnection) -> AsyncConnection[Any]:
        pgmonkey = find(request)
        _refuse_websockets(request)
        unit = await _joined(pgmonkey, request)
        return await unit.connection()

    async def sync_connection(request: HTTPConnection) -> Connection[Any]:
        pgmonkey = find(request)
        _refuse_websockets(request)
        unit = pgmonkey.sync_database.current_unit()
        if unit is not None:
            return await pgmonkey.threads.borrow(unit, pgmonkey.sync_database.timeout)
        return await _end_of_function(request).enter_async_context(pgmonkey.borrowed_in_thread())

    async def database(request: HTTPConnection) -> AsyncDatabase[Any]:
        pgmonkey = find(request)
        its = pgmonkey.async_database
        if its.current_unit() is None and request.scope["type"] != "websocket" and pgmonkey.transaction != "statement":
            await _joined(pgmonkey, request)
        return its

    return Dependencies(connection, sync_connection, database)


def _refuse_websockets(request: HTTPConnection) -> None:
    if request.scope["type"] == "websocket":
        raise RuntimeError(
            "a WebSocket would keep its connection for as long as it is open; depend on the database, and use "
            "'async with database.transaction() as connection:' for each message"
        )


async def _joined(pgmonkey: "PGMonkey[Any]", request: HTTPConnection) -> AsyncUnitOfWork[Any]:
    """Return the unit of work that the middleware opened; where it opens none, one that ends with the endpoint."""
    unit = pgmonkey.async_database.current_unit()
    if unit is not None:
        return unit
    return await _end_of_function(request).enter_async_context(pgmonkey.async_database.unit_of_work())


def _end_of_function(request: HTTPConnection) -> AsyncExitStack:
    """Return what FastAPI leaves, as dependencies of the scope "function", when the endpoint has returned."""
    stack: AsyncExitStack = request.scope["fastapi_function_astack"]
    return stack


def _of_application(request: HTTPConnection) -> "PGMonkey[Any]":
    databases: list[PGMonkey[Any]] = list(request.scope.get(UNITS, ()))
    if len(databases) == 1:
        return databases[0]
    if databases:
        raise RuntimeError("this application has several databases; use Depends(db.connection) of the one you mean")
    raise RuntimeError(
        "no PGMonkey is set up on this application; use FastAPI(lifespan=db.lifespan) or db.init_app(app), "
        "and run its lifespan"
    )


_current = dependencies(_of_application)

RequestConnection = Annotated[AsyncConnection[Any], Depends(_current.connection)]
"""The request's connection, for ``async def`` endpoints of an application that has one database."""
RequestSyncConnection = Annotated[Connection[Any], Depends(_current.sync_connection)]
"""The request's connection, for ``def`` endpoints of an application that has one database."""
RequestDatabase = Annotated[AsyncDatabase[Any], Depends(_current.database)]
"""The database, its verbs part of the request's transaction, of an application that has one."""
