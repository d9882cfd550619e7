"""Requests of a FastAPI application: handlers, sub-applications, sockets, streams, tasks, clients that leave."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import psycopg
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.testclient import TestClient
from httpx import ASGITransport, AsyncClient
from psycopg import AsyncConnection, Connection
from psycopg.rows import dict_row
from starlette.middleware.base import BaseHTTPMiddleware

from fastapi_pgmonkey import PGMonkey, RequestConnection, RequestDatabase, RequestSyncConnection
from pgmonkey import AsyncDatabase, BadRowError, Database

from ..garbage import no_cycles
from .applications import INSERT, Observer, client, rows

# -- handlers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("status", "left"), [(200, [9]), (500, [])])
def test_error_handlers_query_in_a_transaction_of_their_own(
    app: FastAPI, db: PGMonkey, observer: Observer, plain: bool, status: int, left: list[int]
) -> None:
    @app.exception_handler(psycopg.errors.UndefinedTable)
    async def handler(request: Request, error: Exception) -> JSONResponse:
        assert await db.async_database.fetch_value("SELECT count(*) FROM t") == 0
        await db.async_database.execute(INSERT, [9])
        return JSONResponse({}, status)

    async def work(request: Request) -> None:
        await db.async_database.execute(INSERT, [1])
        await asyncio.to_thread(db.sync_database.execute, INSERT, [2])
        await db.async_database.execute("SELECT * FROM missing")

    if plain:
        app.add_route("/", work, methods=["POST"])  # type: ignore[arg-type]
    else:
        app.post("/")(work)
    with client(app) as http:
        assert http.post("/").status_code == status
    assert rows(observer) == left


def test_a_handler_that_is_a_plain_function(app: FastAPI, db: PGMonkey, observer: Observer) -> None:
    @app.exception_handler(ZeroDivisionError)
    def handler(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(db.sync_database.fetch_value("SELECT count(*) FROM t"))

    @app.post("/")
    def view(connection: RequestSyncConnection) -> None:
        connection.execute(INSERT, [1])
        raise ZeroDivisionError

    with client(app) as http:
        assert http.post("/").json() == 0
    assert rows(observer) == []


@pytest.mark.parametrize(("status", "left"), [(200, [9]), (409, [])])
def test_the_handler_of_a_failed_commit_begins_anew(
    app: FastAPI, db: PGMonkey, observer: Observer, status: int, left: list[int]
) -> None:
    @app.exception_handler(psycopg.errors.UniqueViolation)
    async def handler(request: Request, error: Exception) -> JSONResponse:
        await db.async_database.execute(INSERT, [9])
        return JSONResponse({}, status)

    @app.post("/")
    async def view(connection: RequestConnection) -> None:
        for _ in range(2):
            await connection.execute(INSERT, [1])

    with client(app) as http:
        assert http.post("/").status_code == status
    assert rows(observer) == left


def test_a_handler_whose_own_commit_fails_is_no_success(app: FastAPI, db: PGMonkey, observer: Observer) -> None:
    @app.exception_handler(psycopg.errors.UniqueViolation)
    async def handler(request: Request, error: Exception) -> JSONResponse:
        for _ in range(2):
            await db.async_database.execute(INSERT, [1])
        return JSONResponse({})

    app.post("/")(lambda: db.sync_database.execute_many(INSERT, [[1], [1]]))
    with client(app) as http:
        assert http.post("/").status_code == 500
    assert rows(observer) == []


def test_a_middleware_that_catches_everything_answers_a_failed_commit_itself(app: FastAPI, observer: Observer) -> None:
    class CatchAll:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            try:
                await self.app(scope, receive, send)
            except Exception:
                await PlainTextResponse("caught", 500)(scope, receive, send)

    app.add_middleware(CatchAll)

    @app.post("/")
    async def view(connection: RequestConnection) -> None:
        for _ in range(2):
            await connection.execute(INSERT, [1])

    with TestClient(app) as http:  # which raises what the application does
        assert (http.post("/").status_code, http.post("/").text) == (500, "caught")
    assert rows(observer) == []


def test_what_fails_around_the_endpoint_rolls_back(app: FastAPI, db: PGMonkey, observer: Observer) -> None:
    async def failing(connection: RequestConnection) -> AsyncIterator[None]:
        yield
        raise ZeroDivisionError

    @app.post("/exit")
    async def leave(
        connection: RequestConnection, entered: Annotated[None, Depends(failing, scope="function")]
    ) -> None:
        await connection.execute(INSERT, [1])

    @app.post("/validation", response_model=int)
    async def validated(connection: RequestConnection) -> Any:
        await connection.execute(INSERT, [2])
        return "no number"

    @app.post("/middleware")
    async def inside(connection: RequestConnection) -> None:
        await connection.execute(INSERT, [3])

    async def dispatch(request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        if request.url.path == "/middleware":
            raise ZeroDivisionError
        return response

    app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    with client(app) as http:
        for path in ("/exit", "/validation", "/middleware"):
            assert http.post(path).status_code == 500
    assert rows(observer) == []


# -- where endpoints may be -------------------------------------------------------------------------------------------


def test_mounted_applications(config: dict[str, Any], observer: Observer, db: PGMonkey) -> None:
    config["async_pool_settings"] = {"max_size": 1, "timeout": 0.5}
    db = PGMonkey(config)
    inner = FastAPI()

    @inner.exception_handler(psycopg.errors.UniqueViolation)
    async def handler(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"inner": True}, 409)

    @inner.post("/{status}")
    async def view(status: int, connection: RequestConnection) -> JSONResponse:
        await connection.execute(INSERT, [status])
        return JSONResponse({}, status)

    @inner.post("/busy/now")
    async def busy(connection: RequestConnection) -> Any:
        async with db.async_database.connection():
            pass

    app = FastAPI(lifespan=db.lifespan)
    app.mount("/inner", inner)
    with client(app) as http:
        assert http.post("/inner/201").status_code == 201
        assert http.post("/inner/404").status_code == 404
        assert rows(observer) == [201]
        assert http.post("/inner/201").json() == {"inner": True}
        answer = http.post("/inner/busy/now")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def test_plain_routes(app: FastAPI, db: PGMonkey, observer: Observer) -> None:
    async def route(request: Request) -> PlainTextResponse:
        await db.async_database.execute(INSERT, [1])
        return PlainTextResponse("", int(request.path_params["status"]))

    app.add_route("/{status}", route, methods=["POST"])
    with client(app) as http:
        http.post("/409")
        assert rows(observer) == []
        http.post("/201")
        assert rows(observer) == [1]


def test_dependencies_of_routers_and_classes(app: FastAPI, db: PGMonkey, observer: Observer) -> None:
    class Repository:
        def __init__(self, connection: Annotated[AsyncConnection, Depends(db.connection)]) -> None:
            self.connection = connection

    async def insert(connection: Annotated[AsyncConnection, Depends(db.connection)]) -> None:
        await connection.execute(INSERT, [1])

    router = APIRouter(dependencies=[Depends(insert)])

    @router.post("/{status}")
    async def view(status: int, repository: Annotated[Repository, Depends()]) -> JSONResponse:
        cursor = await repository.connection.execute("SELECT count(*) FROM t")
        return JSONResponse(await cursor.fetchone(), status)

    app.include_router(router, prefix="/routed")
    with client(app) as http:
        assert http.post("/routed/409").json() == [1]
        assert rows(observer) == []
        assert http.post("/routed/201").json() == [1]
        assert rows(observer) == [1]


def test_websockets_have_a_connection_for_each_message(app: FastAPI, db: PGMonkey, observer: Observer) -> None:
    @app.websocket("/")
    async def socket(socket: WebSocket, database: RequestDatabase) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            async with database.transaction() as connection:
                await connection.execute(INSERT, [int(text)])
            await socket.send_json(database.stats()["pool_available"])

    @app.websocket("/held")
    async def held(socket: WebSocket, connection: Annotated[AsyncConnection, Depends(db.connection)]) -> None:
        await socket.accept()

    @app.websocket("/held-sync")
    def held_sync(socket: WebSocket, connection: Annotated[Connection, Depends(db.sync_connection)]) -> None:
        pass

    with client(app) as http:
        with http.websocket_connect("/") as opened:
            for a in range(3):
                opened.send_text(str(a))
                assert opened.receive_json() == 1
                assert rows(observer) == list(range(a + 1))
        for path in ("/held", "/held-sync"):
            with pytest.raises(RuntimeError, match="depend on the database, and use 'async with"):
                with http.websocket_connect(path):
                    pass


def test_a_dependency_yields_in_a_block_inside_of_another_task(app: FastAPI, db: PGMonkey, observer: Observer) -> None:
    @app.middleware("http")  # which serves the request in a task of its own
    async def watch(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    async def in_transaction() -> AsyncIterator[None]:
        async with db.async_database.transaction():
            yield

    async def in_savepoint(connection: RequestConnection) -> AsyncIterator[None]:
        async with connection.transaction():
            yield

    async def write(a: int, status: int) -> JSONResponse:
        await db.async_database.execute(INSERT, [a])
        return JSONResponse({}, status)

    app.post("/transaction", dependencies=[Depends(in_transaction)])(write)
    app.post("/savepoint", dependencies=[Depends(in_savepoint)])(write)
    with client(app) as http:
        for number, path in enumerate(("/transaction", "/savepoint")):
            assert http.post(path, params={"a": number, "status": 200}).status_code == 200
            assert http.post(path, params={"a": 9, "status": 409}).status_code == 409
    assert rows(observer) == [0, 1]


# -- streams, tasks ---------------------------------------------------------------------------------------------------


def test_server_sent_events(app: FastAPI, db: PGMonkey) -> None:
    @app.get("/")
    async def events(database: RequestDatabase) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            async for (n,) in database.stream("SELECT generate_series(1, 3)"):
                yield f"data: {n} {await database.fetch_value('SELECT 7')}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    with client(app) as http:
        assert http.get("/").text == "data: 1 7\n\ndata: 2 7\n\ndata: 3 7\n\n"
        assert db.async_database.stats()["pool_available"] == db.async_database.stats()["pool_size"]


def test_generator_endpoints_of_events(app: FastAPI, db: PGMonkey) -> None:
    sse = pytest.importorskip("fastapi.sse", reason="this FastAPI has no EventSourceResponse")

    @app.get("/", response_class=sse.EventSourceResponse)
    async def events(database: RequestDatabase) -> AsyncIterator[dict[str, Any]]:
        for n in range(20):
            yield {"n": n, "value": await database.fetch_value("SELECT %s::int", [n])}

    with client(app) as http:
        for _ in range(10):
            lines = http.get("/").text.split("\n\n")
            assert [line for line in lines if line] == [f'data: {{"n":{n},"value":{n}}}' for n in range(20)]
        assert db.async_database.stats()["pool_available"] == db.async_database.stats()["pool_size"]


def test_background_tasks_have_transactions_of_their_own(app: FastAPI, db: PGMonkey, observer: Observer) -> None:
    seen: list[int] = []

    async def task(database: AsyncDatabase) -> None:
        seen.append(await database.fetch_value("SELECT count(*) FROM t"))
        async with database.transaction():
            await database.execute(INSERT, [2])

    def in_thread() -> None:
        db.sync_database.execute(INSERT, [3])

    @app.post("/")
    async def view(database: RequestDatabase, tasks: BackgroundTasks) -> None:
        await database.execute(INSERT, [1])
        tasks.add_task(task, database)
        tasks.add_task(in_thread)

    with client(app) as http:
        assert http.post("/").status_code == 200
        assert seen == [1], "after the COMMIT"
        assert rows(observer) == [1, 2, 3]


def test_def_endpoints_do_not_lock_each_other_out(config: dict[str, Any]) -> None:
    config["pool_settings"] = {"min_size": 1, "max_size": 1}
    db = PGMonkey(config)
    app = FastAPI(lifespan=db.lifespan)

    @app.get("/")
    def view(connection: Annotated[Connection, Depends(db.sync_connection)]) -> Any:
        return connection.execute("SELECT 1 FROM pg_sleep(0.002)").fetchone()

    async def all_at_once() -> list[int]:
        import httpx

        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as http:
                return [answer.status_code for answer in await asyncio.gather(*(http.get("/") for _ in range(120)))]

    assert asyncio.run(all_at_once()) == [200] * 120


async def test_a_request_leaves_nothing_to_the_garbage_collector(app: FastAPI, db: PGMonkey) -> None:
    @app.get("/loop")
    async def loop(database: RequestDatabase) -> Any:
        return await database.fetch_value("SELECT 1")

    @app.get("/thread")
    def thread(connection: RequestSyncConnection) -> Any:
        return connection.execute("SELECT 1").fetchone()

    async with app.router.lifespan_context(app), AsyncClient(transport=ASGITransport(app), base_url="http://x") as http:
        with no_cycles():
            for path in ("/loop", "/thread"):
                assert (await http.get(path)).status_code == 200
            await asyncio.sleep(0.05)  # until timers are gone


# -- setting up -------------------------------------------------------------------------------------------------------


def test_several_databases(config: dict[str, Any], server: Any, new_database: Callable[[], str], dbname: str) -> None:
    other = new_database()
    db, reports = PGMonkey(config), PGMonkey({**config, **server.config(other)}, row_factory=dict_row)
    app = FastAPI(lifespan=db.lifespan)
    reports.init_app(app)

    @app.post("/{status}")
    async def view(
        status: int,
        one: Annotated[AsyncDatabase, Depends(db.database)],
        two: Annotated[AsyncDatabase, Depends(reports.database)],
    ) -> JSONResponse:
        for database in (one, two):
            await database.execute("CREATE TABLE IF NOT EXISTS made (a int)")
        return JSONResponse([await d.fetch_one("SELECT current_database()") for d in (one, two)], status)

    @app.get("/alias")
    async def alias(database: RequestDatabase) -> None:
        pass

    def made() -> list[bool]:
        found = []
        for name in (dbname, other):
            with psycopg.connect(server.dsn(name)) as connection:
                found.append(connection.execute("SELECT to_regclass('made') IS NOT NULL").fetchone() == (True,))
        return found

    with client(app) as http:
        assert http.post("/409").json() == [[dbname], {"current_database": other}]
        assert made() == [False, False]
        assert http.post("/201").status_code == 201
        assert made() == [True, True]
        with pytest.raises(RuntimeError, match=r"several databases; use Depends\(db\.connection\)"):
            TestClient(app).get("/alias")


def test_an_alias_without_a_database_says_what_is_missing() -> None:
    app = FastAPI()

    @app.get("/")
    async def view(database: RequestDatabase) -> None:
        pass

    with pytest.raises(RuntimeError, match=r"no PGMonkey is set up on this application; use FastAPI\(lifespan"):
        TestClient(app).get("/")


def test_statements_that_stand_for_themselves(config: dict[str, Any], db: PGMonkey, observer: Observer) -> None:
    with pytest.raises(ValueError, match="'sometimes' is neither 'request' nor 'statement'"):
        PGMonkey(config, transaction="sometimes")  # type: ignore[call-overload]
    db = PGMonkey(config, transaction="statement")
    app = FastAPI(lifespan=db.lifespan)

    @app.post("/query")
    async def query(database: RequestDatabase) -> JSONResponse:
        await database.execute(INSERT, [1])
        assert rows(observer) == [1]
        return JSONResponse({}, 409)

    @app.post("/connection")
    async def view(connection: RequestConnection, database: RequestDatabase) -> JSONResponse:
        await connection.execute(INSERT, [2])
        await database.execute(INSERT, [3])
        assert rows(observer) == [1]
        return JSONResponse({}, 409)

    @app.post("/raised/{status}")
    async def raised(status: int, connection: RequestConnection) -> None:
        await connection.execute(INSERT, [status])
        raise HTTPException(status)

    @app.post("/raised-in-a-thread/{status}")
    def raised_in_a_thread(status: int, connection: RequestSyncConnection) -> None:
        connection.execute(INSERT, [-status])
        raise HTTPException(status)

    with client(app) as http:
        assert http.post("/query").status_code == 409
        assert http.post("/connection").status_code == 409
        for status in (303, 404):
            assert http.post(f"/raised/{status}", follow_redirects=False).status_code == status
            assert http.post(f"/raised-in-a-thread/{status}", follow_redirects=False).status_code == status
    assert rows(observer) == [-303, 1, 2, 3, 303]


def test_readiness(config: dict[str, Any], server: Any, dbname: str) -> None:
    db = PGMonkey(config)
    app = FastAPI()
    db.init_app(app, readiness="/ready")
    with client(app) as http:
        assert (http.get("/ready").status_code, http.get("/ready").json()) == (200, {"status": "ready"})
        assert "/ready" not in http.get("/openapi.json").json()["paths"]
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {dbname} ALLOW_CONNECTIONS false".encode())
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [dbname]
            )
        answer = http.get("/ready")
        assert (answer.status_code, answer.json()) == (503, {"status": "unavailable"})
        assert answer.headers["Retry-After"] == "1"


def test_session_values_are_those_of_the_request(app: FastAPI, db: PGMonkey) -> None:
    @db.session_values
    def values(request: Any) -> dict[str, Any]:
        return {"app.tenant": request.query_params["tenant"]}

    query = "SELECT current_setting('app.tenant', true)"

    @app.get("/")
    async def view(connection: RequestConnection, database: RequestDatabase) -> StreamingResponse:
        cursor = await connection.execute(query)
        values = [*(await cursor.fetchall()), [await database.fetch_value(query)]]
        values.append([await asyncio.to_thread(db.sync_database.fetch_value, query)])
        rows = database.stream(query)

        async def lines() -> AsyncIterator[str]:
            for (value,) in values:
                yield f"{value} "
            async for (value,) in rows:
                yield f"{value} "

        return StreamingResponse(lines())

    @app.websocket("/")
    async def socket(socket: WebSocket, database: RequestDatabase) -> None:
        await socket.accept()
        await socket.send_text(await database.fetch_value(query))

    with client(app) as http:
        for tenant in "123":
            assert http.get(f"/?tenant={tenant}").text.split() == [tenant] * 4
            with http.websocket_connect(f"/?tenant={tenant}") as opened:
                assert opened.receive_text() == tenant
        assert not db.sync_database.fetch_value(query)


@pytest.mark.parametrize(("status", "left"), [(200, [1, 2, 3]), (409, [])])
def test_a_dependency_may_yield_inside_a_transaction_block(
    app: FastAPI, db: PGMonkey, observer: Observer, status: int, left: list[int]
) -> None:
    # It begins and ends on other threads than the endpoint's, and after the request's transaction.
    def in_a_thread() -> Any:
        with db.sync_database.transaction() as connection:
            yield connection

    async def in_a_task() -> Any:
        async with db.async_database.transaction() as connection:
            yield connection

    @app.get("/thread")
    def in_thread(connection: Annotated[Connection[Any], Depends(in_a_thread)]) -> JSONResponse:
        db.sync_database.execute(INSERT, [1])
        with db.sync_database.transaction():
            db.sync_database.execute(INSERT, [2])
        connection.execute(INSERT, [3])
        return JSONResponse({}, status)

    @app.get("/task")
    async def in_task(connection: Annotated[AsyncConnection[Any], Depends(in_a_task)]) -> JSONResponse:
        await db.async_database.execute(INSERT, [1])
        async with db.async_database.transaction():
            await db.async_database.execute(INSERT, [2])
        await connection.execute(INSERT, [3])
        return JSONResponse({}, status)

    with client(app) as requests:
        for path in ("/thread", "/task"):
            for _ in range(4):
                assert requests.get(path).status_code == status
                assert rows(observer) == left
                observer.execute("DELETE FROM t")


# -- many rows and notifications --------------------------------------------------------------------------------------


def test_many_rows_and_notifications_are_part_of_the_request(
    app: FastAPI, db: PGMonkey, config: dict[str, Any], observer: Observer
) -> None:
    @app.post("/async/{first}/{status}")
    async def view(first: int, status: int, database: RequestDatabase) -> JSONResponse:
        assert await database.copy_rows("t", ((first + i,) for i in range(3))) == 3
        assert await database.execute_many(f"{INSERT} RETURNING a", [[first + 3]], returning=True) == [(first + 3,)]
        try:
            await database.copy_rows("t", [(first + 4,), ("five",)])  # a savepoint of the request
        except BadRowError:
            await database.notify("done", str(first))
        return JSONResponse({}, status)

    @app.post("/threads/{first}/{status}")
    def plain(first: int, status: int) -> JSONResponse:
        assert db.sync_database.copy_rows("t", ((first + i,) for i in range(4))) == 4
        db.sync_database.notify("done", str(first))
        return JSONResponse({}, status)

    with client(app) as http, Database(config).listen("done") as notes:
        for i, way in enumerate(("async", "threads")):
            for j, status in enumerate((409, 200)):
                assert http.post(f"/{way}/{100 * i + 10 * j}/{status}").status_code == status
            note = next(notes)
            assert isinstance(note, psycopg.Notify)
            assert note.payload == str(100 * i + 10)
    assert rows(observer) == [10, 11, 12, 13, 110, 111, 112, 113]


async def test_server_sent_events_end_with_the_application(
    app: FastAPI, db: PGMonkey, config: dict[str, Any], observer: Observer
) -> None:
    heard: list[str] = []
    listening = asyncio.Event()

    async def hear() -> None:
        async with db.async_database.listen("done") as notes:
            listening.set()
            async for note in notes:
                heard.append(note.payload if isinstance(note, psycopg.Notify) else "gap")

    async with db.lifespan(app):
        task = asyncio.create_task(hear())
        await listening.wait()
        await db.async_database.notify("done", "1")
        while not heard:
            await asyncio.sleep(0.01)
    await asyncio.wait_for(task, 60)
    assert heard == ["1"]
