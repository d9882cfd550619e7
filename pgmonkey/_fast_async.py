"""The short way for a single statement that is prepared already: what psycopg makes anew for each execution is kept.

The first executions go the usual way, by `conn.execute`.  When psycopg has prepared a statement on a connection, what
that execution used is remembered there: the statement's name, the dumpers and loaders, the maker of rows.  From then on
only the parameters, and the answer, pass through psycopg.  Wherever that might not be the same, the usual way is taken.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import psycopg
from psycopg import AsyncConnection, AsyncCursor, rows
from psycopg._queries import PostgresQuery
from psycopg.adapt import AdaptersMap, PyFormat, Transformer
from psycopg.errors import ReadOnlySqlTransaction, error_from_result
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import tuple_row

from ._colour_async import current_loop, take
from ._connector_async import AsyncPooledConnection
from ._fetching import ask_and_send, begin_and_send, begin_and_send_text, read_and_send, taking
from ._pool_async import AsyncPool
from ._prepared import is_outdated
from ._statement import Params, is_harmless, leaves_state, only_reads

_AUTO = PyFormat.AUTO
_PIPELINES = psycopg.Pipeline.is_supported()  # by libpq, from 14 on
_LARGEST = 200
# As plain numbers, which are compared sooner.
_FATAL, _IDLE, _OK = int(ExecStatus.FATAL_ERROR), int(TransactionStatus.IDLE), int(ConnStatus.OK)
MISS: Any = object()
"""Nothing was done: take the usual way."""

Read = Callable[["AsyncPlan", PGresult], Any]


class _Context:
    """What a Transformer is made from: a connection, with psycopg's types as they are registered now."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self.connection = connection
        self.adapters = AdaptersMap(psycopg.adapters)


class AsyncPlan:
    """How one connection executes one statement that it has prepared."""

    __slots__ = (
        *("_count", "_key", "_types", "_wanted", "dumpers", "fetch", "formats", "harmless", "has_rows"),
        *("loaders", "make_row", "name", "params", "query", "reads", "send", "transformer"),
    )

    def __init__(
        self,
        pooled: AsyncPooledConnection,
        name: bytes,
        query: PostgresQuery,
        cursor: AsyncCursor[Any],
        row_factory: Any,
    ) -> None:
        self.name = name
        self.query = query
        self.transformer = query._tx
        self.transformer.set_pgresult(cursor.pgresult)
        self.transformer.set_pgresult(None, set_loaders=False)
        self.has_rows = cursor.description is not None
        self.make_row = row_factory(cursor)
        self.harmless = is_harmless(query.query)
        self.reads = only_reads(query.query)
        self.send, self.fetch = pooled.pgconn.send_query_prepared, pooled.watcher.fetch
        # A type that is registered later replaces these, because they are shared with a copy.
        self.dumpers, self.loaders = psycopg.adapters._dumpers[_AUTO], psycopg.adapters._loaders[0]
        self.params: Any = None
        self.formats: Any = query.formats
        query.params = None
        self._key = (query.query, query.types)
        self._types, self._wanted = query.types, query._want_formats
        self._count = len(self._wanted or ()) if query._order is None else None

    def fits(self, pooled: AsyncPooledConnection, params: Params, adapters: AdaptersMap) -> bool:
        """Dump *params*; tell whether the statement can be executed with them, its types being those of *adapters*."""
        if adapters._loaders[0] is not self.loaders:
            return False
        if params is not None and (adapters._dumpers[_AUTO] is not self.dumpers or not self._dump(params)):
            return False
        return pooled.prepared.use(self._key, self.name)

    def _dump(self, params: Params) -> bool:
        kind, transformer = params.__class__, self.transformer
        if (kind is tuple or kind is list) and len(params) == self._count:  # type: ignore[arg-type]
            self.params = transformer.dump_sequence(params, self._wanted)  # type: ignore[arg-type]
            self.formats = transformer.formats
            return transformer.types == self._types
        query = self.query
        query.dump(params)
        self.params, self.formats = query.params, query.formats
        query.params = None
        return query.types == self._types


def find_plan(pooled: AsyncPooledConnection, key: object, params: Params, adapters: AdaptersMap) -> AsyncPlan | None:
    """Return the plan that *pooled* has for *key*, with *params* dumped; None when the usual way is to be taken."""
    plan: AsyncPlan | None = pooled.plans.get(key)
    if plan is None or plan.fits(pooled, params, adapters):
        return plan
    # The latest one was made for parameters of other types.
    plan = pooled.plans.get((key, plan.transformer.types))
    return plan if plan is not None and plan.fits(pooled, params, adapters) else None


def learn_plan(
    pooled: AsyncPooledConnection,
    key: object,
    statement: Any,
    params: Params,
    cursor: AsyncCursor[Any],
    row_factory: Any = tuple_row,
) -> bool:
    """Remember how *cursor* has executed *statement*, if it is prepared and all is as usual; tell whether it is.

    Verbs make rows by *row_factory*; cursors have their own.
    """
    connection = pooled.connection
    # Cursors keep the query of what they did not prepare.
    if not pooled.prepared.any or cursor.pgresult is None or cursor._query is not None or leaves_state(statement):
        return False
    if connection._adapters or connection._notice_handlers or connection._notify_handlers:
        return False
    query = PostgresQuery(Transformer(_Context(connection)))
    query.convert(statement, params)
    name = pooled.prepared.name_of((query.query, query.types))
    if name is None or cursor._adapters._loaders[0] is not psycopg.adapters._loaders[0]:
        return False
    if len(pooled.plans) >= _LARGEST:
        pooled.plans.clear()
    # One for parameters of these types, and to begin with.
    pooled.plans[key] = pooled.plans[(key, query.types)] = AsyncPlan(pooled, name, query, cursor, row_factory)
    return True


def is_usual(connection: AsyncConnection[Any]) -> bool:
    """Tell whether nothing about the lent *connection* asks for the usual way."""
    state = connection.__dict__
    return (
        _PIPELINES
        and connection.pgconn.status == _OK
        and connection._pipeline is None
        and not connection._notice_handlers
        and not connection._notify_handlers
        and "refusal" not in state
        and "transaction_settings" not in state
    )


def begins(connection: Any, pooled: AsyncPooledConnection) -> bytes | None:
    """Return what begins a transaction on the lent *connection*, if the next statement is to begin one."""
    idle = pooled.pgconn.transaction_status == _IDLE
    return connection._get_tx_start_command() if idle and not connection._autocommit else None


async def execute_plan(
    pooled: AsyncPooledConnection, plan: AsyncPlan, begin: bytes | None, alone: bool = False
) -> PGresult:
    """Execute *plan* on a connection whose lock is held, with what is to *begin* a transaction before it.

    *alone* says that what only reads may have a transaction of its own instead, in the same message.
    """
    connection: Any = pooled.connection
    pgconn, prepared = pooled.pgconn, pooled.prepared
    answer, asked = -1, None
    if not plan.harmless:
        prepared.expect("")
    try:
        if begin is None:
            plan.send(plan.name, plan.params, plan.formats)
        elif not (alone and plan.reads) or prepared.reading is False:
            begin_and_send(pgconn, begin, plan.name, plan.params, plan.formats)
        elif prepared.reading is None:
            asked = prepared.names_for_reading()
            ask_and_send(pgconn, asked, plan.name, plan.params, plan.formats)
        else:
            read_and_send(pgconn, prepared.reading, plan.name, plan.params, plan.formats)
            answer = 1
        plan.params = None
        results = await plan.fetch(connection.__dict__["command_timeout"])
        _look_at(results, connection)
    except BaseException as error:
        await connection.after(error, taking(pgconn))
        raise
    if asked is not None:
        prepared.reading = asked if results[-2].get_value(0, 0) == b"read committed" else False
    return results[answer]


async def execute_text(pooled: AsyncPooledConnection, query: PostgresQuery, begin: bytes | None) -> list[PGresult]:
    """Execute *query*, which has no parameters left, on a connection whose lock is held; *begin* as `execute_plan`."""
    connection: Any = pooled.connection
    pgconn = pooled.pgconn
    pooled.prepared.note(query)
    try:
        if begin is None:
            pgconn.send_query(query.query)
        else:
            begin_and_send_text(pgconn, begin, query.query)
        results = await pooled.watcher.fetch(connection.__dict__["command_timeout"])
        _look_at(results, connection)
    except BaseException as error:
        await connection.after(error, taking(pgconn))
        raise
    return results if begin is None else results[1:]


def _look_at(results: list[PGresult], connection: AsyncConnection[Any]) -> None:
    """Raise what the server answers, and hand out what it notifies."""
    for result in results:
        if result.status == _FATAL:
            raise error_from_result(result, encoding=connection.info.encoding)
    pgconn = connection.pgconn
    while notification := pgconn.notifies():
        if pgconn.notify_handler is not None:
            pgconn.notify_handler(notification)


class Lent(Protocol):
    """A borrowed connection, which is lent as a psycopg connection only when somebody asks for that."""

    refusal: psycopg.Error | None
    lent: AsyncConnection[Any] | None
    pooled: AsyncPooledConnection | None

    @property
    def connection(self) -> AsyncConnection[Any]:
        """The psycopg connection."""
        ...


class AsyncFastPath:
    """The short way through one pool, for rows of one kind."""

    def __init__(self, pool: AsyncPool, row_factory: Any, session_values: Callable[[], object] | None) -> None:
        settings = pool.plan.settings
        arguments = pool.plan.connect
        self.pool = pool
        self._session_values = session_values
        self.row_factory = tuple_row if row_factory is None else row_factory
        # What is known of each statement, without and with parameters, is kept with each connection by its key.
        self._without: dict[str, object] = {}
        self._with: dict[str, object] = {}
        self._reading: set[object] = set()
        self._limit = pool.plan.command_timeout
        self._reads_alone = not pool.plan.pgbouncer  # which need not know what is prepared for it
        self._loop = current_loop()
        self.possible = (
            (row_factory is None or getattr(row_factory, "__module__", None) == rows.__name__)
            and not pool.plan.transaction_settings
            and settings.connection_class is None
            and settings.reset is None
            and settings.check is None
            and not settings.check_on_checkout
            and not {"cursor_factory", "row_factory", "context"}.intersection(arguments)
        )

    def learn(self, connection: AsyncConnection[Any], statement: Any, params: Params, cursor: AsyncCursor[Any]) -> None:
        """Remember how *cursor* has executed *statement*, if it was prepared and all is as usual."""
        pooled: AsyncPooledConnection | None = connection.__dict__.get("pooled")
        if pooled is None or statement.__class__ is not str:
            return
        keys = self._without if params is None else self._with
        key = keys.get(statement) or object()
        if learn_plan(pooled, key, statement, params, cursor, self.row_factory):
            if len(keys) >= _LARGEST:
                keys.clear()
                self._reading.clear()
            keys[statement] = key
            if pooled.plans[key].reads:
                self._reading.add(key)

    def take_for_reading(self, statement: Any, params: Params, frame: FrameType) -> AsyncPooledConnection | None:
        """Lend an idle connection to *frame* if *statement* is one that only reads; None otherwise."""
        if statement.__class__ is not str or (self._loop is not None and self._loop is not current_loop()):
            return None
        key = (self._without if params is None else self._with).get(statement)
        return self.pool.take_idle(frame) if key in self._reading else None

    async def run(self, statement: Any, params: Params, read: Read) -> Any:
        """Execute *statement* and return what *read* makes of the answer; `MISS` when nothing was done."""
        if statement.__class__ is not str or (self._loop is not None and self._loop is not current_loop()):
            return MISS
        key = (self._without if params is None else self._with).get(statement)
        if key is None or (self._session_values is not None and self._session_values()):
            return MISS
        pool, frame = self.pool, sys._getframe(1)
        pooled = pool.take_idle(frame) or await pool.wait_for_one(frame)
        if pooled is None:
            return MISS
        try:
            plan = find_plan(pooled, key, params, psycopg.adapters)
            if plan is None or not (plan.has_rows or read is read_count):
                return MISS
            plan.send(plan.name, plan.params, plan.formats)
            plan.params = None  # which may be large
            result = (await plan.fetch(self._limit))[0]
            if result.status == _FATAL:
                error = error_from_result(result, encoding=pooled.connection.info.encoding)
                if is_outdated(error):
                    pool.forget_plans()
                    return MISS
                raise error
            return read(plan, result)
        except BaseException as error:
            connection: Any = pooled.connection
            await connection.after(error, taking(pooled.pgconn))
            raise
        finally:
            pool.give_back(pooled)

    async def run_on(self, lease: Lent, statement: Any, params: Params, read: Read, *, alone: bool) -> Any:
        """Do as `run` does, on a borrowed connection; *alone* as for `execute_plan`."""
        pooled = lease.pooled
        if statement.__class__ is not str or pooled is None:
            return MISS
        key = (self._without if params is None else self._with).get(statement)
        if key is None:
            return MISS
        lock: Any = pooled.connection.lock
        if not take(lock):
            await lock.acquire()
        try:
            connection = lease.lent  # perhaps since a moment ago
            if connection is None:
                if not _PIPELINES or lease.refusal is not None or lease.pooled is None:
                    return MISS
            elif connection.row_factory is not self.row_factory or not is_usual(connection):
                return MISS
            first = pooled.pgconn.transaction_status == _IDLE
            adapters = psycopg.adapters if connection is None else connection._adapters or psycopg.adapters
            plan = find_plan(pooled, key, params, adapters)
            if plan is None or not (plan.has_rows or read is read_count):
                return MISS
            begin = None if not first else b"BEGIN" if connection is None else begins(connection, pooled)
            try:
                alone = alone and connection is None and self._reads_alone
                return read(plan, await execute_plan(pooled, plan, begin, alone))
            except psycopg.Error as error:
                if isinstance(error, ReadOnlySqlTransaction) and first and plan.reads:
                    plan.reads = False  # what a view of it calls does write
                elif is_outdated(error):
                    self.pool.forget_plans()
                    if not first:
                        raise
                else:
                    raise
        finally:
            lock.release()
        await lease.connection.rollback()
        return MISS


def read_one(plan: AsyncPlan, result: PGresult) -> Any:
    """Return the first row, None when there is none."""
    if not result.ntuples:
        return None
    transformer = plan.transformer
    transformer.set_pgresult(result, set_loaders=False)
    row = transformer.load_row(0, plan.make_row)
    transformer.set_pgresult(None, set_loaders=False)
    return row


def read_value(plan: AsyncPlan, result: PGresult) -> Any:
    """Return the first column of the first row, None when there is none."""
    if not result.ntuples:
        return None
    transformer = plan.transformer
    transformer.set_pgresult(result, set_loaders=False)
    row: Any = transformer.load_row(0, tuple)
    transformer.set_pgresult(None, set_loaders=False)
    return row[0]


def read_all(plan: AsyncPlan, result: PGresult) -> list[Any]:
    """Return all rows."""
    transformer = plan.transformer
    transformer.set_pgresult(result, set_loaders=False)
    found: list[Any] = transformer.load_rows(0, result.ntuples, plan.make_row)
    transformer.set_pgresult(None, set_loaders=False)
    return found


def read_count(plan: AsyncPlan, result: PGresult) -> int:
    """Return the number of rows affected, as psycopg's ``rowcount`` does."""
    if result.status == ExecStatus.TUPLES_OK:
        return result.ntuples
    count = result.command_tuples
    return -1 if count is None else count
