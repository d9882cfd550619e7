"""`AsyncDatabase`: the verbs, transactions and units of work that applications use."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Union

import psycopg
from psycopg import AsyncConnection, AsyncCursor, IsolationLevel
from psycopg.errors import QueryCanceled
from psycopg.rows import AsyncRowFactory
from psycopg.sql import SQL, Composable, Composed

if TYPE_CHECKING:
    from typing_extensions import LiteralString

from ._blueprint import leaves_state
from ._colour_async import POOL_KIND, Lock
from ._connection_async import AsyncConnectionHandle
from ._lease_async import AsyncLease
from ._manager import PGConnectionManager
from .errors import GivenBackError

# Text that comes from the program: as psycopg, let type checkers refuse what comes from elsewhere.
Statement = Union["LiteralString", bytes, SQL, Composed]
Params = Sequence[Any] | Mapping[str, Any] | None

_STOPPED = QueryCanceled("the stream was closed before its end")


class AsyncDatabase:
    """A database described by one configuration, used through a pool.

    *config* is the path of a YAML file or a mapping; it is checked here, and nothing is connected before the first use.
    *row_factory* is psycopg's; rows are tuples by default.

    The verbs run one statement: outside a transaction on a connection borrowed for just that statement, in one round
    trip; inside ``transaction()`` or a unit of work on its connection, as part of it.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | Mapping[str, Any],
        *,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        row_factory: AsyncRowFactory[Any] | None = None,
    ) -> None:
        self._manager = PGConnectionManager()
        options = {"resolve_env": resolve_env, "allow_sensitive_defaults": allow_sensitive_defaults}
        self._manager.load(config, **options)
        get: Any = self._manager.get_database_connection
        if isinstance(config, Mapping):
            get = self._manager.get_database_connection_from_dict
        self._get: Callable[[], Awaitable[AsyncConnectionHandle]] = partial(get, config, POOL_KIND, **options)
        self._row_factory = row_factory
        self._handle: AsyncConnectionHandle | None = None

    # -- life -----------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Open the pool now; raise what psycopg raises when the server cannot be reached."""
        await self._pool()

    async def close(self) -> None:
        """Let go of the pool, which closes when nobody else in the process uses it.  A later use opens it again."""
        self._handle = None
        self._manager.clear_cache()

    async def disconnect(self) -> None:
        """Do what `close` does."""
        await self.close()

    async def ping(self) -> float:
        """Ask the server for a sign of life; return the seconds it took, or raise what psycopg raises."""
        started = perf_counter()
        await self.fetch_value("SELECT 1")
        return perf_counter() - started

    def stats(self) -> dict[str, int]:
        """Return the pool's counters, named as in psycopg_pool; empty before the first use."""
        return {} if self._handle is None else self._handle.stats()

    async def _pool(self) -> AsyncConnectionHandle:
        handle = self._handle
        if handle is None or not handle.usable_here:
            handle = self._handle = await self._get()
        return handle

    async def _borrow(self, autocommit: bool | None = None) -> AsyncLease:
        pool = await self._pool()
        lease = await pool.borrow(autocommit=autocommit)
        if self._row_factory is not None:
            lease.connection.row_factory = self._row_factory
        return lease

    # -- the verbs ------------------------------------------------------------------------------------------------

    async def fetch_one(self, query: Statement, params: Params = None) -> Any:
        """Return the first row of *query*, or None when there is none."""
        async with self._run(query, params) as cursor:
            return await cursor.fetchone()

    async def fetch_all(self, query: Statement, params: Params = None) -> list[Any]:
        """Return all rows of *query*."""
        async with self._run(query, params) as cursor:
            return await cursor.fetchall()

    async def fetch_value(self, query: Statement, params: Params = None) -> Any:
        """Return the first column of the first row of *query*, or None when there is no row."""
        async with self._run(query, params) as cursor:
            row = await cursor.fetchone()
        if row is None:
            return None
        return next(iter(row.values())) if isinstance(row, Mapping) else row[0]

    async def execute(self, query: Statement, params: Params = None) -> int:
        """Run *query*; return the number of rows affected, -1 where the statement has none."""
        async with self._run(query, params) as cursor:
            return cursor.rowcount

    async def execute_many(self, query: Statement, params_seq: Iterable[Params]) -> int:
        """Run *query* for each of *params_seq* in one transaction; return the number of rows affected in all."""
        async with self.transaction() as connection, connection.cursor() as cursor:
            await cursor.executemany(query, [params if params is not None else () for params in params_seq])
            return cursor.rowcount

    async def stream(self, query: Statement, params: Params = None, *, size: int = 1000) -> AsyncIterator[Any]:
        """Yield the rows of *query* through a server-side cursor, fetching *size* rows at a time.

        A stream has a connection and a read-only view of its own, and gives it back when it ends or is closed.
        """
        lease = await self._borrow(autocommit=False)
        try:
            async with lease.connection.cursor("pgmonkey_stream") as cursor:
                cursor.itersize = size
                await cursor.execute(query, params)
                async for row in cursor:
                    yield row
        except GeneratorExit:
            await lease.finish(_STOPPED)  # a generator that is being closed may wait, unlike a coroutine
            raise
        except BaseException as error:
            await lease.finish(error)
            raise
        await lease.finish()

    @asynccontextmanager
    async def _run(self, query: Statement, params: Params) -> AsyncIterator[AsyncCursor[Any]]:
        unit = self.current_unit()
        if unit is not None:
            connection = await unit.connection()
            async with await connection.execute(query, params) as cursor:
                yield cursor
            return
        lease = await self._borrow(autocommit=True)
        try:
            async with await lease.connection.execute(query, params) as cursor:
                yield cursor
        except BaseException as error:
            await lease.finish(error, clean=_leaves_state(query))
            raise
        await lease.finish(clean=_leaves_state(query))

    # -- transactions and units of work ---------------------------------------------------------------------------

    @asynccontextmanager
    async def connection(self, *, timeout: float | None = None) -> AsyncIterator[AsyncConnection[Any]]:
        """Lend a connection of its own for a block: committed at the end, rolled back when the block raises.

        *timeout* is how long to wait for a free one, in seconds, the pool's ``timeout`` by default.
        """
        pool = await self._pool()
        async with pool.connection(timeout=timeout) as connection:
            if self._row_factory is not None:
                connection.row_factory = self._row_factory
            yield connection

    @asynccontextmanager
    async def transaction(
        self,
        *,
        isolation: IsolationLevel | str | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
    ) -> AsyncIterator[AsyncConnection[Any]]:
        """Run a block in a transaction, which the verbs join; inside another one, in a savepoint of it.

        *isolation* is a `psycopg.IsolationLevel` or its name, such as ``"serializable"``.  The options are those of
        the outermost transaction: raises `psycopg.ProgrammingError` when a nested one gives any.
        """
        unit = self.current_unit()
        options = (isolation, read_only, deferrable)
        if unit is not None:
            if options != (None, None, None):
                raise psycopg.ProgrammingError("a transaction inside another takes its isolation and mode from it")
            connection = await unit.connection()
            async with connection.transaction():
                yield connection
            return
        async with self.unit_of_work() as unit:
            connection = await unit.connection()
            if isolation is not None:
                level = isolation if isinstance(isolation, IsolationLevel) else _level(isolation)
                await connection.set_isolation_level(level)
            await connection.set_read_only(read_only)
            await connection.set_deferrable(deferrable)
            yield connection

    @asynccontextmanager
    async def unit_of_work(self) -> AsyncIterator[AsyncUnitOfWork]:
        """Open a unit of work for a block: it borrows when the first verb needs a connection, and never otherwise.

        Committed at the end of the block, rolled back when the block raises.
        """
        unit = self.begin()
        try:
            yield unit
        except BaseException as error:
            await unit.finish(error)
            raise
        await unit.finish()

    def begin(self) -> AsyncUnitOfWork:
        """Open a unit of work that the verbs of this context join, until its `finish` is called."""
        unit = AsyncUnitOfWork(self)
        _units.set((*_units.get(), unit))
        return unit

    def current_unit(self) -> AsyncUnitOfWork | None:
        """Return the innermost unfinished unit of work of this database that the current context is in."""
        return next((unit for unit in reversed(_units.get()) if unit.database is self and not unit.finished), None)


_units: ContextVar[tuple[AsyncUnitOfWork, ...]] = ContextVar("pgmonkey_units", default=())


class AsyncUnitOfWork:
    """What a request, or a transaction block, does: all of it on one connection, committed or rolled back as one."""

    def __init__(self, database: AsyncDatabase) -> None:
        self.database = database
        self.finished = False
        self._lease: AsyncLease | None = None
        # Two tasks of one request may both be the first to need the connection.
        self._borrowing = Lock()

    async def connection(self) -> AsyncConnection[Any]:
        """Return the connection of this unit, borrowed at the first call."""
        if self._lease is None:
            async with self._borrowing:
                if self._lease is None and not self.finished:
                    lease = await self.database._borrow(autocommit=False)
                    if self.finished:  # meanwhile, by another task of the request
                        lease.abandon()
                    else:
                        self._lease = lease
                if self._lease is None:
                    raise GivenBackError("this unit of work is finished, and its connection was given back")
        return self._lease.connection

    @property
    def borrowed(self) -> bool:
        """Whether a connection was needed."""
        return self._lease is not None

    async def finish(self, error: BaseException | None = None) -> None:
        """Commit, or roll back when there is an *error*, and give the connection back; a second call does nothing."""
        if not self.finished:
            self.finished = True
            _units.set(tuple(unit for unit in _units.get() if not unit.finished))
            if self._lease is not None:
                await self._lease.finish(error)


def _leaves_state(query: Statement) -> bool:
    if isinstance(query, Composable):
        return leaves_state(query.as_string(None))
    return leaves_state(query.decode(errors="replace") if isinstance(query, bytes) else query)


def _level(name: str) -> IsolationLevel:
    try:
        return IsolationLevel[name.upper().replace(" ", "_")]
    except KeyError:
        known = ", ".join(level.name.lower().replace("_", " ") for level in IsolationLevel)
        raise psycopg.ProgrammingError(f"{name!r} is not an isolation level; use one of {known}") from None
