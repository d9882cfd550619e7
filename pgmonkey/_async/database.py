"""`AsyncDatabase`: the query methods, transactions and units of work that applications use."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any, Generic, TypeVar, overload

import psycopg
from psycopg import AsyncConnection, AsyncCursor, IsolationLevel
from psycopg.errors import DeadlockDetected, QueryCanceled, SerializationFailure
from psycopg.rows import AsyncRowFactory, Row, TupleRow, tuple_row

from .._config.blueprint import blueprint
from .._config.source import Origin, Sources
from .._driver.plan import Declined, read_all, read_count, read_one, read_value, remember
from .._driver.prepared import is_refused
from .._driver.sql import Params, Statement, leaves_state, returns_rows, text_of
from .._driver.transaction_mode import TransactionMode
from .._pool.cache import cache
from .._pool.place import Label
from .fastpath import AsyncFastPath, SessionValues, set_values
from .handle import AsyncConnectionHandle, open_handle
from .lease import AsyncLease
from .unit import (
    AsyncTransactionBlock,
    AsyncUnitBlock,
    AsyncUnitOfWork,
    current_unit,
    enter,
    units,
)
from .waiting import POOL_KIND, sleep

T = TypeVar("T")

_STOPPED = QueryCanceled("the stream was closed before its end")
# Seconds to wait before a transaction is tried again: at random up to the first, doubled each time, at most the last.
_BACKOFF = (0.02, 1.0)
# How many statements are remembered as such that return rows.
_MAX_RETURNING = 1000


class AsyncDatabase(Generic[Row]):
    """A database described by one configuration, used through a pool.

    *config* is the path of a YAML file or a mapping; it is checked here, and nothing is connected before the first use.
    *row_factory* is psycopg's; rows are tuples by default.  *session_values* is called when a transaction begins and
    returns configuration parameters to be set until it ends, for row-level security: ``{"app.tenant": 42}``.

    A query method (`fetch_one`, `fetch_all`, `fetch_value`, `execute`) runs one statement.  Outside a transaction it
    borrows a connection for that statement, which is its own transaction (autocommit), and takes one round trip.
    Inside ``transaction()`` or a unit of work it is part of that transaction.
    """

    @overload
    def __init__(
        self: AsyncDatabase[TupleRow],
        config: Origin,
        *,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        row_factory: None = None,
        session_values: Callable[[], SessionValues | None] | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        config: Origin,
        *,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        row_factory: AsyncRowFactory[Row],
        session_values: Callable[[], SessionValues | None] | None = None,
    ) -> None: ...

    def __init__(
        self,
        config: Origin,
        *,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        row_factory: AsyncRowFactory[Any] | None = None,
        session_values: Callable[[], SessionValues | None] | None = None,
    ) -> None:
        self._sources = Sources()  # also what the cache knows as the holder: unlike this, it is never equal to another
        self._origin = config, resolve_env, allow_sensitive_defaults
        # Checked now: a wrong configuration is an error of the program's start, not of its first request.
        self.timeout = blueprint(self._sources.config(*self._origin), POOL_KIND).settings.timeout
        """How long a borrow waits for a free connection, in seconds."""
        self._row_factory = row_factory
        self._session_values = session_values
        self._handle: AsyncConnectionHandle | None = None
        self._fast: AsyncFastPath | None = None
        self._returning: OrderedDict[str, None] = OrderedDict()

    # -- opening and closing ----------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Open the pool now; raise `ServerUnavailableError` when no connection can be made."""
        await self._pool()

    async def close(self) -> None:
        """Release the pool, which closes when nothing else in the process uses it.  A later use opens it again."""
        self.release()

    def release(self) -> None:
        """Do as `close`, where nothing can be awaited."""
        self._handle = self._fast = None
        self._sources.clear()
        cache.release(self._sources)

    disconnect = close

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
        # Closed meanwhile, or another event loop runs: then the cache has, or makes, another handle.
        if handle is None or not handle.usable_here:
            handle = await open_handle(self._sources.config(*self._origin), POOL_KIND, self._sources)
            self._fast = handle.fast_path(self._row_factory, self._session_values and self.session_values)
            self._handle = handle
        return handle

    async def _borrow(self, *, autocommit: bool | None, timeout: float | None = None) -> AsyncLease:
        handle = await self._pool()
        lease = await handle.borrow(timeout=timeout, autocommit=autocommit)
        lease.row_factory = self._row_factory
        return lease

    async def borrow(self, *, timeout: float | None = None, label: Label | None = None) -> AsyncLease:
        """Lend a connection, not in autocommit, until the caller finishes the lease.

        *timeout* is in seconds and defaults to the pool's; *label* returns for whom it is borrowed, for log messages.
        """
        handle = self._handle
        if handle is None or not handle.usable_here:
            handle = await self._pool()
        lease = await handle.borrow(timeout=timeout, autocommit=False, label=label)
        lease.row_factory = self._row_factory
        return lease

    def session_values(self) -> SessionValues:
        """Return the configuration parameters for a transaction that begins now."""
        return (self._session_values() if self._session_values is not None else None) or {}

    # -- query methods ----------------------------------------------------------------------------------------------

    async def fetch_one(self, query: Statement, params: Params = None) -> Row | None:
        """Return the first row of *query*, or None when there is none."""
        found: Any = Declined.NO_PLAN
        fast = self._fast
        if fast is not None:
            unit = self.current_unit() if units.get() else None
            read = read_one
            found = await (fast.run(query, params, read) if unit is None else unit.answer(fast, query, params, read))
            if found.__class__ is not Declined:
                row: Row | None = found
                return row
        async with self._run(query, params, found) as cursor:
            return await cursor.fetchone()

    async def fetch_all(self, query: Statement, params: Params = None) -> list[Row]:
        """Return all rows of *query*."""
        found: Any = Declined.NO_PLAN
        fast = self._fast
        if fast is not None:
            unit = self.current_unit() if units.get() else None
            read = read_all
            found = await (fast.run(query, params, read) if unit is None else unit.answer(fast, query, params, read))
            if found.__class__ is not Declined:
                rows: list[Row] = found
                return rows
        async with self._run(query, params, found) as cursor:
            return await cursor.fetchall()

    async def fetch_value(self, query: Statement, params: Params = None) -> Any:
        """Return the first column of the first row of *query*, or None when there is no row."""
        found: Any = Declined.NO_PLAN
        fast = self._fast
        if fast is not None:
            unit = self.current_unit() if units.get() else None
            read = read_value
            found = await (fast.run(query, params, read) if unit is None else unit.answer(fast, query, params, read))
            if found.__class__ is not Declined:
                return found
        async with self._run(query, params, found, row_factory=tuple_row) as cursor:
            row = await cursor.fetchone()
        return None if row is None else row[0]

    async def execute(self, query: Statement, params: Params = None) -> int:
        """Run *query*; return the number of rows affected, -1 where the statement has none."""
        found: Any = Declined.NO_PLAN
        fast = self._fast
        if fast is not None:
            unit = self.current_unit() if units.get() else None
            read = read_count
            found = await (fast.run(query, params, read) if unit is None else unit.answer(fast, query, params, read))
            if found.__class__ is not Declined:
                count: int = found
                return count
        async with self._run(query, params, found, fetching=False) as cursor:
            return cursor.rowcount

    async def execute_many(self, query: Statement, params_seq: Iterable[Params]) -> int:
        """Run *query* for each of *params_seq* in one transaction; return the number of rows affected in all."""
        rows = [params if params is not None else () for params in params_seq]
        unit = self.current_unit()
        count = -1
        try:
            async with self._block(unit) as connection, connection.cursor() as cursor:
                try:
                    await cursor.executemany(query, rows)
                finally:
                    count = cursor.rowcount
                return count
        except psycopg.Error as error:
            if count > 0 or not is_refused(error):
                raise
        # Nothing was done, perhaps because what psycopg had prepared is outdated.
        async with self._block(unit) as connection, connection.cursor() as cursor:
            count = 0
            for params in rows:
                await cursor.execute(query, params, prepare=False)
                count += max(cursor.rowcount, 0)
        (await self._pool()).forget_plans()
        return count

    @asynccontextmanager
    async def _block(self, unit: AsyncUnitOfWork[Row] | None) -> AsyncIterator[AsyncConnection[Row]]:
        """Open a transaction, or a savepoint in *unit*."""
        if unit is None:
            async with self.transaction() as connection:
                yield connection
            return
        # As each query method, it waits for its turn in the unit, and the next one waits for it.
        async with unit.at_work():
            connection = await unit.connection()
            async with connection.transaction():
                yield connection

    def stream(self, query: Statement, params: Params = None, *, size: int = 1000) -> AsyncIterator[Row]:
        """Return an iterator over the rows of *query*, which come from a server-side cursor, *size* at a time.

        A stream has a connection and a transaction of its own, and gives it back when it ends or is closed.
        """
        return self._stream(query, params, size, self.session_values())

    async def _stream(self, query: Statement, params: Params, size: int, values: SessionValues) -> AsyncIterator[Row]:
        lease = await self._borrow(autocommit=False)
        stopped = False
        try:
            if values:
                await set_values(lease.connection, values)
            cursor = lease.connection.cursor("pgmonkey_stream")
            try:
                await cursor.execute(query, params)
                while True:
                    # Not "async for": in psycopg 3.3.0 that ends after one batch.
                    rows = await cursor.fetchmany(size)
                    for row in rows:
                        try:
                            yield row
                        except GeneratorExit:
                            stopped = True
                            raise
                    if len(rows) < max(size, 1):
                        break
            finally:
                # Not ServerCursor.close(): the end of the transaction closes it on the server, without a round trip.
                await AsyncCursor.close(cursor)
        except BaseException as error:
            # A generator that is being closed may wait, unlike a coroutine.
            await lease.finish(_STOPPED if stopped else error)
            if stopped and isinstance(error, psycopg.Error):
                return  # the caller that stops a stream does not need to know that the connection was lost
            raise
        await lease.finish()

    @asynccontextmanager
    async def _run(
        self,
        query: Statement,
        params: Params,
        declined: Declined,
        *,
        fetching: bool = True,
        row_factory: AsyncRowFactory[Any] | None = None,
    ) -> AsyncIterator[AsyncCursor[Any]]:
        """Run *query* through psycopg, which is to prepare it unless the fast path *declined* because of that."""
        unit = self.current_unit()
        if unit is not None:
            async with unit.at_work():
                connection = await unit.connection()
                async with self._execute(connection, query, params, declined, row_factory) as cursor:
                    yield cursor
            return
        handle = await self._pool()
        # Settings that hold for a transaction need one, also for a single statement.
        if handle.needs_transactions or (self._session_values is not None and self.session_values()):
            again = self._run(query, params, declined, fetching=fetching, row_factory=row_factory)
            async with self.unit_of_work(), again as cursor:
                yield cursor
            return
        # Fetching from what returns no rows is an error, after which nothing may be stored.
        text = text_of(query) if fetching else ""
        in_doubt = fetching and text not in self._returning and not returns_rows(text)
        lease = await handle.borrow(autocommit=not in_doubt)
        lease.row_factory = self._row_factory
        try:
            async with self._execute(lease.connection, query, params, declined, row_factory) as cursor:
                yield cursor
                if in_doubt and text and cursor.description is not None:
                    remember(self._returning, text, None, _MAX_RETURNING)
        except BaseException as error:
            await lease.finish(error, clean=leaves_state(query))
            raise
        await lease.finish(clean=leaves_state(query))

    @asynccontextmanager
    async def _execute(
        self,
        connection: AsyncConnection[Row],
        query: Statement,
        params: Params,
        declined: Declined,
        row_factory: AsyncRowFactory[Any] | None,
    ) -> AsyncIterator[AsyncCursor[Any]]:
        async with connection.cursor(row_factory=row_factory or connection.row_factory) as cursor:
            outdated = declined is Declined.REFUSED
            await cursor.execute(query, params, prepare=False if outdated else None)
            if outdated:
                # It was: other connections, too, have it prepared for the old shape of the tables.
                (await self._pool()).forget_plans()
            yield cursor
            if self._fast is not None:
                self._fast.learn(connection, query, params, cursor)

    # -- transactions and units of work -----------------------------------------------------------------------------

    @asynccontextmanager
    async def connection(self, *, timeout: float | None = None) -> AsyncIterator[AsyncConnection[Row]]:
        """Lend a connection of its own for a block: committed at the end, rolled back when the block raises.

        *timeout* is how long to wait for a free one, in seconds, the pool's ``timeout`` by default.
        """
        lease = await self._borrow(timeout=timeout, autocommit=None)
        try:
            if values := self.session_values():
                if lease.connection.autocommit:
                    raise psycopg.ProgrammingError(
                        "session_values hold until the end of a transaction, and the configuration says autocommit; "
                        "use transaction()"
                    )
                await set_values(lease.connection, values)
            yield lease.connection
        except BaseException as error:
            await lease.finish(error)
            raise
        await lease.finish()

    def transaction(
        self,
        *,
        isolation: IsolationLevel | str | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
    ) -> AsyncTransactionBlock[Row]:
        """Run a block in a transaction, which the query methods join; inside another one, in a savepoint of it.

        *isolation* is a `psycopg.IsolationLevel` or its name, such as ``"serializable"``.  The options are those of
        the outermost transaction, so inside another one they can be given as long as it has not begun: afterwards they
        raise `psycopg.ProgrammingError`.
        """
        return AsyncTransactionBlock(self, TransactionMode.of(isolation, read_only, deferrable))

    async def retry(
        self,
        function: Callable[[], Awaitable[T]],
        *,
        attempts: int = 5,
        isolation: IsolationLevel | str | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
    ) -> T:
        """Run *function* in a transaction of its own, and commit it; return what it returned.

        When the server could not serialise it (SQLSTATE 40001) or ended a deadlock with it (40P01), at whatever
        statement or at COMMIT, *function* runs again after a short random pause, at most *attempts* times in all; then
        that error is raised.  Raises `psycopg.ProgrammingError` inside a transaction, which could not be run again.
        """
        unit = self.current_unit()
        if unit is not None and unit.borrowed:
            raise psycopg.ProgrammingError(
                "retry() cannot run again what the transaction around it did; call it first, or outside"
            )
        mode = TransactionMode.of(isolation, read_only, deferrable)
        pause, longest = _BACKOFF

        def begin() -> AsyncUnitOfWork[Row]:
            return enter(AsyncUnitOfWork(self, mode))

        for _ in range(attempts - 1):
            try:
                async with AsyncUnitBlock(begin):
                    return await function()
            except (SerializationFailure, DeadlockDetected):
                # At random, so that those that collided do not meet again.
                await sleep(random.uniform(0, pause))  # noqa: S311
                pause = min(2 * pause, longest)
        async with AsyncUnitBlock(begin):
            return await function()

    def unit_of_work(self) -> AsyncUnitBlock[Row]:
        """Open a unit of work for a block: a `transaction` that borrows only when a query method needs a connection."""
        return AsyncUnitBlock(self.begin)

    def begin(
        self,
        *,
        isolation: IsolationLevel | str | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
        label: Label | None = None,
        on_borrow: Callable[[], None] | None = None,
    ) -> AsyncUnitOfWork[Row]:
        """Open a unit of work that the query methods of this context join, until its `finish` is called.

        *label* returns for whom it works, for log messages; *on_borrow* is called when it has borrowed a connection.
        """
        mode = TransactionMode.of(isolation, read_only, deferrable)
        return enter(AsyncUnitOfWork(self, mode, label, on_borrow))

    def current_unit(self) -> AsyncUnitOfWork[Row] | None:
        """Return the innermost unfinished unit of work of this database that the current context is in."""
        return current_unit(self)
