"""The libraries for tasks: each a context manager that gives, for a workload, a coroutine function to call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import psycopg
import sqlalchemy
from psycopg_pool import AsyncConnectionPool
from sqlalchemy.ext.asyncio import create_async_engine
from sqlspec import SQLSpec
from sqlspec.adapters.asyncpg import AsyncpgConfig

from pgmonkey import AsyncDatabase

from .sync_candidates import SIZE, _config, _read
from .workloads import Workload

Make = Callable[[Workload], Callable[[], Awaitable[object]]]


async def _read_async(cursor: Any, workload: Workload) -> object:
    if workload.rows == "one":
        return await cursor.fetchone()
    return await cursor.fetchall() if workload.rows == "all" else cursor.rowcount


@asynccontextmanager
async def held_open(dsn: str) -> AsyncIterator[Make]:
    """One psycopg connection, held open, in autocommit; its tasks wait for each other."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:

        def make(w: Workload) -> Callable[[], Awaitable[object]]:
            async def call() -> object:
                return await _read_async(await connection.execute(w.sql.encode(), w.params or None), w)

            return call

        yield make


@asynccontextmanager
async def pool_idiom(dsn: str) -> AsyncIterator[Make]:
    """AsyncConnectionPool as its documentation shows it."""
    async with AsyncConnectionPool(dsn, min_size=SIZE, max_size=SIZE, open=False) as pool:
        await pool.wait()

        def make(w: Workload) -> Callable[[], Awaitable[object]]:
            async def call() -> object:
                async with pool.connection() as connection:
                    return await _read_async(await connection.execute(w.sql.encode(), w.params or None), w)

            return call

        yield make


@asynccontextmanager
async def asyncpg_pool(dsn: str) -> AsyncIterator[Make]:
    """Asyncpg's pool."""
    async with asyncpg.create_pool(dsn, min_size=SIZE, max_size=SIZE) as pool:

        def make(w: Workload) -> Callable[[], Awaitable[object]]:
            method = {"one": pool.fetchrow, "all": pool.fetch, "none": pool.execute}[w.rows]
            return lambda: method(w.dollar_sql, *w.params)

        yield make


@asynccontextmanager
async def asyncpg_held_open(dsn: str) -> AsyncIterator[Make]:
    """One connection of asyncpg, held open; its tasks wait for each other."""
    connection, lock = await asyncpg.connect(dsn), asyncio.Lock()

    def make(w: Workload) -> Callable[[], Awaitable[object]]:
        method = {"one": connection.fetchrow, "all": connection.fetch, "none": connection.execute}[w.rows]

        async def call() -> object:
            async with lock:
                return await method(w.dollar_sql, *w.params)

        return call

    yield make
    await connection.close()


@asynccontextmanager
async def asyncpg_transaction(dsn: str) -> AsyncIterator[Make]:
    """Asyncpg's pool, with a transaction."""
    async with asyncpg.create_pool(dsn, min_size=SIZE, max_size=SIZE) as pool:

        def make(w: Workload) -> Callable[[], Awaitable[object]]:
            name = {"one": "fetchrow", "all": "fetch", "none": "execute"}[w.rows]

            async def call() -> object:
                async with pool.acquire() as connection, connection.transaction():
                    return await getattr(connection, name)(w.dollar_sql, *w.params)

            return call

        yield make


@asynccontextmanager
async def sqlalchemy_core(dsn: str) -> AsyncIterator[Make]:
    """SQLAlchemy Core over asyncpg, in autocommit."""
    url = dsn.replace("postgresql://", "postgresql+asyncpg://")
    engine = create_async_engine(url, pool_size=SIZE, max_overflow=0, isolation_level="AUTOCOMMIT")

    def make(w: Workload) -> Callable[[], Awaitable[object]]:
        statement, params = sqlalchemy.text(w.named_sql), w.named_params

        async def call() -> object:
            async with engine.connect() as connection:
                return _read(await connection.execute(statement, params), w)

        return call

    yield make
    await engine.dispose()


@asynccontextmanager
async def sqlspec_session(dsn: str) -> AsyncIterator[Make]:
    """Sqlspec's session over asyncpg's pool."""
    spec = SQLSpec()
    config = {"dsn": dsn, "min_size": SIZE, "max_size": SIZE}
    registered: Any = spec.add_config(AsyncpgConfig(connection_config=config))

    def make(w: Workload) -> Callable[[], Awaitable[object]]:
        method = {"one": "select_one", "all": "select", "none": "execute"}[w.rows]

        async def call() -> object:
            async with spec.provide_session(registered) as session:
                return await getattr(session, method)(w.dollar_sql, *w.params)

        return call

    yield make
    await registered.close_pool()


@asynccontextmanager
async def pgmonkey_query_method(dsn: str) -> AsyncIterator[Make]:
    """Pgmonkey's `fetch_one`, `fetch_all` and `execute`."""
    database = AsyncDatabase(_config(dsn))
    await database.connect()

    def make(w: Workload) -> Callable[[], Awaitable[object]]:
        methods = {"one": database.fetch_one, "all": database.fetch_all, "none": database.execute}
        method: Any = methods[w.rows]
        return lambda: method(w.sql, w.params or None)

    yield make
    await database.close()


@asynccontextmanager
async def pgmonkey_transaction(dsn: str) -> AsyncIterator[Make]:
    """Pgmonkey's `transaction`, with one statement in it."""
    database = AsyncDatabase(_config(dsn))
    await database.connect()

    def make(w: Workload) -> Callable[[], Awaitable[object]]:
        async def call() -> object:
            async with database.transaction() as connection:
                return await _read_async(await connection.execute(w.sql.encode(), w.params or None), w)

        return call

    yield make
    await database.close()


@asynccontextmanager
async def pgmonkey_request(dsn: str) -> AsyncIterator[Make]:
    """Pgmonkey's unit of work, which is what a request has, with one query method in it."""
    database = AsyncDatabase(_config(dsn))
    await database.connect()

    def make(w: Workload) -> Callable[[], Awaitable[object]]:
        methods = {"one": database.fetch_one, "all": database.fetch_all, "none": database.execute}
        method: Any = methods[w.rows]

        async def call() -> object:
            async with database.unit_of_work():
                return await method(w.sql, w.params or None)

        return call

    yield make
    await database.close()


BOUNDS = ("psycopg, held open", "asyncpg, held open")
CANDIDATES = {
    "psycopg, held open": held_open,
    "AsyncConnectionPool, its idiom": pool_idiom,
    "asyncpg, held open": asyncpg_held_open,
    "asyncpg's pool": asyncpg_pool,
    "asyncpg's pool, a transaction": asyncpg_transaction,
    "SQLAlchemy Core over asyncpg": sqlalchemy_core,
    "sqlspec over asyncpg": sqlspec_session,
    "pgmonkey, query method": pgmonkey_query_method,
    "pgmonkey, request with one query method": pgmonkey_request,
    "pgmonkey, transaction": pgmonkey_transaction,
}
