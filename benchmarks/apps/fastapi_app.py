"""``uvicorn benchmarks.apps.fastapi_app:app``, with the library named by the environment."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI

DSN, LIBRARY, SIZE = os.environ["BENCHMARK_DSN"], os.environ["BENCHMARK_LIBRARY"], 8
QUERY = "SELECT id, name FROM things WHERE id = %s"


def thing(row: Any) -> dict[str, Any]:
    return {"id": row[0], "name": row[1]}


if LIBRARY == "none":
    app = FastAPI()

    @app.get("/things/{number}")
    async def without(number: int) -> dict[str, Any]:
        return thing((number, f"thing {number}"))

elif LIBRARY == "libpq alone":
    from .bound import InTasks

    @asynccontextmanager
    async def connect(app: FastAPI) -> AsyncIterator[None]:
        app.state.bound = InTasks(DSN, SIZE)
        yield

    app = FastAPI(lifespan=connect)

    @app.get("/things/{number}")
    async def by_libpq(number: int) -> dict[str, Any]:
        return thing(await app.state.bound.fetch(number))

elif LIBRARY.startswith("pgmonkey"):
    from psycopg import AsyncConnection, Connection

    from fastapi_pgmonkey import PGMonkey
    from pgmonkey import AsyncDatabase

    pool = {"min_size": SIZE, "max_size": SIZE}
    db = PGMonkey({"connection_settings": {"conninfo": DSN}, "pool_settings": pool, "async_pool_settings": pool})
    app = FastAPI(lifespan=db.lifespan)

    async def by_database(number: int, database: Annotated[AsyncDatabase[Any], Depends(db.database)]) -> dict[str, Any]:
        return thing(await database.fetch_one(QUERY, (number,)))

    async def by_connection(
        number: int, connection: Annotated[AsyncConnection[Any], Depends(db.connection)]
    ) -> dict[str, Any]:
        return thing(await (await connection.execute(QUERY, (number,))).fetchone())

    def in_a_thread(number: int, connection: Annotated[Connection[Any], Depends(db.sync_connection)]) -> dict[str, Any]:
        return thing(connection.execute(QUERY, (number,)).fetchone())

    ways: dict[str, Any] = {"pgmonkey, Depends(db.connection)": by_connection, "pgmonkey, def": in_a_thread}
    app.add_api_route("/things/{number}", ways.get(LIBRARY, by_database))

elif LIBRARY == "psycopg_pool, def":
    from psycopg_pool import ConnectionPool

    sync_connections = ConnectionPool(DSN, min_size=SIZE, max_size=SIZE, open=True)
    app = FastAPI()

    @app.get("/things/{number}")
    def by_sync_pool(number: int) -> dict[str, Any]:
        with sync_connections.connection() as connection:
            return thing(connection.execute(QUERY, (number,)).fetchone())

elif LIBRARY == "psycopg_pool":
    from psycopg import AsyncConnection
    from psycopg_pool import AsyncConnectionPool

    connections = AsyncConnectionPool(DSN, min_size=SIZE, max_size=SIZE, open=False)

    @asynccontextmanager
    async def open_pool(app: FastAPI) -> AsyncIterator[None]:
        async with connections:
            yield

    app = FastAPI(lifespan=open_pool)

    async def borrowed() -> AsyncIterator[AsyncConnection[Any]]:
        async with connections.connection() as connection:
            yield connection

    @app.get("/things/{number}")
    async def by_psycopg_pool(
        number: int, connection: Annotated[AsyncConnection[Any], Depends(borrowed)]
    ) -> dict[str, Any]:
        return thing(await (await connection.execute(QUERY, (number,))).fetchone())

elif LIBRARY.startswith("asyncpg"):
    import asyncpg

    @asynccontextmanager
    async def open_asyncpg(app: FastAPI) -> AsyncIterator[None]:
        async with asyncpg.create_pool(DSN, min_size=SIZE, max_size=SIZE) as app.state.pool:
            yield

    app = FastAPI(lifespan=open_asyncpg)

    async def acquired() -> AsyncIterator[Any]:
        async with app.state.pool.acquire() as connection:
            if LIBRARY == "asyncpg":
                yield connection
                return
            async with connection.transaction():
                yield connection

    @app.get("/things/{number}")
    async def by_asyncpg(number: int, connection: Annotated[Any, Depends(acquired)]) -> dict[str, Any]:
        return thing(await connection.fetchrow(QUERY.replace("%s", "$1"), number))

elif LIBRARY == "SQLAlchemy":
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

    engine = create_async_engine(DSN.replace("postgresql://", "postgresql+asyncpg://"), pool_size=SIZE, max_overflow=0)
    sessions = async_sessionmaker(engine)
    STATEMENT = text(QUERY.replace("%s", ":id"))
    app = FastAPI()

    async def session() -> AsyncIterator[AsyncSession]:
        async with sessions() as current:
            yield current

    @app.get("/things/{number}")
    async def by_sqlalchemy(number: int, current: Annotated[AsyncSession, Depends(session)]) -> dict[str, Any]:
        return thing((await current.execute(STATEMENT, {"id": number})).first())
