"""Who answers a request, and what that means for what it did in its databases; tests/contract draws more of these."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import anyio
import httpx
import psycopg
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from starlette.endpoints import HTTPEndpoint
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Route

from fastapi_pgmonkey import PGMonkey, RequestConnection, RequestDatabase, RequestSyncConnection, RequestSyncDatabase
from pgmonkey import AsyncDatabase, CommitUnknownError
from pgmonkey.embedded import Server

from ..faults.proxy import FaultProxy
from .applications import INSERT, Observer, client, rows


def open_transactions(observer: Observer) -> int:
    query = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
    return observer.execute(query).rowcount


@pytest.mark.parametrize("status", [200, 302, 409])
def test_a_status_that_is_raised_decides(app: FastAPI, observer: Observer, status: int) -> None:
    @app.post("/")
    async def view(database: RequestDatabase) -> None:
        await database.execute(INSERT, [1])
        raise HTTPException(status)

    with client(app) as http:
        assert http.post("/", follow_redirects=False).status_code == status
    assert rows(observer) == ([1] if status < 400 else [])


def test_a_middleware_that_is_added_later_refuses(config: dict[str, Any], observer: Observer, db: PGMonkey) -> None:
    app = FastAPI()
    db.init_app(app)
    made: list[Any] = []

    class Refuse(BaseHTTPMiddleware):
        def __init__(self, app: Any) -> None:
            super().__init__(app)
            made.append(self)

        async def dispatch(self, request: Request, call_next: Any) -> Any:
            response = await call_next(request)
            response.status_code = 429
            return response

    app.add_middleware(Refuse)

    @app.post("/")
    async def view(database: RequestDatabase) -> None:
        await database.execute(INSERT, [1])

    with client(app) as http:
        assert http.post("/").status_code == 429
    assert rows(observer) == []
    assert len(made) == 1


def test_a_lifespan_makes_each_middleware_once(app: FastAPI, observer: Observer) -> None:
    made: list[Any] = []

    class Counted:
        def __init__(self, app: Any) -> None:
            self.app = app
            made.append(self)

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(scope, receive, send)

    app.add_middleware(Counted)

    @app.post("/")
    async def view(database: RequestDatabase) -> JSONResponse:
        await database.execute(INSERT, [1])
        return JSONResponse({}, 409)

    with client(app) as http:
        assert http.post("/").status_code == 409
    assert rows(observer) == []
    assert len(made) == 1


class AnsweringRoute(APIRoute):
    """Answers what its endpoint raises, so that no exception handler sees it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception:
                return PlainTextResponse("answered")

        return answer


RAISING = ["endpoint", "def endpoint", "dependency", "parameter", "result", "status", "success"]


@pytest.mark.parametrize("raising", RAISING)
def test_what_a_class_of_routes_answers_was_rolled_back(app: FastAPI, observer: Observer, raising: str) -> None:
    async def insert(database: RequestDatabase) -> None:
        await database.execute(INSERT, [1])
        if raising == "dependency":
            raise ZeroDivisionError

    async def endpoint(number: int) -> Any:
        if raising == "result":
            return "not a number"
        if raising in ("status", "success"):
            raise HTTPException(409 if raising == "status" else 202)
        raise ZeroDivisionError

    def plain_endpoint() -> None:
        raise ZeroDivisionError

    app.router.route_class = AnsweringRoute
    call = plain_endpoint if raising == "def endpoint" else endpoint
    app.add_api_route("/", call, dependencies=[Depends(insert)], response_model=int)
    with client(app) as http:
        assert http.get("/", params={"number": "none" if raising == "parameter" else 1}).text == "answered"
    assert rows(observer) == ([1] if raising == "success" else [])


@pytest.mark.parametrize("scope", ["function", "request"])
def test_what_a_dependency_answers_was_rolled_back(app: FastAPI, observer: Observer, scope: Any) -> None:
    async def redirecting(database: RequestDatabase) -> AsyncIterator[None]:
        try:
            yield
        except ZeroDivisionError:
            await database.execute(INSERT, [9])
            raise HTTPException(303, headers={"Location": "/log-in"}) from None

    @app.get("/", dependencies=[Depends(redirecting, scope=scope)])
    async def endpoint(database: RequestDatabase) -> None:
        await database.execute(INSERT, [1])
        raise ZeroDivisionError

    with client(app) as http:
        assert http.get("/", follow_redirects=False).status_code == 303
    assert rows(observer) == [9]


class Hurrying(BaseHTTPMiddleware):
    """Answers in the place of an endpoint that takes long, and cancels that afterwards."""

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        with anyio.move_on_after(0.2):
            response: Response = await call_next(request)
            return response
        return PlainTextResponse("late")


class Cancelling:
    """Cancels an endpoint that takes long, and answers in its place."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with anyio.move_on_after(0.2 if scope["type"] == "http" else None) as waiting:
            await self.app(scope, receive, send)
        if waiting.cancelled_caught:
            await PlainTextResponse("late")(scope, receive, send)


@pytest.mark.parametrize("middleware", [Hurrying, Cancelling])
@pytest.mark.parametrize("of_starlette", [False, True])
def test_an_endpoint_that_is_not_waited_for_is_rolled_back(
    app: FastAPI, db: PGMonkey, observer: Observer, middleware: Any, of_starlette: bool
) -> None:
    async def endpoint(request: Request) -> PlainTextResponse:
        await db.async_database.execute(INSERT, [1])
        await anyio.sleep(60)
        return PlainTextResponse("in time")

    app.add_middleware(middleware)
    if of_starlette:
        app.router.routes.append(Route("/", endpoint))
    else:
        app.add_api_route("/", endpoint)
    with client(app) as http:
        assert http.get("/").text == "late"
    assert rows(observer) == []


def test_the_endpoint_of_another_application_rolls_nothing_back(app: FastAPI, observer: Observer) -> None:
    other = FastAPI()

    @other.get("/")
    async def raising() -> None:
        raise ZeroDivisionError

    @app.get("/")
    async def endpoint(database: RequestDatabase) -> int:
        await database.execute(INSERT, [1])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(other, False), base_url="http://other") as http:
            return (await http.get("/")).status_code

    with client(app) as http:
        assert http.get("/").json() == 500
    assert rows(observer) == [1]


@pytest.mark.parametrize("key", [Exception, 500])
@pytest.mark.parametrize(("status", "left"), [(200, [9]), (500, [])])
@pytest.mark.parametrize("failing", ["endpoint", "commit"])
def test_handlers_for_all_errors_query_in_a_transaction(
    app: FastAPI, db: PGMonkey, observer: Observer, key: Any, status: int, left: list[int], failing: str
) -> None:
    errors = []

    @app.exception_handler(key)
    async def handler(request: Request, error: Exception) -> JSONResponse:
        errors.append(type(error))
        await db.async_database.execute(INSERT, [9])
        return JSONResponse({"handled": True}, status)

    @app.post("/")
    async def view(database: RequestDatabase) -> None:
        await database.execute(INSERT, [1])
        if failing == "endpoint":
            raise ZeroDivisionError
        await database.execute(INSERT, [1])

    with client(app) as http:
        for _ in range(3):
            observer.execute("TRUNCATE t")
            answer = http.post("/")
            assert (answer.status_code, answer.json()) == (status, {"handled": True})
            assert rows(observer) == left
        assert open_transactions(observer) == 0
    expected = ZeroDivisionError if failing == "endpoint" else psycopg.errors.UniqueViolation
    assert errors == [expected] * 3


@pytest.mark.parametrize("failing", ["endpoint", "commit"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_handlers_for_all_errors_of_mounted_applications(
    app: FastAPI, db: PGMonkey, observer: Observer, failing: str, wrapped: bool
) -> None:
    inner, errors = FastAPI(), []

    @inner.exception_handler(Exception)
    async def handler(request: Request, error: Exception) -> JSONResponse:
        errors.append(type(error))
        await db.async_database.execute(INSERT, [9])
        return JSONResponse({"inner": True})

    @inner.post("/")
    async def view(database: RequestDatabase) -> None:
        await database.execute(INSERT, [1])
        if failing == "endpoint":
            raise ZeroDivisionError
        await database.execute(INSERT, [1])

    app.mount("/inner", GZipMiddleware(inner) if wrapped else inner)
    with client(app) as http:
        assert http.post("/inner/").json() == {"inner": True}
    assert rows(observer) == [9]
    assert errors == [ZeroDivisionError if failing == "endpoint" else psycopg.errors.UniqueViolation]


@pytest.mark.parametrize("middleware", [None, BaseHTTPMiddleware])
def test_a_failed_commit_ends_the_response_before_its_background_tasks(
    app: FastAPI, observer: Observer, middleware: Any
) -> None:
    ran: list[str] = []
    if middleware is not None:

        async def dispatch(request: Request, call_next: Any) -> Any:
            try:
                return await call_next(request)
            except Exception:
                ran.append("the middleware saw an error")
                raise

        app.add_middleware(middleware, dispatch=dispatch)

    @app.exception_handler(psycopg.errors.UniqueViolation)
    async def handler(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"taken": True}, 409)

    def dependency() -> Iterator[None]:
        yield
        ran.append("left")

    @app.post("/")
    async def view(
        database: RequestDatabase, tasks: BackgroundTasks, entered: Annotated[None, Depends(dependency)]
    ) -> None:
        for _ in range(2):
            await database.execute(INSERT, [1])
        tasks.add_task(ran.append, "told the customer")

    with client(app) as http:
        answer = http.post("/")
        assert (answer.status_code, answer.json()) == (409, {"taken": True})
    assert ran == []


def test_endpoints_that_are_classes(app: FastAPI, db: PGMonkey, observer: Observer) -> None:
    class Endpoint(HTTPEndpoint):
        async def post(self, request: Request) -> PlainTextResponse:
            await db.async_database.execute(INSERT, [1])
            raise KeyError

    @app.exception_handler(KeyError)
    async def handler(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({})

    app.router.routes.append(Route("/", Endpoint))
    with client(app) as http:
        assert http.post("/").status_code == 200
    assert rows(observer) == []


# -- deciding otherwise -----------------------------------------------------------------------------------------------


def test_deciding_otherwise(app: FastAPI, db: PGMonkey, observer: Observer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "pgmonkey")

    @app.post("/preview")
    async def preview(database: RequestDatabase) -> None:
        await database.execute(INSERT, [1])
        db.keep_request()
        db.rollback_request()

    @app.post("/attempt")
    def attempt(database: RequestSyncDatabase) -> None:
        database.execute(INSERT, [2])
        db.keep_request()
        raise HTTPException(401)

    @app.post("/crash")
    async def crash(database: RequestDatabase) -> None:
        await database.execute(INSERT, [3])
        db.keep_request()
        raise ZeroDivisionError

    @app.post("/failed")
    async def failed(database: RequestDatabase) -> None:
        await database.execute(INSERT, [4])
        db.keep_request()
        await database.execute("SELECT * FROM missing")

    @app.post("/refused")
    async def refused(database: RequestDatabase) -> JSONResponse:
        await database.execute(INSERT, [5])
        return JSONResponse({}, 409)

    with client(app) as http:
        for path, status in (("preview", 200), ("attempt", 401), ("crash", 500), ("failed", 500), ("refused", 409)):
            assert http.post(f"/{path}").status_code == status
    assert rows(observer) == [2, 3]
    assert [message for message in caplog.messages if "rolled back" in message] == [
        "POST /preview: rolled back: rollback_request() (statements: 1)",
        "POST /failed: rolled back: UndefinedTable (statements: 2)",
        "POST /refused: rolled back: status 409 (statements: 1)",
    ]


@pytest.mark.parametrize("kind", [CommitUnknownError, 500])
def test_the_log_says_where_a_rollback_is_not_certain(
    kind: Any, config: dict[str, Any], observer: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    observer.execute("CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    settings = config["connection_settings"]
    with FaultProxy(settings["host"], int(settings["port"])) as proxy:
        through = {**config, "connection_settings": {**settings, "host": "127.0.0.1", "port": proxy.port}}
        db, other = PGMonkey(through), PGMonkey(config)
        app = FastAPI()
        db.init_app(app)
        other.init_app(app)

        @app.post("/lost")
        async def lost(database: Annotated[AsyncDatabase, Depends(db.database)]) -> None:
            await database.execute(INSERT, [1])
            proxy.cut_after = 1

        @app.post("/part")
        def part() -> None:
            db.sync_database.execute(INSERT, [2])
            other.sync_database.execute("INSERT INTO t VALUES (3), (3)")

        @app.post("/both")
        async def both(database: Annotated[AsyncDatabase, Depends(db.database)]) -> None:
            await database.execute(INSERT, [4])
            await asyncio.to_thread(db.sync_database.execute, "INSERT INTO t VALUES (5), (5)")

        @app.exception_handler(kind)
        def handler(request: Request, error: Exception) -> PlainTextResponse:
            # The server is away, but nobody may be told to try again.
            return PlainTextResponse(db.sync_database.fetch_value("SELECT 'handled'"), 500)

        caplog.set_level(logging.DEBUG, "pgmonkey")
        with client(app) as http:
            for name in ("lost", "part", "both"):
                assert http.post(f"/{name}").status_code == 500
                proxy.cut_after = 0
    own = "rolled back: status 500"  # what the handler did
    told = [record.getMessage() for record in caplog.records if record.name == "pgmonkey"]
    assert [message for message in told if "(statements: " in message and own not in message] == [
        "POST /lost: outcome unknown: CommitUnknownError (statements: 1)",
        "POST /part: committed in part: UniqueViolation (statements: 2)",
        "POST /both: committed in part: UniqueViolation (statements: 2)",
    ]


def test_nothing_is_decided_outside_a_request(app: FastAPI, db: PGMonkey) -> None:
    errors: list[Exception] = []

    def late() -> None:
        try:
            db.keep_request()
        except RuntimeError as error:
            errors.append(error)

    @app.post("/")
    async def view(database: RequestDatabase, tasks: BackgroundTasks) -> None:
        tasks.add_task(late)

    for decide in (db.keep_request, db.rollback_request):
        with pytest.raises(RuntimeError, match="there is no request"):
            decide()
    with client(app) as http:
        http.post("/")
    assert "its response has started" in str(errors[0])


# -- dependencies and pools -------------------------------------------------------------------------------------------


def test_def_endpoints_are_told_which_alias_to_use(app: FastAPI, observer: Observer) -> None:
    @app.get("/database")
    def database(database: RequestDatabase) -> Any:
        return database.fetch_value("SELECT 1")

    @app.get("/connection")
    def connection(connection: RequestConnection) -> Any:
        return connection.execute("SELECT 1")

    def repository(database: RequestDatabase) -> Any:
        return database

    @app.get("/passed-on")
    def passed_on(database: Annotated[Any, Depends(repository)]) -> str:
        return type(database).__name__

    @app.get("/sync")
    def sync(database: RequestSyncDatabase) -> Any:
        return database.fetch_value("SELECT 1")

    with TestClient(app) as http:
        for path, alias in (("/database", "RequestSyncDatabase"), ("/connection", "RequestSyncConnection")):
            with pytest.raises(RuntimeError, match=rf"{path[1:]}\(\) is a def endpoint .* use {alias}"):
                http.get(path)
        assert http.get("/sync").json() == 1
        assert http.get("/passed-on").json() == "AsyncDatabase"


def test_overrides_hold_for_the_aliases(app: FastAPI, db: PGMonkey) -> None:
    @app.get("/async")
    async def loop(database: RequestDatabase) -> Any:
        return database if isinstance(database, str) else "real"

    @app.get("/sync")
    def thread(connection: RequestSyncConnection) -> Any:
        return connection if isinstance(connection, str) else "real"

    def override(request: Request) -> str:
        return f"override for {request.url.path}"

    with client(app) as http:
        app.dependency_overrides[db.database] = override
        assert http.get("/async").json() == "override for /async"
        assert http.get("/sync").json() == "real"
        app.dependency_overrides = {db.sync_connection: override}
        assert http.get("/async").json() == "real"
        assert http.get("/sync").json() == "override for /sync"
        del app.dependency_overrides[db.sync_connection]
        assert http.get("/sync").json() == "real"
        assert app.dependency_overrides == {}


@pytest.mark.parametrize("nested", [False, True])
def test_a_transaction_of_a_dependency_covers_the_endpoint(
    config: dict[str, Any], db: PGMonkey, observer: Observer, nested: bool
) -> None:
    db = PGMonkey(config, transaction="statement")
    app = FastAPI(lifespan=db.lifespan)

    def in_transaction() -> Iterator[None]:
        with db.sync_database.transaction():
            yield

    def in_nested_transaction() -> Iterator[None]:
        with contextmanager(in_transaction)():
            yield

    own = in_nested_transaction if nested else in_transaction

    @app.post("/{crash}")
    def view(crash: bool, entered: Annotated[None, Depends(own, scope="function")]) -> None:
        db.sync_database.execute(INSERT, [int(crash)])
        assert rows(observer) == []
        if crash:
            raise ZeroDivisionError

    @app.post("/alone/now")
    def alone() -> None:
        with contextmanager(in_transaction)():
            db.sync_database.execute(INSERT, [2])
        db.sync_database.execute(INSERT, [3])
        assert rows(observer) == [0, 2, 3]

    with client(app) as http:
        assert http.post("/true").status_code == 500
        assert http.post("/false").status_code == 200
        assert http.post("/alone/now").status_code == 200
    assert rows(observer) == [0, 2, 3]


def test_each_pool_opens_when_it_is_needed(config: dict[str, Any]) -> None:
    config["pool_settings"] = config["async_pool_settings"] = {"min_size": 2, "max_size": 2}
    db = PGMonkey(config)
    app = FastAPI()
    db.init_app(app, readiness="/ready")

    @app.get("/")
    def view(connection: RequestSyncConnection) -> Any:
        return connection.execute("SELECT 1").fetchone()

    with client(app) as http:
        assert http.get("/ready").status_code == 200
        assert not db.sync_database.stats()
        assert http.get("/").json() == [1]
        assert http.get("/ready").status_code == 200
        assert db.sync_database.stats()["pool_size"] == 2
        assert not db.async_database.stats()


@pytest.mark.parametrize("pools", ["async", "sync", "both"])
def test_pools_that_open_at_the_start(config: dict[str, Any], pools: Any) -> None:
    with pytest.raises(ValueError, match="open_at_start: 'all' is neither"):
        PGMonkey(config, open_at_start="all")  # type: ignore[call-overload]
    db = PGMonkey(config, open_at_start=pools)
    with client(FastAPI(lifespan=db.lifespan)):
        assert bool(db.async_database.stats()) == (pools != "sync")
        assert bool(db.sync_database.stats()) == (pools != "async")


# -- a server that is away --------------------------------------------------------------------------------------------


def test_a_server_that_is_away(caplog: pytest.LogCaptureFixture) -> None:
    with Server() as server:
        db = PGMonkey({**server.config("postgres"), "async_pool_settings": {"timeout": 5}})
        app = FastAPI()
        db.init_app(app, readiness="/health/ready", liveness="/health/live")

        class Query(BaseHTTPMiddleware):
            async def dispatch(self, request: Request, call_next: Any) -> Any:
                if request.url.path == "/middleware":
                    await db.async_database.fetch_value("SELECT 1")
                return await call_next(request)

        app.add_middleware(Query)

        @app.get("/async")
        async def loop(database: RequestDatabase) -> Any:
            return await database.fetch_value("SELECT 1")

        @app.get("/sync")
        def thread(connection: RequestSyncConnection) -> Any:
            return connection.execute("SELECT 1").fetchone()

        with client(app) as http:
            assert http.get("/async").json() == 1
            assert http.get("/health/live").json() == http.get("/health/live").json() == {"status": "live"}
            server.stop()
            http.get("/async")  # may find that its connection is lost
            caplog.clear()
            for path in ("/async", "/sync", "/middleware"):
                answer = http.get(path)
                assert (answer.status_code, answer.headers.get("Retry-After")) == (503, "1"), path
                assert answer.json() == {"detail": "The database is not available, please try again."}
            lines = [record for record in caplog.records if record.name == "pgmonkey"]
            # The pool has a line of its own, once, when its upkeep cannot connect.
            requests = [line for line in lines if "trying again" not in line.getMessage()]
            assert len([line for line in requests if line.levelno == logging.WARNING]) == 3
            assert not any(line.exc_info for line in lines)
            assert http.get("/health/ready").status_code == 503
            assert http.get("/health/live").status_code == 200


# -- connections that the program itself ends -------------------------------------------------------------------------


def test_a_connection_that_is_closed_is_no_success(app: FastAPI, observer: Observer) -> None:
    @app.post("/async")
    async def loop(connection: RequestConnection) -> None:
        await connection.execute(INSERT, [1])
        await connection.close()

    @app.post("/sync")
    def thread(connection: RequestSyncConnection) -> None:
        connection.execute(INSERT, [2])
        connection.close()

    with client(app) as http:
        for path in ("/async", "/sync"):
            assert http.post(path).status_code == 500
    assert rows(observer) == []


def test_leaving_the_connections_own_block_commits_nothing(app: FastAPI, observer: Observer) -> None:
    @app.post("/async")
    async def loop(connection: RequestConnection) -> JSONResponse:
        async with connection:
            await connection.execute(INSERT, [1])
        return JSONResponse({}, 409)

    @app.post("/sync")
    def thread(connection: RequestSyncConnection) -> JSONResponse:
        with connection:
            connection.execute(INSERT, [2])
        return JSONResponse({}, 409)

    with client(app) as http:
        for path in ("/async", "/sync"):
            assert http.post(path).status_code in (409, 500)
    assert rows(observer) == []
