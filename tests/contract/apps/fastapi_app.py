"""The contract's endpoints on FastAPI, half of them ``async def`` and half ``def``."""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from typing import Annotated, Any

import psycopg
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse
from psycopg import AsyncConnection, Connection
from ways import async_way, way

from fastapi_pgmonkey import PGMonkey
from pgmonkey import AsyncDatabase, PGConnectionManager

db = PGMonkey(os.environ["CONTRACT_CONFIG"], deadline_header=os.environ.get("CONTRACT_DEADLINE_HEADER"))
app = FastAPI()
db.init_app(app, readiness="/health/ready", liveness="/health/live")

Async = Annotated[AsyncConnection[Any], Depends(db.connection)]
Sync = Annotated[Connection[Any], Depends(db.sync_connection)]
Database = Annotated[AsyncDatabase, Depends(db.database)]

INSERT = "INSERT INTO t VALUES (%s)"


@app.exception_handler(psycopg.errors.UniqueViolation)
async def handled(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"handled": True}, 409)


@app.get("/nothing")
async def nothing(database: Database) -> dict[str, Any]:
    return {}


@app.get("/stats")
async def stats(database: Database) -> dict[str, int]:
    return {
        name: database.stats().get(name, 0) + db.sync_database.stats().get(name, 0)
        for name in ("requests_num", "pool_size", "pool_available", "requests_waiting")
    }


@app.post("/write")
async def write(a: int, status: int, connection: Async) -> JSONResponse:
    await connection.execute(INSERT, [a])
    return JSONResponse({}, status)


@app.post("/redirect")
def redirected(a: int, connection: Sync) -> RedirectResponse:
    connection.execute(INSERT, [a])
    return RedirectResponse("/nothing", 302)


@app.post("/refuse")
def refuse(a: int, status: int, connection: Sync) -> None:
    connection.execute(INSERT, [a])
    raise HTTPException(status)


@app.post("/crash")
async def crash(a: int, database: Database) -> None:
    await database.execute(INSERT, [a])
    raise RuntimeError("crashed")


@app.post("/deferred", status_code=201)
async def deferred(a: int, connection: Async, database: Database) -> dict[str, Any]:
    await connection.execute(INSERT, [a])
    await database.execute(INSERT, [a])
    return {}


@app.post("/late", status_code=201)
def late(a: int, connection: Sync) -> dict[str, Any]:
    connection.execute("INSERT INTO late VALUES (%s)", [a])
    return {}


@app.post("/doomed", status_code=201)
async def doomed(a: int, connection: Async) -> dict[str, Any]:
    await connection.execute("INSERT INTO doomed VALUES (%s)", [a])
    return {}


@app.post("/block")
async def block(a: int, status: int, connection: Async) -> JSONResponse:
    async with connection.transaction():
        await connection.execute(INSERT, [a])
    return JSONResponse({}, status)


@app.get("/slow")
async def slow(a: int, sleep: float, connection: Async) -> dict[str, Any]:
    await connection.execute(INSERT, [a])
    await connection.execute("SELECT pg_sleep(%s)", [sleep])
    return {}


@app.get("/slow-sync")
def slow_sync(a: int, sleep: float, connection: Sync) -> dict[str, Any]:
    connection.execute(INSERT, [a])
    connection.execute("SELECT pg_sleep(%s)", [sleep])
    return {}


@app.get("/stream")
async def stream(rows: int, database: Database, sleep: float = 0) -> StreamingResponse:
    stream = database.stream("SELECT repeat('x', 1023), pg_sleep(%s) FROM generate_series(1, %s)", [sleep, rows])
    return StreamingResponse(f"{text}\n" async for text, _ in stream)


@app.post("/way")
async def by_way(name: str, a: int, sleep: float, status: int, database: Database) -> JSONResponse:
    await async_way(database, name)(a, sleep)
    return JSONResponse({}, status)


@app.post("/way-sync")
def by_way_sync(name: str, a: int, sleep: float, status: int) -> JSONResponse:
    way(db.sync_database, name)(a, sleep)
    return JSONResponse({}, status)


@app.post("/refused", status_code=201)
async def refused(name: str, a: int, caught: str, database: Database) -> dict[str, Any]:
    await database.execute(INSERT, [a])
    try:
        await async_way(database, name)()
    except psycopg.Error:
        if caught == "no":
            raise
    return {}


@app.post("/refused-sync", status_code=201)
def refused_sync(name: str, a: int, caught: str) -> dict[str, Any]:
    db.sync_database.execute(INSERT, [a])
    try:
        way(db.sync_database, name)()
    except psycopg.Error:
        if caught == "no":
            raise
    return {}


@app.post("/ignored", status_code=201)
async def ignored(a: int, connection: Async) -> dict[str, Any]:
    await connection.execute(INSERT, [a])
    with contextlib.suppress(psycopg.Error):
        await connection.execute("SELECT * FROM missing")
    return {}


@app.get("/own")
async def own(who: str, sleep: float, connection: Async, database: Database) -> dict[str, Any]:
    await connection.execute("SELECT set_config('contract.who', %s, true)", [who])
    await asyncio.sleep(sleep)
    who = await database.fetch_value("SELECT current_setting('contract.who', true)")
    return {"who": who, "pids": [connection.info.backend_pid, await database.fetch_value("SELECT pg_backend_pid()")]}


@app.get("/own-sync")
def own_sync(who: str, sleep: float, connection: Sync) -> dict[str, Any]:
    return look(who, sleep, connection)


@app.post("/dirty")
async def dirty(request: Request, database: Database) -> dict[str, Any]:
    for statement in await request.json():
        await database.execute(statement)
    return {}


@app.post("/value")
async def value(request: Request, database: Database) -> dict[str, Any]:
    return {"value": await database.fetch_value(await request.json())}


# The seed's own recipe: a bare ``with pool`` in a synchronous dependency, which FastAPI enters, uses and exits on
# different threads.
pool = PGConnectionManager().get_database_connection(os.environ["CONTRACT_CONFIG"], "pool")


def bare_connection() -> Iterator[Connection[Any]]:
    with pool as connection:
        yield connection


def bare_outer() -> Iterator[list[Connection[Any]]]:
    with pool as one, pool as two:
        with pool as three:
            yield [one, two, three]


@app.get("/bare")
def bare(who: str, sleep: float, connection: Annotated[Connection[Any], Depends(bare_connection)]) -> dict[str, Any]:
    return look(who, sleep, connection)


@app.post("/bare-nested")
def bare_nested(a: int, connections: Annotated[list[Connection[Any]], Depends(bare_outer)]) -> dict[str, Any]:
    for i, connection in enumerate(connections):
        connection.execute(INSERT, [a + i])
    return {"pids": [connection.info.backend_pid for connection in connections]}


def look(who: str, sleep: float, connection: Connection[Any]) -> dict[str, Any]:
    connection.execute("SELECT set_config('contract.who', %s, true)", [who])
    time.sleep(sleep)
    row = connection.execute("SELECT current_setting('contract.who', true), pg_backend_pid()").fetchone()
    assert row is not None
    return {"who": row[0], "pids": [connection.info.backend_pid, row[1]]}
