"""What mypy and pyright see in a FastAPI application: never run, only checked."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from psycopg import AsyncConnection, Connection
from psycopg.rows import DictRow, TupleRow, dict_row
from starlette.requests import HTTPConnection
from typing_extensions import assert_type

from fastapi_pgmonkey import PGMonkey, RequestConnection, RequestDatabase, RequestSyncConnection, RequestSyncDatabase
from pgmonkey import AsyncDatabase, Database

db = PGMonkey("config.yaml", resolve_env=True)
dicts = PGMonkey({"connection_settings": {}}, row_factory=dict_row, cancel_on_disconnect=False, open_at_start="both")
app = FastAPI(lifespan=db.lifespan)
dicts.init_app(app, readiness="/ready", liveness="/live")

assert_type(db, PGMonkey[TupleRow])
assert_type(dicts, PGMonkey[DictRow])
assert_type(dicts.async_database, AsyncDatabase[DictRow])
assert_type(dicts.sync_database, Database[DictRow])
assert_type(db.connection, Callable[..., Awaitable[AsyncConnection[Any]]])
assert_type(db.sync_connection, Callable[..., Awaitable[Connection[Any]]])


@app.get("/plain")
async def plain(
    connection: Annotated[AsyncConnection, Depends(db.connection)],
    database: Annotated[AsyncDatabase[DictRow], Depends(dicts.database)],
) -> None:
    assert_type(connection, AsyncConnection[TupleRow])
    assert_type(await database.fetch_one("SELECT 1"), DictRow | None)


@app.get("/threads")
def threads(connection: Annotated[Connection, Depends(db.sync_connection)]) -> None:
    assert_type(connection, Connection[TupleRow])


@app.get("/aliases")
async def aliases(
    connection: RequestConnection, database: RequestDatabase, sync_connection: RequestSyncConnection
) -> None:
    assert_type(connection, AsyncConnection[Any])
    assert_type(database, AsyncDatabase[Any])
    assert_type(sync_connection, Connection[Any])


@app.get("/sync-alias")
def sync_alias(database: RequestSyncDatabase) -> None:
    assert_type(database, Database[Any])
    assert_type(db.keep_request(), None)


@db.session_values
def values(request: HTTPConnection) -> Mapping[str, object]:
    return {"app.tenant": request.headers["tenant"]}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, int]]:
    async with db.lifespan(app):
        yield {"answer": 42}


FastAPI(lifespan=lifespan)
PGMonkey("config.yaml", transaction="sometimes")  # type: ignore[call-overload]
