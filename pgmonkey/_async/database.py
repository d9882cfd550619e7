"""`AsyncDatabase`: the query methods, transactions and units of work that applications use."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, cast, overload

import psycopg
from psycopg import AsyncConnection, IsolationLevel
from psycopg.cursor_async import AsyncCursor
from psycopg.errors import (
    ConnectionTimeout,
    DeadlockDetected,
    QueryCanceled,
    SerializationFailure,
)
from psycopg.rows import AsyncRowFactory, Row, RowMaker, TupleRow, tuple_row

from .._config.blueprint import blueprint
from .._config.source import Origin, Sources, anchored
from .._driver.advisory import AdvisoryLock, LockName
from .._driver.copying import CopyOptions, Layout, TableName
from .._driver.deadlines import Deadline, check_wait, earlier, until
from .._driver.files import CopyFile
from .._driver.plan import (
    Declined,
    Read,
    is_psycopgs,
    read_all,
    read_count,
    read_exactly_one,
    read_one,
    read_value,
    read_values,
    remember,
)
from .._driver.psycopg_types import RowFactory as AnyRowFactory
from .._driver.sql import Params, Plain, Statement, returns_rows, text_of
from .._driver.transaction_mode import DEFAULT, TransactionMode
from .._pool.cache import Holder, cache
from .._pool.ledger import name_of
from .._pool.place import Label
from .._pool.schedule import uniform
from .._pool.scopes import Ask, OnDemand, SessionValues, Shared, ask, enter, find, inside, is_asking
from ..errors import PoolClosedError, PoolTimeoutError
from . import bulk, fetching, locks
from .batch import AsyncBatch
from .blocks import AsyncTransactionBlock, AsyncUnitBlock
from .bulk import AsyncRows
from .cursor import own_cursor
from .fastpath import AsyncFastPath, begin_anew, may_repeat
from .fetching import COLUMNS, NOTHING, Fetch, Given, as_it_is, makes_rows
from .guard import WITHOUT_VALUES, AsyncGuard
from .handle import AsyncConnectionHandle, handle_for, open_handle
from .lease import AsyncLease
from .listener import AsyncListener, AsyncListening
from .nested import AsyncAttempt, AsyncNested
from .pool import AT_ONCE
from .unit import AsyncUnitOfWork, current_unit, unit_of
from .waiting import POOL_KIND, sleep

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")

_STOPPED = QueryCanceled("the stream was closed before its end")
# Seconds to wait before a transaction is tried again: at random up to the first, doubled each time, at most the last.
_BACKOFF = (0.02, 1.0)
# How many statements are remembered as such that return rows.
_MAX_RETURNING = 1000


class AsyncDatabase(Generic[Row]):
    """A database described by one configuration, used through a pool.

    *config* is the path of a YAML file, a URL or a mapping.  It is checked now; the first use connects.  *profile*
    chooses one of its ``profiles``.  Messages about a mapping start with *config_name*.

    *row_factory* is psycopg's; rows are tuples by default.  *session_values* returns configuration parameters that are
    set until the end of a transaction, for row-level security: ``{"app.tenant": 42}``.  It is called before a
    transaction starts and before each query method in it.  It may use the query methods, which do not call it again.

    A query method (`fetch_one`, `fetch_all`, `fetch_value`, `execute` and the like) runs one statement.  Outside a
    transaction it borrows a connection for that statement, which is its own transaction (autocommit), and takes one
    round trip.  Inside ``transaction()`` or a unit of work it is part of that transaction.

    Those that return rows make them by a *row_factory* for this call, if given.  With a *timeout*, in seconds, all that
    a call or a block does ends by then: the statement is cancelled, its connection closed, and so its transaction
    lost, and `DeadlineExceededError` raised; a wait for a connection raises what the pool raises.
    """

    @overload
    def __init__(
        self: AsyncDatabase[TupleRow],
        config: Origin,
        *,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        profile: str | None = None,
        row_factory: None = None,
        session_values: Callable[[], SessionValues | None] | None = None,
        config_name: str = "configuration",
    ) -> None: ...

    @overload
    def __init__(
        self,
        config: Origin,
        *,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        profile: str | None = None,
        row_factory: AsyncRowFactory[Row],
        session_values: Callable[[], SessionValues | None] | None = None,
        config_name: str = "configuration",
    ) -> None: ...

    def __init__(
        self,
        config: Origin,
        *,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        profile: str | None = None,
        row_factory: AsyncRowFactory[Any] | None = None,
        session_values: Callable[[], SessionValues | None] | None = None,
        config_name: str = "configuration",
    ) -> None:
        self._sources = Sources()
        self._holder = Holder()
        path = None if isinstance(config, Mapping) else anchored(config)
        self._origin = config, resolve_env, allow_sensitive_defaults, profile, config_name, path
        # Checked now: a wrong configuration is an error of the program's start, not of its first request.
        self.timeout = blueprint(self._sources.config(*self._origin), POOL_KIND).settings.timeout
        """How long to wait for a free connection, in seconds."""
        self._row_factory = row_factory
        self.ask: Ask | None = session_values
        """The function that returns the session values."""
        self.deadline: Callable[[], Deadline | None] | None = None
        """What returns when all statements of the present request must have ended."""
        self.framework: str | None = None
        """The framework that uses it, for `query_tags`; set before the first use."""
        self._handle: AsyncConnectionHandle | None = None
        self._fast: AsyncFastPath | None = None
        self._returning: OrderedDict[str, None] = OrderedDict()

    # -- opening and closing ----------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Open the pool now; raise `ServerUnavailableError` if no connection can be made."""
        await self._pool()

    async def close(self) -> None:
        """Release the pool, which closes unless something else in the process uses it.

        Lent connections are closed when they are given back.  A later use opens the pool again, and so do threads and
        tasks that are waiting for a connection at this moment.
        """
        self.release()

    def release(self) -> None:
        """Do the same as `close`, for callers that cannot await."""
        self._handle = self._fast = None
        self._sources.clear()
        cache.release(self._holder)

    disconnect = close

    async def ping(self, *, timeout: float | None = None) -> float:
        """Run ``SELECT 1``; return the seconds it took, or raise psycopg's error.

        With a *timeout*, in seconds, waiting for a connection and for the reply together take no longer, and the query
        is not part of the caller's transaction: for health checks, even with a busy pool or a silent server.
        """
        started = perf_counter()
        if timeout is None:
            await self.fetch_value("SELECT 1")
        else:
            handle = await self._pool(timeout)
            await handle.ping(timeout - (perf_counter() - started))
        return perf_counter() - started

    @property
    def pool_name(self) -> str:
        """What logs, metrics and ``pgmonkey top`` call its pool."""
        return name_of(blueprint(self._sources.config(*self._origin), POOL_KIND))

    def stats(self) -> dict[str, int]:
        """Return the pool's counters, named as in psycopg_pool; empty before the first use."""
        return {} if self._handle is None else self._handle.stats()

    async def _pool(self, timeout: float | None = None) -> AsyncConnectionHandle:
        handle = self._handle
        # Closed meanwhile, or another event loop runs: then the cache has, or makes, another handle.
        while handle is None or not handle.usable_here:
            with suppress(PoolClosedError):  # by another thread or task, while it opened
                config = self._sources.config(*self._origin)
                handle = await open_handle(config, POOL_KIND, self._holder, timeout=timeout)
                self._fast = handle.fast_path(self._row_factory, self.framework)
                self._handle = handle
        return handle

    async def borrow(
        self,
        *,
        timeout: float | None = None,
        autocommit: bool | None = False,
        label: Label | None = None,
        deadline: Deadline | None = None,
    ) -> AsyncLease:
        """Lend a connection until the caller finishes the lease.

        *timeout* is in seconds and defaults to the pool's; *autocommit* None is the configuration's; *label* returns
        for whom it is borrowed, for log messages; its statements end by the *deadline*, or that of the request.
        """
        requests: Deadline | None = None
        if deadline is not None or self.deadline is not None:
            requests = self._requests_deadline()
            deadline = earlier(deadline, requests)
            if deadline is not None:
                timeout = deadline.wait(self.timeout if timeout is None else timeout)
        while True:
            handle = self._handle
            try:
                if handle is None or not handle.usable_here:
                    if timeout == AT_ONCE:
                        raise PoolTimeoutError("no connection is idle: the pool is not open")
                    handle = await self._pool(None if deadline is None else deadline.left)
                lease = await handle.borrow(
                    timeout=timeout, autocommit=autocommit, label=label, framework=self.framework
                )
            except PoolClosedError:
                continue  # another thread or task has closed it at this moment: as a later use, this one opens it again
            except (PoolTimeoutError, ConnectionTimeout) as error:
                check_wait(error, requests)
                raise
            lease.row_factory = self._row_factory
            if deadline is not None:
                lease.limit(deadline)
            return lease

    def _requests_deadline(self) -> Deadline | None:
        return None if self.deadline is None else self.deadline()

    # -- query methods ----------------------------------------------------------------------------------------------

    @overload
    async def fetch_one(
        self, query: Statement, params: Params = None, *, row_factory: None = None, timeout: float | None = None
    ) -> Row | None: ...

    @overload
    async def fetch_one(
        self, query: Statement, params: Params = None, *, row_factory: AsyncRowFactory[T], timeout: float | None = None
    ) -> T | None: ...

    async def fetch_one(
        self,
        query: Statement,
        params: Params = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Return the first row of *query*, or None if there is none."""
        if row_factory is not None or timeout is not None or self.deadline is not None:
            return await self._fetch(query, params, read_one, fetching.fetch_one, row_factory, timeout)
        scope = find(self) if inside.get() else None
        found: Any = Declined.NO_PLAN
        fast = self._fast
        if fast is not None and (scope is not None or self.ask is None):
            read = read_one
            found = await (fast.run(query, params, read) if scope is None else scope.answer(fast, query, params, read))
            if found.__class__ is not Declined:
                return found
        return await self._answer(scope, query, params, read_one, fetching.fetch_one, found)

    @overload
    async def fetch_exactly_one(
        self, query: Statement, params: Params = None, *, row_factory: None = None, timeout: float | None = None
    ) -> Row: ...

    @overload
    async def fetch_exactly_one(
        self, query: Statement, params: Params = None, *, row_factory: AsyncRowFactory[T], timeout: float | None = None
    ) -> T: ...

    async def fetch_exactly_one(
        self,
        query: Statement,
        params: Params = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Return the only row of *query*; raise `NoRowError` or `ManyRowsError` when there is none, or more than one.

        Outside a transaction it runs in one of its own, so that nothing is stored when it raises.
        """
        if (find(self) if inside.get() else None) is None:
            async with AsyncUnitBlock(self, deadline=until(timeout)):
                return await self.fetch_exactly_one(query, params, row_factory=cast(Any, row_factory))
        found = await self._fetch(query, params, read_exactly_one, fetching.fetch_exactly_one, row_factory, timeout)
        return fetching.only_row(query, *found)

    @overload
    async def fetch_all(
        self, query: Statement, params: Params = None, *, row_factory: None = None, timeout: float | None = None
    ) -> list[Row]: ...

    @overload
    async def fetch_all(
        self, query: Statement, params: Params = None, *, row_factory: AsyncRowFactory[T], timeout: float | None = None
    ) -> list[T]: ...

    async def fetch_all(
        self,
        query: Statement,
        params: Params = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Return all rows of *query*."""
        if row_factory is not None or timeout is not None or self.deadline is not None:
            return await self._fetch(query, params, read_all, fetching.fetch_all, row_factory, timeout)
        scope = find(self) if inside.get() else None
        found: Any = Declined.NO_PLAN
        fast = self._fast
        if fast is not None and (scope is not None or self.ask is None):
            read = read_all
            found = await (fast.run(query, params, read) if scope is None else scope.answer(fast, query, params, read))
            if found.__class__ is not Declined:
                return found
        return await self._answer(scope, query, params, read_all, fetching.fetch_all, found)

    async def fetch_value(self, query: Statement, params: Params = None, *, timeout: float | None = None) -> Any:
        """Return the first column of the first row of *query*, or None if there is no row."""
        if timeout is not None or self.deadline is not None:
            return await self._fetch(query, params, read_value, fetching.fetch_value, None, timeout)
        scope = find(self) if inside.get() else None
        found: Any = Declined.NO_PLAN
        fast = self._fast
        if fast is not None and (scope is not None or self.ask is None):
            read = read_value
            found = await (fast.run(query, params, read) if scope is None else scope.answer(fast, query, params, read))
            if found.__class__ is not Declined:
                return found
        return await self._answer(scope, query, params, read_value, fetching.fetch_value, found)

    async def fetch_values(self, query: Statement, params: Params = None, *, timeout: float | None = None) -> list[Any]:
        """Return the first column of all rows of *query*."""
        return await self._fetch(query, params, read_values, fetching.fetch_values, None, timeout)

    async def execute(self, query: Statement, params: Params = None, *, timeout: float | None = None) -> int:
        """Run *query*; return the number of rows affected, or -1 if the statement reports none."""
        if timeout is not None or self.deadline is not None:
            return await self._fetch(query, params, read_count, fetching.count, None, timeout)
        scope = find(self) if inside.get() else None
        found: Any = Declined.NO_PLAN
        fast = self._fast
        if fast is not None and (scope is not None or self.ask is None):
            read = read_count
            found = await (fast.run(query, params, read) if scope is None else scope.answer(fast, query, params, read))
            if found.__class__ is not Declined:
                answer: int = found
                return answer
        return await self._answer(scope, query, params, read_count, fetching.count, found)

    async def fetch_own(self, query: Plain, params: Params) -> Any:
        """Do as `fetch_value` for a statement of ours, whatever cursors `configure` has chosen."""
        return await self._fetch(query, params, read_value, fetching.fetch_value, None, None, own=True)

    async def _fetch(
        self,
        query: Statement,
        params: Params,
        read: Read,
        fetch: Fetch[T],
        row_factory: AnyRowFactory | None,
        timeout: float | None,
        *,
        own: bool = False,
    ) -> T:
        """Do what a query method does, with rows by a *row_factory*, and until a deadline, where these are given.

        *own* says that the statement is ours.
        """
        scope: _Scope | None = find(self) if inside.get() else None
        deadline = until(timeout)
        requests: Deadline | None = None
        if scope is None:  # else the unit of work has it
            requests = self._requests_deadline()
            deadline = earlier(deadline, requests)
        fast = row_factory is None or is_psycopgs(row_factory)
        if fast and row_factory is not None:
            read = partial(cast(Any, read), row_factory=row_factory)
        given = Given(row_factory, deadline, fast, own)
        try:
            if scope is None and self.ask is not None:
                return await self._answer(scope, query, params, read, fetch, Declined.NO_PLAN, given)
            return await self._either_way(scope, query, params, read, fetch, given)
        except (PoolTimeoutError, ConnectionTimeout) as error:
            check_wait(error, requests)
            raise

    async def _answer(
        self,
        scope: _Scope | None,
        query: Statement,
        params: Params,
        read: Read,
        fetch: Fetch[T],
        declined: Declined,
        given: Given = NOTHING,
    ) -> T:
        """Do what a query method does where the fast path did not, or where session values are to be asked for."""
        if scope is not None or self.ask is None:
            return await self._run(scope, query, params, fetch, declined, given)
        values = self._asked()
        if values:
            block: AsyncUnitBlock[Row] = AsyncUnitBlock(self, values=values, deadline=given.deadline)
            async with block as unit:
                return await self._either_way(unit, query, params, read, fetch, given._replace(deadline=None))
        return await self._either_way(None, query, params, read, fetch, given)

    async def _either_way(
        self, scope: _Scope | None, query: Statement, params: Params, read: Read, fetch: Fetch[T], given: Given
    ) -> T:
        found: Any = Declined.NO_PLAN
        fast = self._fast if given.fast else None
        if fast is not None and scope is None:
            found = await fast.run(query, params, read, given.deadline)
        elif fast is not None and scope is not None and given.deadline is None:
            found = await scope.answer(fast, query, params, read)
        if found.__class__ is not Declined:
            answer: T = found
            return answer
        return await self._run(scope, query, params, fetch, found, given)

    @overload
    async def execute_many(
        self,
        query: Statement,
        params_seq: Iterable[Params],
        *,
        returning: Literal[False] = False,
        timeout: float | None = None,
    ) -> int: ...

    @overload
    async def execute_many(
        self,
        query: Statement,
        params_seq: Iterable[Params],
        *,
        returning: Literal[True],
        timeout: float | None = None,
    ) -> list[Row]: ...

    async def execute_many(
        self,
        query: Statement,
        params_seq: Iterable[Params],
        *,
        returning: bool = False,
        timeout: float | None = None,
    ) -> int | list[Row]:
        """Run *query* for each of *params_seq* in one transaction; return the number of rows affected in all.

        It is parsed once, and sent in one message, whatever their number.  With *returning*, return the rows that it
        returned.
        """
        deadline = until(timeout)
        rows = list(params_seq)
        if not rows:
            return [] if returning else 0
        scope: _Scope | None = find(self)

        options: dict[str, Any] = {"query": query, "rows": rows, "returning": returning}
        try:
            count, make = await self._in_block(scope, partial(bulk.execute_many, **options), deadline)
        except bulk.Outdated:
            count, make = await self._in_block(scope, partial(bulk.one_by_one, **options), deadline)
            (await self._pool()).forget_plans()
        return make() if returning else count

    # -- COPY -------------------------------------------------------------------------------------------------------

    async def copy_rows(
        self,
        table: TableName,
        rows: AsyncRows,
        columns: Sequence[str] | None = None,
        *,
        timeout: float | None = None,
    ) -> int:
        """Store *rows* in *table* by COPY, which is the fastest way; return their number.

        *table* is a name as the catalog has it, perhaps with its schema: ``"public.orders"``.  *rows* are tuples,
        dictionaries or dataclasses, of which all are alike, and need not all be there at the same time.  *columns* are
        the names of the columns, by default the keys of the first row, and for tuples all that the table has.

        Raises `BadRowError`, which names the row, its column and the value; then nothing is stored.  While *rows* are
        made, they cannot use the transaction that this is in.
        """
        work = partial(bulk.copy_rows, table=table, rows=rows, columns=columns)
        return await self._in_block(find(self), work, until(timeout))

    async def copy_from(
        self,
        table: TableName,
        file: CopyFile,
        columns: Sequence[str] | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[CopyOptions],
    ) -> int:
        """Store what is in *file*, a path or a binary file, in *table* by COPY; return the number of rows.

        A CSV file begins with the names of its columns, unless the option *header* is False; *columns* are others in
        their place.  The options are those of PostgreSQL's COPY.
        """
        work = partial(bulk.copy_from, table=table, file=file, columns=columns, options=Layout(**options))
        return await self._in_block(find(self), work, until(timeout))

    async def copy_to(
        self,
        query: Statement,
        file: CopyFile,
        params: Params = None,
        *,
        timeout: float | None = None,
        **options: Unpack[CopyOptions],
    ) -> int:
        """Write the rows of *query* into *file*, a path or a binary file; return their number.

        A path is that of the file when it is complete.  The options are those of PostgreSQL's COPY.
        """
        work = partial(bulk.copy_to, query=query, file=file, params=params, options=Layout(**options))
        return await self._in_block(find(self), work, until(timeout))

    # -- notifications ----------------------------------------------------------------------------------------------

    def listen(self, *channels: str) -> AsyncListening:
        """Return an iterator over the notifications of *channels*, and `Gap`s where some may have been missed.

        All listeners of a process share one connection, which is none of the pool.  When it is lost it is made again,
        for as long as that takes.  Raises what psycopg raises when the first one cannot be made, and
        `psycopg.NotSupportedError` behind PgBouncer in transaction mode.
        """

        async def find() -> AsyncListener:
            return handle_for(self._sources.config(*self._origin), POOL_KIND, self._holder).listener

        return AsyncListening(find, channels)

    async def notify(self, channel: str, payload: str = "") -> None:
        """Notify those who listen to *channel*, when the transaction that this is called in is committed.

        *payload* may have up to 7999 bytes.
        """
        await self.fetch_own("SELECT pg_notify(%s, %s)", (channel, payload))

    async def _in_block(
        self, scope: _Scope | None, work: Callable[[AsyncConnection[Row]], Awaitable[T]], deadline: Deadline | None
    ) -> T:
        """Do *work* in a transaction, or in a savepoint of the unit of work."""
        if scope is None:
            block: AsyncTransactionBlock[Row] = AsyncTransactionBlock(self, DEFAULT, deadline)
            async with block as connection:
                return await work(connection)

        unit = unit_of(scope)

        async def inside(connection: AsyncConnection[Row]) -> T:
            async with unit.savepoint(cast("AsyncGuard", connection)):
                return await work(connection)

        # As each query method, it waits for its turn in the unit, and the next one waits for it.
        return await scope.do(inside, deadline=deadline)

    @overload
    def stream(
        self,
        query: Statement,
        params: Params = None,
        *,
        size: int = 1000,
        row_factory: None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Row]: ...

    @overload
    def stream(
        self,
        query: Statement,
        params: Params = None,
        *,
        size: int = 1000,
        row_factory: AsyncRowFactory[T],
        timeout: float | None = None,
    ) -> AsyncIterator[T]: ...

    def stream(
        self,
        query: Statement,
        params: Params = None,
        *,
        size: int = 1000,
        row_factory: AsyncRowFactory[Any] | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Any]:
        """Return an iterator over the rows of *query*, which come from a server-side cursor, *size* at a time.

        A stream has a connection and a transaction of its own, and gives it back when it ends or is closed.  With a
        *timeout*, all of it ends within so many seconds, the time of whoever reads it included.
        """
        deadline = until(timeout)
        return self._stream(query, params, size, self._asked(), Given(row_factory, deadline))

    async def _stream(
        self, query: Statement, params: Params, size: int, values: Mapping[str, str | None], given: Given
    ) -> AsyncIterator[Any]:
        lease = await self.borrow(autocommit=False, deadline=given.deadline)
        stopped = False
        try:
            lease.set_values(values)
            cursor = lease.connection.cursor("pgmonkey_stream", row_factory=cast(Any, given.row_factory))
            try:
                await cursor.execute(cast(Plain, query), params)
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

    def _asked(self) -> Mapping[str, str | None]:
        """Return the session values for a transaction that begins now."""
        return {} if self.ask is None or is_asking(self) else ask(self)[0]

    async def _run(
        self,
        scope: _Scope | None,
        query: Statement,
        params: Params,
        fetch: Fetch[T],
        declined: Declined,
        given: Given = NOTHING,
    ) -> T:
        """Run *query* through psycopg, which is to prepare it unless the fast path *declined* because of that.

        The values are loaded while the connection is there: some of psycopg's loaders look at it.  The rows are made
        when it is given back, by the program's classes, which may use the database.
        """

        async def work(connection: AsyncConnection[Row]) -> tuple[AsyncCursor[Any], RowMaker[Any]]:
            cursor: AsyncCursor[Any] = own_cursor(connection) if given.own else connection.cursor()
            row_factory = given.row_factory or cursor.row_factory
            columns, own = fetch in COLUMNS, makes_rows(cursor.__class__)
            cursor.row_factory = row_factory if own and not columns else tuple_row
            await self._execute(connection, cursor, query, params, declined)
            return cursor, as_it_is if columns or own else row_factory(cursor)

        if scope is not None:
            # Not in the unit's turn: the program's loaders, too, may use the database.
            return (await fetch(*await scope.do(work, deadline=given.deadline)))()
        handle = await self._pool(None if given.deadline is None else given.deadline.left)
        # Settings that hold for a transaction need one, also for a single statement.
        if handle.needs_transactions:
            async with self.unit_of_work() as unit:
                return await self._run(unit, query, params, fetch, declined, given)
        # Fetching from what returns no rows is an error, after which nothing may be stored.
        fetches = fetch is not fetching.count
        text = text_of(query) if fetches else ""
        in_doubt = fetches and text not in self._returning and not returns_rows(text)
        lease = await self.borrow(autocommit=not in_doubt, deadline=given.deadline)
        try:
            lease.in_autocommit = not (in_doubt or lease.has_mode)
            make = await fetch(*await work(lease.connection))
        except BaseException as error:
            await lease.finish(error, clean=lease.unclean)
            raise
        await lease.finish(clean=lease.unclean)
        if in_doubt and text:
            remember(self._returning, text, None, _MAX_RETURNING)
        return make()

    async def _execute(
        self,
        connection: AsyncConnection[Row],
        cursor: AsyncCursor[Any],
        query: Statement,
        params: Params,
        declined: Declined,
    ) -> None:
        outdated, plain = declined is Declined.REFUSED, cast(Plain, query)
        try:
            await cursor.execute(plain, params, prepare=False if outdated else None)
        except psycopg.Error as error:
            # Lent cursors do this themselves, but for classes of the program and where the fast path is off.
            state = connection.__dict__
            pooled = state["pooled"]()
            if pooled is None or not may_repeat(state["pool"], pooled, error):
                raise
            outdated = True
            await begin_anew(connection)
            await cursor.execute(plain, params, prepare=False)
        if outdated:
            # It was: other connections, too, have it prepared for the old shape of the tables.
            (await self._pool()).forget_plans()
        if self._fast is not None:
            self._fast.learn(connection, query, params, cursor)

    # -- transactions and units of work -----------------------------------------------------------------------------

    @asynccontextmanager
    async def connection(self, *, timeout: float | None = None) -> AsyncIterator[AsyncConnection[Row]]:
        """Lend a connection of its own for a block: committed at the end, rolled back when the block raises.

        *timeout* is how long to wait for a free one and to use it, in seconds; to wait for one, the pool's ``timeout``
        by default.
        """
        values = self._asked()
        deadline = None if timeout is None else Deadline.after(timeout)
        lease = await self.borrow(timeout=timeout, autocommit=None)
        try:
            if deadline is not None:
                lease.limit(earlier(deadline, lease.deadline))
            if values:
                if lease.connection.autocommit:
                    raise psycopg.ProgrammingError(WITHOUT_VALUES)
                lease.set_values(values)
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
        timeout: float | None = None,
    ) -> AsyncTransactionBlock[Row]:
        """Run a block in a transaction, which the query methods join; inside another one, in a savepoint of it.

        *isolation* is a `psycopg.IsolationLevel` or its name, such as ``"serializable"``.  The options are those of
        the outermost transaction, so inside another one they can be given as long as it has not begun: afterwards they
        raise `psycopg.ProgrammingError`.  With a *timeout*, in seconds, what has not ended by then is rolled back.
        """
        deadline = None if timeout is None else Deadline.after(timeout)
        return AsyncTransactionBlock(self, TransactionMode.of(isolation, read_only, deferrable), deadline)

    def batch(self, *, timeout: float | None = None) -> AsyncBatch[Row]:
        """Run several statements in one round trip: the query methods of a batch, which is a block, queue them.

        They are sent at the end of the block, in one transaction, or as part of the one that it is in; what the methods
        returned has the results then.  A statement that fails is named in its error.
        """
        return AsyncBatch(self, until(timeout))

    @asynccontextmanager
    async def lock(
        self, name: LockName, *, shared: bool = False, wait: bool | float = True, session: bool = False
    ) -> AsyncIterator[None]:
        """Hold PostgreSQL's advisory lock *name* in a block: a text, a number, or a tuple of two numbers.

        A transaction holds it: the one that the block is in, and then until the end of that, or else one that is opened
        for the block.  With *session*, a connection of its own holds it for the block, which is no transaction then;
        PgBouncer cannot do that, so it is refused there.  Others may hold a *shared* one at the same time.

        *wait* is for how many seconds; False is not at all, True as long as ``command_timeout`` and deadlines allow.
        Raises `LockNotAvailableError`, which says who holds it.
        """
        lock = AdvisoryLock(name, shared=shared, session=session)
        if session and (await self._pool()).shares_sessions:
            raise psycopg.NotSupportedError(
                "a lock of a session needs a session of its own, and PgBouncer shares them: leave out 'session=True', "
                "so that a transaction holds it"
            )
        async with (locks.in_session if session else locks.in_transaction)(self, lock, wait):
            yield

    async def retry(
        self,
        function: Callable[[], Awaitable[T]],
        *,
        attempts: int = 5,
        isolation: IsolationLevel | str | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
        timeout: float | None = None,
    ) -> T:
        """Run *function* in a transaction of its own, and commit it; return what it returned.

        After a serialisation failure (SQLSTATE 40001) or a deadlock (40P01), at any statement or at COMMIT, *function*
        runs again after a short random pause, at most *attempts* times in all; then the error is raised.  All of it,
        the pauses as well, ends within *timeout* seconds.

        Inside a unit of work that has done nothing yet, such as a request, it becomes the first part of that unit: it
        is committed with the unit, and if that COMMIT fails, it is not retried.  Raises `psycopg.ProgrammingError`
        inside a transaction that has started, which could not be run again.
        """
        mode = TransactionMode.of(isolation, read_only, deferrable)
        pause, longest = _BACKOFF
        outer, deadline = self.current_unit(), until(timeout)

        def block() -> AbstractAsyncContextManager[object]:
            if outer is not None:
                return AsyncAttempt(outer, mode, deadline)
            return AsyncUnitBlock(self, mode, deadline=deadline)

        for _ in range(attempts - 1):
            try:
                async with block():
                    return await function()
            except (SerializationFailure, DeadlockDetected) as error:
                # At random, so that those that collided do not meet again.
                wait = uniform(0, pause)
                if deadline is not None and deadline.left <= wait:
                    raise deadline.exceeded("the transaction conflicted with others at every attempt") from error
                await sleep(wait)
                pause = min(2 * pause, longest)
        async with block():
            return await function()

    def unit_of_work(self) -> AsyncUnitBlock[Row]:
        """Open a unit of work for a block: a `transaction` that borrows only when a query method needs a connection.

        Inside another unit of work it is a part of that one, and is rolled back alone if the block raises.
        """
        return AsyncUnitBlock(self)

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

        It is independent of any unit around it.  The caller must keep a reference: without one, it is rolled back.
        *label* returns the name of the borrower for log messages; *on_borrow* is called when it has borrowed a
        connection.
        """
        asked = isolation is not None or read_only is not None or deferrable is not None
        mode = TransactionMode.of(isolation, read_only, deferrable) if asked else DEFAULT
        unit: AsyncUnitOfWork[Row] = AsyncUnitOfWork(self, mode, label, on_borrow)
        enter(unit)
        return unit

    @staticmethod
    def begin_on_demand(begin: Callable[[object], Any]) -> object:
        """Let this context, and all copies of it, join the units of work that *begin* returns for databases.

        It is called with a database when that looks for the unit that it is in, of either kind, and returns None where
        there is none.  This lasts as long as what is returned.
        """
        place = OnDemand(begin)
        enter(place)
        return place

    def share(self, fits: Callable[[FrameType], bool]) -> object:
        """Let this context, and all copies of it, join each `transaction` that is opened in one of them for all.

        *fits* tells that of the frame that opens it.  This lasts as long as what is returned.
        """
        shared = Shared(self, fits)
        enter(shared)
        return shared

    def current_unit(self) -> AsyncUnitOfWork[Row] | None:
        """Return the innermost unfinished unit of work of this database that the current context is in."""
        return current_unit(self)


_Scope: TypeAlias = "AsyncUnitOfWork[Any] | AsyncNested"
