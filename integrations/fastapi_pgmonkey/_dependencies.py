"""What endpoints ask for with ``Depends``.

FastAPI leaves dependencies of the "function" scope before the response is sent; a plain callable that depends on one
may be used with a bare ``Depends(db.connection)``.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
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


def dependencies(find: Callable[..., Any]) -> Dependencies:
    """Return the dependencies of the `PGMonkey` that the dependency *find* returns."""

    async def request_connection(
        request: HTTPConnection,
        pgmonkey: Any = Depends(find),  # noqa: B008
    ) -> AsyncIterator[AsyncConnection[Any]]:
        _refuse_websockets(request)
        async with _joined(pgmonkey) as unit:
            yield await unit.connection()

    async def connection(
        connection: AsyncConnection[Any] = Depends(request_connection, scope="function"),  # noqa: B008
    ) -> AsyncConnection[Any]:
        return connection

    async def request_sync_connection(
        request: HTTPConnection,
        pgmonkey: Any = Depends(find),  # noqa: B008
    ) -> AsyncIterator[Connection[Any]]:
        _refuse_websockets(request)
        async with pgmonkey.borrowed_in_thread() as connection:
            yield connection

    async def sync_connection(
        connection: Connection[Any] = Depends(request_sync_connection, scope="function"),  # noqa: B008
    ) -> Connection[Any]:
        return connection

    async def request_database(
        request: HTTPConnection,
        pgmonkey: Any = Depends(find),  # noqa: B008
    ) -> AsyncIterator[AsyncDatabase[Any]]:
        if request.scope["type"] == "websocket" or pgmonkey.transaction == "statement":
            yield pgmonkey.async_database
            return
        async with _joined(pgmonkey):
            yield pgmonkey.async_database

    async def database(
        database: AsyncDatabase[Any] = Depends(request_database, scope="function"),  # noqa: B008
    ) -> AsyncDatabase[Any]:
        return database

    return Dependencies(connection, sync_connection, database)


def _refuse_websockets(request: HTTPConnection) -> None:
    if request.scope["type"] == "websocket":
        raise RuntimeError(
            "a WebSocket would keep its connection for as long as it is open; depend on the database, and use "
            "'async with database.transaction() as connection:' for each message"
        )


@asynccontextmanager
async def _joined(pgmonkey: "PGMonkey[Any]") -> AsyncIterator[AsyncUnitOfWork[Any]]:
    """Join the unit of work that the middleware opened, or open one where there is no middleware in front."""
    unit = pgmonkey.async_database.current_unit()
    if unit is not None:
        yield unit
        return
    async with pgmonkey.async_database.unit_of_work() as own:
        yield own


def _of_application(request: HTTPConnection) -> Any:
    databases = list(request.scope.get(UNITS, ()))
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
