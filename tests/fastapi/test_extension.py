"""What is particular to the FastAPI integration; the promises are in tests/contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import httpx
import psycopg
import pytest
from fastapi import Depends, FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient
from psycopg import AsyncConnection
from starlette.background import BackgroundTask

from fastapi_pgmonkey import PGMonkey
from pgmonkey import AsyncDatabase, ConfigError, DeadlineExceededError

Observer = psycopg.Connection[Any]


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with app.router.lifespan_context(app) as state:
        app.state.yielded = state
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


@pytest.fixture
def table(observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")


def count(observer: Observer) -> int:
    row = observer.execute("SELECT count(*) FROM t").fetchone()
    assert row is not None
    return int(row[0])


def add_insert(app: FastAPI, db: PGMonkey) -> None:
    @app.post("/{status}")
    async def insert(status: int, connection: AsyncConnection[Any] = Depends(db.connection)) -> JSONResponse:  # noqa: B008
        await connection.execute("INSERT INTO t VALUES (1)")
        return JSONResponse({}, status)


def test_a_wrong_configuration_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        PGMonkey(tmp_path / "nowhere.yaml")


async def test_a_server_that_refuses_fails_the_start_with_its_own_words(config: dict[str, Any]) -> None:
    config["connection_settings"]["password"] = "wrong"
    app = FastAPI(lifespan=PGMonkey(config).lifespan)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        async with serving(app):
            pass


async def test_init_app_goes_around_the_applications_own_lifespan(
    config: dict[str, Any], table: None, observer: Observer
) -> None:
    db = PGMonkey(config)
    order: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, int]]:
        order.append(f"start {await db.async_database.fetch_value('SELECT 1')}")
        yield {"answer": 42}
        order.append(f"end {await db.async_database.fetch_value('SELECT 2')}")

    app = FastAPI(lifespan=lifespan)
    db.init_app(app)
    add_insert(app, db)
    async with serving(app) as client:
        assert app.state.yielded == {"answer": 42}
        assert (await client.post("/201")).status_code == 201
        assert (await client.post("/409")).status_code == 409
    assert count(observer) == 1
    assert order == ["start 1", "end 2"]
    assert db.async_database.stats() == {}


async def test_a_lifespan_can_be_entered_again(config: dict[str, Any], table: None, observer: Observer) -> None:
    db = PGMonkey(config)
    app = FastAPI(lifespan=db.lifespan)
    add_insert(app, db)
    for _ in range(3):
        async with serving(app) as client:
            assert (await client.post("/409")).status_code == 409
    assert count(observer) == 0


@pytest.mark.parametrize("other", [False, True], ids=["nothing set up", "another one set up"])
async def test_dependencies_refuse_an_application_that_is_not_set_up(
    config: dict[str, Any], table: None, observer: Observer, other: bool
) -> None:
    db = PGMonkey(config)
    app = FastAPI(lifespan=PGMonkey(config).lifespan if other else None)
    for number, dependency in enumerate((db.connection, db.sync_connection, db.database)):

        def view(given: object = Depends(dependency)) -> JSONResponse:
            return JSONResponse({})

        async def async_view(given: object = Depends(dependency)) -> JSONResponse:
            return JSONResponse({})

        app.get(f"/view/{number}")(view)
        app.get(f"/async_view/{number}")(async_view)
    add_insert(app, db)
    message = "this PGMonkey is not the one that is set up" if other else "no PGMonkey is set up on this application"
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            with pytest.raises(RuntimeError, match=message):
                await client.post("/409")
            for number in range(3):
                for kind in ("view", "async_view"):
                    with pytest.raises(RuntimeError, match=message):
                        await client.get(f"/{kind}/{number}")
    assert count(observer) == 0


@pytest.mark.parametrize("transaction", ["request", "statement"])
@pytest.mark.parametrize("where", ["the application", "a mounted one", "the one around it"])
def test_dependencies_work_wherever_their_database_is_set_up(
    config: dict[str, Any], transaction: Literal["request", "statement"], where: str
) -> None:
    db = PGMonkey(config, transaction=transaction)
    app, inner = FastAPI(), FastAPI()
    serving_app = app if where == "the application" else inner
    app.mount("/inner", inner)
    db.init_app(inner if where == "a mounted one" else app)

    @serving_app.get("/connection")
    async def connection(connection: AsyncConnection[Any] = Depends(db.connection)) -> object:  # noqa: B008
        return await (await connection.execute("SELECT 1")).fetchone()

    @serving_app.get("/sync_connection")
    def sync_connection(connection: psycopg.Connection[Any] = Depends(db.sync_connection)) -> object:  # noqa: B008
        return connection.execute("SELECT 1").fetchone()

    @serving_app.get("/database")
    async def database(database: AsyncDatabase = Depends(db.database)) -> object:  # noqa: B008
        return await database.fetch_one("SELECT 1")

    @serving_app.websocket("/socket")
    async def socket(socket: WebSocket, database: AsyncDatabase = Depends(db.database)) -> None:  # noqa: B008
        await socket.accept()
        await socket.send_json(await database.fetch_one("SELECT 1"))

    prefix = "" if serving_app is app else "/inner"
    with TestClient(app) as client:
        for each in ("connection", "sync_connection", "database"):
            assert client.get(f"{prefix}/{each}").json() == [1]
        with client.websocket_connect(f"{prefix}/socket") as session:
            assert session.receive_json() == [1]


async def test_dependencies_of_a_request_share_its_connection(config: dict[str, Any]) -> None:
    db = PGMonkey(config)
    app = FastAPI(lifespan=db.lifespan)

    async def who(connection: AsyncConnection[Any] = Depends(db.connection)) -> int:  # noqa: B008
        return connection.info.backend_pid

    @app.get("/")
    async def view(
        pid: int = Depends(who),
        connection: AsyncConnection[Any] = Depends(db.connection),  # noqa: B008
        database: AsyncDatabase = Depends(db.database),  # noqa: B008
    ) -> list[int]:
        return [pid, connection.info.backend_pid, await database.fetch_value("SELECT pg_backend_pid()")]

    async with serving(app) as client:
        assert len(set((await client.get("/")).json())) == 1


async def test_dependencies_can_be_overridden(config: dict[str, Any]) -> None:
    db = PGMonkey(config)
    app = FastAPI()
    app.dependency_overrides[db.connection] = lambda: "another"

    @app.get("/")
    async def view(connection: Any = Depends(db.connection)) -> Any:  # noqa: B008
        return connection

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/")).json() == "another"


async def test_error_handlers_find_no_broken_transaction(config: dict[str, Any], table: None) -> None:
    db = PGMonkey(config)
    app = FastAPI(lifespan=db.lifespan)

    @app.exception_handler(psycopg.errors.UndefinedTable)
    async def handler(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"rows": await db.async_database.fetch_value("SELECT count(*) FROM t")}, 418)

    @app.get("/")
    async def view(database: AsyncDatabase = Depends(db.database)) -> None:  # noqa: B008
        await database.execute("INSERT INTO t VALUES (1)")
        await database.execute("SELECT * FROM missing")

    async with serving(app) as client:
        answer = await client.get("/")
        assert (answer.status_code, answer.json()) == (418, {"rows": 0})


async def test_a_streamed_body_has_a_connection_of_its_own(config: dict[str, Any]) -> None:
    db = PGMonkey(config)
    app = FastAPI(lifespan=db.lifespan)

    @app.get("/")
    async def view(database: AsyncDatabase = Depends(db.database)) -> StreamingResponse:  # noqa: B008
        rows = database.stream("SELECT generate_series(1, 3000)")
        return StreamingResponse(f"{row[0]}\n" async for row in rows)

    async with serving(app) as client:
        assert (await client.get("/")).text.split() == [str(i) for i in range(1, 3001)]
        stats = db.async_database.stats()
        assert stats["pool_available"] == stats["pool_size"]


async def test_a_cancelled_request_gives_its_synchronous_connection_back(config: dict[str, Any]) -> None:
    db = PGMonkey(config)
    unit = db.sync_database.begin()
    await anyio.to_thread.run_sync(unit.connection)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await db.threads.end(unit, unit.finish, None)
    stats = db.sync_database.stats()
    assert stats["pool_available"] == stats["pool_size"] == 1


# -- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, -1, "soon", float("nan")])
def test_a_deadline_is_a_number_of_seconds(seconds: Any, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="deadline: expected a positive number of seconds"):
        PGMonkey(config, deadline=seconds)


@pytest.mark.parametrize("transaction", ["request", "statement"])
async def test_the_deadline_of_a_request(
    transaction: Literal["request", "statement"], config: dict[str, Any], table: None, observer: Observer
) -> None:
    db = PGMonkey(config, transaction=transaction, deadline=30, deadline_header="X-Timeout-Ms")
    app = FastAPI()
    db.init_app(app)
    seen: list[Any] = []

    async def afterwards() -> None:
        seen.append(await db.async_database.fetch_value("SELECT 7 FROM pg_sleep(2.5)"))

    @app.get("/")
    async def late(database: AsyncDatabase[Any] = Depends(db.database)) -> None:  # noqa: B008
        await database.execute("INSERT INTO t VALUES (1)")
        await database.execute("SELECT pg_sleep(60)")

    @app.get("/sync")
    def late_in_a_thread() -> None:
        db.sync_database.execute("INSERT INTO t VALUES (1)")
        db.sync_database.execute("SELECT pg_sleep(60)")

    @app.get("/background")
    async def background() -> JSONResponse:
        return JSONResponse({}, background=BackgroundTask(afterwards))

    async with serving(app) as client:
        for path in ("/", "/sync"):
            answer = await client.get(path, headers={"X-Timeout-Ms": "2000"})
            assert (answer.status_code, answer.json()) == (504, {"detail": "The request took too long."})
        assert count(observer) == (0 if transaction == "request" else 2)
        # What runs after the response has all the time that it needs.
        assert (await client.get("/background", headers={"X-Timeout-Ms": "2000"})).status_code == 200
        assert seen == [7]

    async def handler(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(str(error), 418)

    handled = FastAPI()
    handled.add_exception_handler(DeadlineExceededError, handler)
    db.init_app(handled)
    handled.get("/")(late)
    async with serving(handled) as client:
        answer = await client.get("/", headers={"X-Timeout-Ms": "2000"})
        assert (answer.status_code, answer.json()) == (418, "the statement did not end within 2 s (X-Timeout-Ms)")
