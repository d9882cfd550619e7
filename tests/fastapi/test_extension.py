"""What is particular to the FastAPI integration; the promises are in tests/contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import psycopg
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from psycopg import AsyncConnection

from fastapi_pgmonkey import PGMonkey
from pgmonkey import AsyncDatabase, ConfigError

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


async def test_without_a_lifespan_a_dependency_is_a_transaction_of_its_own(
    config: dict[str, Any], table: None, observer: Observer
) -> None:
    db = PGMonkey(config)
    app = FastAPI()
    add_insert(app, db)

    @app.post("/crash/now")
    async def crash(database: AsyncDatabase = Depends(db.database)) -> None:  # noqa: B008
        await database.execute("INSERT INTO t VALUES (1)")
        raise ZeroDivisionError

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.post("/201")).status_code == 201
        assert count(observer) == 1
        assert (await client.post("/crash/now")).status_code == 500
        assert count(observer) == 1
        observer.execute("ALTER TABLE t ADD UNIQUE (a) DEFERRABLE INITIALLY DEFERRED")
        assert (await client.post("/201")).status_code == 500, "the COMMIT fails before the response leaves"
    await db.async_database.close()


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
