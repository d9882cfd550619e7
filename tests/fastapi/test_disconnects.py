"""FastAPI with too many clients, and with clients that leave."""

import asyncio
from typing import Annotated, Any

import psycopg
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import PlainTextResponse
from psycopg import AsyncConnection, Connection

from fastapi_pgmonkey import PGMonkey, RequestConnection, RequestDatabase, RequestSyncConnection
from pgmonkey import CancelledUnitError

from .applications import INSERT, Observer, client, rows


@pytest.fixture
def db(config: dict[str, Any], observer: Observer) -> PGMonkey:
    observer.execute("CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    return PGMonkey(config, open_at_start="both")  # a statement must run when its client leaves


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_an_exhausted_pool_names_the_route(config: dict[str, Any], caplog: pytest.LogCaptureFixture, kind: str) -> None:
    config["pool_settings"] = config["async_pool_settings"] = {"max_size": 1, "timeout": 0.5}
    db = PGMonkey(config)
    app = FastAPI(lifespan=db.lifespan)

    @app.get("/async/{number}")
    async def outer(number: int, connection: Annotated[AsyncConnection, Depends(db.connection)]) -> None:
        async with db.async_database.connection():
            pass

    @app.get("/sync/{number}")
    def outer_sync(number: int, connection: Annotated[Connection, Depends(db.sync_connection)]) -> None:
        with db.sync_database.connection():
            pass

    with client(app) as http:
        answer = http.get(f"/{kind}/4711")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    message = caplog.records[-1].getMessage()
    assert "1 of at most 1 in use, 0 waiting; held longest: 0." in message
    assert f"borrowed for GET /{kind}/{{number}}, " in message
    assert "test_disconnects.py:" in message
    assert "(outer" in message
    assert "4711" not in message


async def call(app: FastAPI, path: str, gone: asyncio.Event) -> list[dict[str, Any]]:
    """Call *app* as a server does whose client leaves when *gone* is set; return what was sent."""
    sent: list[dict[str, Any]] = []
    body = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if body:
            return body.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""}
    await app({**scope, "headers": [], "asgi": {"version": "3.0"}, "root_path": ""}, receive, send)
    return sent


@pytest.mark.parametrize("how", ["connection", "query", "sync-connection", "sync-query", "between", "after", "none"])
async def test_a_client_that_leaves_has_its_query_cancelled(
    app: FastAPI, db: PGMonkey, observer: Observer, how: str
) -> None:
    gone, errors = asyncio.Event(), []

    async def leave() -> None:
        await asyncio.sleep(0.05)
        gone.set()

    @app.get("/{how}")
    async def view(how: str, connection: RequestConnection, database: RequestDatabase) -> Any:
        await database.execute(INSERT, [1])
        if how == "none":
            return "answered"
        leaving = asyncio.create_task(leave())
        try:
            if how == "connection":
                await connection.execute("SELECT pg_sleep(30)")
            elif how == "query":
                await database.execute("SELECT pg_sleep(30)")
            elif how == "sync-query":
                await asyncio.to_thread(db.sync_database.execute, "SELECT pg_sleep(30)")
            else:
                await leaving
                await asyncio.sleep(0.05)
                if how == "between":
                    await database.execute(INSERT, [2])
        except BaseException as error:
            errors.append(error)
            raise

    @app.get("/sync-connection")
    def view_sync(connection: RequestSyncConnection) -> None:
        connection.execute(INSERT, [1])
        asyncio.run_coroutine_threadsafe(leave(), loop)
        try:
            connection.execute("SELECT pg_sleep(30)")
        except BaseException as error:
            errors.append(error)
            raise

    # The route of the plain path first.
    app.router.routes.insert(0, app.router.routes.pop())
    loop = asyncio.get_running_loop()
    async with app.router.lifespan_context(app):
        sent = await asyncio.wait_for(call(app, f"/{how}", gone), 10)
        if how == "none":
            assert sent[0]["status"] == 200
            assert rows(observer) == [1]
        else:
            assert sent == []
            assert rows(observer) == []
            kind = {"between": [CancelledUnitError], "after": []}.get(how, [psycopg.errors.QueryCanceled])
            assert [type(error) for error in errors] == kind
        busy = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'"
        assert observer.execute(busy.encode()).fetchone() == (1,), "the observer alone"
        for database in (db.async_database, db.sync_database):
            stats = database.stats()
            assert stats.get("pool_available") == stats.get("pool_size")
            assert stats.get("returns_bad", 0) == 0


async def test_a_client_that_leaves_may_be_ignored(config: dict[str, Any], db: PGMonkey, observer: Observer) -> None:
    db = PGMonkey(config, cancel_on_disconnect=False)
    app = FastAPI(lifespan=db.lifespan)
    gone = asyncio.Event()

    @app.get("/")
    async def view(database: RequestDatabase) -> None:
        gone.set()
        await database.execute("INSERT INTO t SELECT 1 FROM pg_sleep(0.1)")

    async with app.router.lifespan_context(app):
        sent = await call(app, "/", gone)
    assert sent[0]["status"] == 200
    assert rows(observer) == [1]


async def test_the_body_is_read_in_order_while_the_client_is_watched(app: FastAPI, db: PGMonkey) -> None:
    parts = [{"type": "http.request", "body": str(n).encode(), "more_body": n < 9} for n in range(10)]
    never = asyncio.Event()
    receiving: list[int] = []

    async def receive() -> dict[str, Any]:
        assert receiving == [], "by one at a time"
        receiving.append(1)
        await asyncio.sleep(0.001)
        receiving.clear()
        if parts:
            return parts.pop(0)
        await never.wait()
        return {"type": "http.disconnect"}

    async def route(request: Request) -> PlainTextResponse:
        chunks = request.stream()
        reading = asyncio.ensure_future(chunks.__anext__())
        await asyncio.sleep(0)
        await db.async_database.fetch_value("SELECT 1 FROM pg_sleep(0.1)")
        assert len(parts) == 8, "looked no further than one part"
        body = await reading
        async for part in chunks:
            body += part
            await db.async_database.fetch_value("SELECT 1")
        return PlainTextResponse(body)

    app.add_route("/", route, methods=["POST"])
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []}
    async with app.router.lifespan_context(app):
        await app({**scope, "asgi": {"version": "3.0"}, "root_path": ""}, receive, send)
    assert [message.get("status", message.get("body")) for message in sent] == [200, b"0123456789"]
