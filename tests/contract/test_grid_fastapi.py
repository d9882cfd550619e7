"""Whatever a FastAPI application does, and whoever answers: what is stored is what the status that left says."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from hypothesis import given
from hypothesis import strategies as st
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Host, Mount, Route, Router

from fastapi_pgmonkey import PGMonkey
from pgmonkey.embedded import Server

from .conftest import free_port
from .grid import (
    EVERY_EXAMPLE,
    EXAMPLES,
    GROUP,
    Account,
    Crash,
    Part,
    Program,
    TwoDatabases,
    programs,
    unlogged,
)

pytestmark = pytest.mark.timeout(10 * EXAMPLES)  # seconds: ten a program, on a busy machine

INSERT = "INSERT INTO t VALUES (%s)"
HOSTS = ("plain", "router", "route", "mounted", "in a middleware", "in a function", "in a router", "by host")
PROGRAMS = programs(
    others=("dependency", "handler", "handler of all", "handler of answers"),
    middlewares=("asgi", "base", "asgi inside", "base inside", "route"),
    order=("pgmonkey", "asgi", "base", "host"),
)
Databases = tuple[PGMonkey[Any], PGMonkey[Any]]


class Site(TwoDatabases):
    """A real server that serves one application after the other, over two databases."""

    def __init__(self, server: Server) -> None:
        super().__init__(server, "fastapi")
        self.databases: Databases = (PGMonkey(self.configs[0]), PGMonkey(self.configs[1]))
        self.app: Any = None
        port = free_port()
        self.server = uvicorn.Server(uvicorn.Config(self, port=port, log_level="critical"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, headers={"Connection": "close"})
        while not self.server.started:
            assert self.thread.is_alive()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            for db in self.databases:
                await db.async_database.close()
                db.sync_database.close()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await self.app(scope, receive, send)

    def open_transactions(self) -> int:
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND state LIKE 'idle in transaction%'"
        )
        return sum(row[0] for one in self.observers for row in one.execute(query))

    def stop(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(20)
        self.close()


@pytest.fixture(scope="module")
def site(server: Server) -> Iterator[Site]:
    site = Site(server)
    with unlogged():
        yield site
    site.stop()


class Play:
    """Builds the application of a *program*, and plays its parts: in the event loop, in threads, or in both."""

    def __init__(self, program: Program, host: str, where: str, databases: Databases) -> None:
        self.program = program
        self.account = Account()
        self.kept: list[int] = []
        self.db, self.elsewhere = databases
        self.where = where
        self.app = FastAPI()
        self.inner = self.app if host in ("plain", "router", "route") else FastAPI()
        for name in program.order:
            self.set_up(name, host)
        self.add_endpoint(host)
        handle = self.inner.add_exception_handler
        if "handler" in program.parts:
            for kind in filter(None, (Crash, GROUP, psycopg.Error)):
                handle(kind, self.part("handler", Request))
        if "handler of answers" in program.parts:
            handle(HTTPException, self.part("handler of answers", Request))
        if "handler of all" in program.parts:
            handle(Exception, self.part("handler of all", Request))
        for middleware in ("asgi inside", "base inside"):
            if self.inner is not self.app:
                self.add_middleware(self.inner, middleware)

    def set_up(self, name: str, host: str) -> None:
        app, inner = self.app, self.inner
        if name == "pgmonkey":
            self.db.init_app(app)  # first: where both are used, only its COMMIT fails
            self.elsewhere.init_app(app)
        elif name in ("asgi", "base"):
            self.add_middleware(app, name)
        elif host == "mounted":
            app.mount("/", inner)
        elif host == "in a middleware":
            app.mount("/", CORSMiddleware(inner, allow_origins=["*"]))
        elif host == "in a function":

            async def serve(scope: Any, receive: Any, send: Any) -> None:
                await inner(dict(scope), receive, send)

            app.mount("/", serve)
        elif host == "in a router":
            app.mount("/", Router(routes=[Mount("/", inner)]))
        elif host == "by host":
            app.router.routes.append(Host("127.0.0.1", inner))

    def add_middleware(self, app: FastAPI, name: str) -> None:
        status = self.program.turns.get(name)
        if status is not None and name.startswith("asgi"):
            app.add_middleware(Turned, account=self.account, status=status)
        elif status is not None:
            app.add_middleware(BaseHTTPMiddleware, dispatch=turned(self.account, status))

    def add_endpoint(self, host: str) -> None:
        dependencies = [Depends(self.part("dependency"))] if "dependency" in self.program.parts else []
        endpoint = self.part("endpoint")
        if host == "router":
            router = APIRouter(dependencies=dependencies)
            router.get("/")(endpoint)
            self.app.include_router(router)
        elif host == "route":
            status = self.program.turns.get("route")
            around = [Middleware(Turned, account=self.account, status=status)] if status is not None else []
            played = self.part("endpoint", Request)
            self.app.router.routes.append(Route("/", played, middleware=around))
        else:
            self.inner.get("/", dependencies=dependencies)(endpoint)

    # -- parts --------------------------------------------------------------------------------------------------------

    def part(self, name: str, *parameters: object) -> Any:
        """Return the part *name* as a function, of a request and perhaps an error where there are *parameters*."""
        part = self.program.parts[name]

        async def in_loop(error: BaseException | None = None) -> Response:
            with self.account_of(name).part(answers=status_of, handles=error):
                for touch, row in self.account.steps(part):
                    if self.where == "both" and row % 2:
                        await asyncio.to_thread(self.touch, touch, row)
                    else:
                        await self.touch_in_loop(touch, row)
                return end(part)
            raise AssertionError

        def in_thread(error: BaseException | None = None) -> Response:
            with self.account_of(name).part(answers=status_of, handles=error):
                for touch, row in self.account.steps(part):
                    self.touch(touch, row)
                return end(part)
            raise AssertionError

        async def handle_in_loop(request: Request, error: BaseException | None = None) -> Response:
            return await in_loop(error)

        def handle_in_thread(request: Request, error: BaseException | None = None) -> Response:
            return in_thread(error)

        async def play_in_loop() -> Response:
            return await in_loop()

        def play_in_thread() -> Response:
            return in_thread()

        if parameters:
            return handle_in_thread if self.where == "threads" else handle_in_loop
        return play_in_thread if self.where == "threads" else play_in_loop

    def account_of(self, name: str) -> Account:
        before = self.account
        if name == "handler of all" and self.inner is self.app:
            # Starlette calls it outside of all middlewares, when the transactions have ended.
            self.kept = before.stored(500)
            failed = before.broken or before.doomed
            self.account = Account(decision=None if before.decision and failed else before.decision)
        return self.account

    async def touch_in_loop(self, touch: str, row: int) -> None:
        db = self.db.async_database
        if touch == "write":
            await db.execute(INSERT, [row])
        elif touch == "write elsewhere":
            await self.elsewhere.async_database.execute(INSERT, [row])
        elif touch == "nested":
            async with db.transaction():
                await db.execute(INSERT, [row])
        elif touch == "undone":
            with contextlib.suppress(Crash):
                async with db.transaction():
                    await db.execute(INSERT, [row])
                    raise Crash
        elif touch == "read":
            await db.fetch_value("SELECT count(*) FROM t")
        elif touch == "late":
            await db.execute("INSERT INTO late VALUES (%s)", [row])
        elif touch == "caught":
            with contextlib.suppress(psycopg.Error):
                await db.execute("SELECT * FROM missing")
        elif touch == "close":
            async with db.transaction() as connection:
                await connection.execute("SELECT 1")  # or nothing is open, and nothing is lost
            await connection.close()
        else:
            self.decide(touch)

    def touch(self, touch: str, row: int) -> None:
        db = self.db.sync_database
        if touch == "write":
            db.execute(INSERT, [row])
        elif touch == "write elsewhere":
            self.elsewhere.sync_database.execute(INSERT, [row])
        elif touch == "nested":
            with db.transaction():
                db.execute(INSERT, [row])
        elif touch == "undone":
            with contextlib.suppress(Crash), db.transaction():
                db.execute(INSERT, [row])
                raise Crash
        elif touch == "read":
            db.fetch_value("SELECT count(*) FROM t")
        elif touch == "late":
            db.execute("INSERT INTO late VALUES (%s)", [row])
        elif touch == "caught":
            with contextlib.suppress(psycopg.Error):
                db.execute("SELECT * FROM missing")
        elif touch == "close":
            with db.transaction() as connection:
                connection.execute("SELECT 1")
            connection.close()
        else:
            self.decide(touch)

    def decide(self, touch: str) -> None:
        if touch == "keep":
            self.db.keep_request()
        else:
            self.db.rollback_request()


class Turned:
    """Middleware that passes on what it is given, but for the status."""

    def __init__(self, app: Any, account: Account, status: int) -> None:
        self.app = app
        self.account = account
        self.status = status

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_turned(message: Any) -> None:
            await send({**message, "status": self.status} if message["type"] == "http.response.start" else message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send_turned)
        except Exception as error:
            with self.account.part(handles=error):
                pass
            await PlainTextResponse("", self.status)(scope, receive, send)


def turned(account: Account, status: int) -> Callable[[Request, Any], Awaitable[Response]]:
    """Return the same as the function of a BaseHTTPMiddleware."""

    async def dispatch(request: Request, call_next: Any) -> Response:
        try:
            response: Response = await call_next(request)
        except Exception as error:
            with account.part(handles=error):
                pass
            return PlainTextResponse("", status)
        response.status_code = status
        return response

    return dispatch


def end(part: Part) -> Response:
    response = PlainTextResponse("", part.status)
    if part.end == "stream":
        return StreamingResponse(chunks(), part.status)
    if part.end in ("refuse", "answer"):
        raise HTTPException(part.status)
    if part.end == "raise":
        raise Crash
    if part.end == "group":
        raise GROUP("several", [Crash(), ValueError()])
    return response


async def chunks() -> AsyncIterator[bytes]:
    yield b"a"
    yield b"b"


def status_of(error: BaseException) -> int | None:
    return error.status_code if isinstance(error, HTTPException) else None


def in_both(program: Program) -> bool:
    """Whether the program can use connections of both kinds: they commit one after the other."""
    return not any("late" in part.touches for part in program.parts.values())


@EVERY_EXAMPLE
@given(program=PROGRAMS, host=st.sampled_from(HOSTS), where=st.sampled_from(["loop", "threads", "both"]))
def test_p1_p2_what_is_stored_is_what_the_status_says(site: Site, program: Program, host: str, where: str) -> None:
    where = "loop" if where == "both" and not in_both(program) else where
    play = Play(program, host, where, site.databases)
    site.app = play.app
    status = site.client.get("/").status_code
    assert status != 404
    assert site.stored() == play.kept + play.account.stored(status)
    deadline = time.monotonic() + 10
    while site.open_transactions():  # the server learns a moment later that a connection was closed
        assert time.monotonic() < deadline, "a transaction was left open"
        time.sleep(0.01)
