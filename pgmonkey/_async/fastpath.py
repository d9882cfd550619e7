"""The fast path: execute a prepared statement without psycopg's cursor, alone or inside a transaction."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol

import psycopg
from psycopg import rows
from psycopg.abc import Params
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import tuple_row

from .._driver.begin import begin_statement, send_text_with_begin, send_with_begin
from .._driver.compat import FAST_PATH, PIPELINES, PostgresQuery
from .._driver.plan import DECLINED, Plan, Read, adapters_of, is_plain, read_count
from .._driver.prepared import is_outdated
from .._driver.psycopg_types import RowFactory
from .._driver.sql import Statement
from .._driver.wire import check_results
from .connector import AsyncPooledConnection
from .guard import after_error
from .pool import AsyncPool
from .psycopg_types import AsyncAnyConnection, AsyncAnyCursor
from .waiting import current_loop, try_acquire

_MAX_KEYS = 200
# As plain numbers, which are faster to compare than members of an enumeration.
_FATAL, _IDLE = int(ExecStatus.FATAL_ERROR), int(TransactionStatus.IDLE)


async def execute_plan(pooled: AsyncPooledConnection, plan: Plan, begin: bytes | None) -> PGresult:
    """Execute *plan* on a connection whose lock is held, with the BEGIN that it needs before it."""
    pgconn, prepared = pooled.pgconn, pooled.prepared
    if not plan.harmless:
        prepared.expect("")  # it may leave something in the session
    try:
        if begin is None:
            plan.send(plan.name, plan.params, plan.formats)
        else:
            send_with_begin(pgconn, begin, plan.name, plan.params, plan.formats)
        plan.params = None  # which may be large
        results = await pooled.watcher.fetch(pooled.connection.__dict__["command_timeout"])
        check_results(results, pooled.connection)
    except BaseException as error:
        await after_error(pooled.connection, error)
        raise
    return results[-1]


async def execute_text(pooled: AsyncPooledConnection, query: PostgresQuery, begin: bytes | None) -> list[PGresult]:
    """Execute *query*, which has no parameters left, on a connection whose lock is held; *begin* as `execute_plan`."""
    pgconn = pooled.pgconn
    pooled.prepared.note(query)
    try:
        if begin is None:
            pgconn.send_query(query.query)
        else:
            send_text_with_begin(pgconn, begin, query.query)
        results = await pooled.watcher.fetch(pooled.connection.__dict__["command_timeout"])
        check_results(results, pooled.connection)
    except BaseException as error:
        await after_error(pooled.connection, error)
        raise
    return results if begin is None else results[1:]


class Borrowed(Protocol):
    """A borrowed connection; the psycopg connection over it is made only when the borrower asks for it."""

    refusal: psycopg.Error | None
    lent: AsyncAnyConnection | None
    pooled: AsyncPooledConnection | None

    @property
    def connection(self) -> AsyncAnyConnection:
        """The psycopg connection."""
        ...


class AsyncFastPath:
    """The fast path through one pool, for rows of one kind."""

    def __init__(
        self, pool: AsyncPool, row_factory: RowFactory | None, session_values: Callable[[], object] | None
    ) -> None:
        blueprint = pool.blueprint
        settings = blueprint.settings
        self.pool = pool
        self._session_values = session_values
        self.row_factory = tuple_row if row_factory is None else row_factory
        # What identifies each statement, without and with parameters; its plan is kept with each connection.
        self._without: dict[object, object] = {}
        self._with: dict[object, object] = {}
        self._limit = blueprint.command_timeout
        self._loop = pool.loop
        self.possible = (
            FAST_PATH
            and (row_factory is None or getattr(row_factory, "__module__", None) == rows.__name__)
            and not blueprint.transaction_settings
            and settings.connection_class is None
            and settings.reset is None
            and settings.check is None
            and not settings.check_on_checkout
            and not {"cursor_factory", "row_factory", "context"}.intersection(blueprint.connect)
        )

    def learn(
        self, connection: AsyncAnyConnection, statement: Statement, params: Params | None, cursor: AsyncAnyCursor
    ) -> None:
        """Remember how *cursor* has executed *statement*, if it is prepared and psycopg's defaults are in force."""
        pooled: AsyncPooledConnection | None = connection.__dict__.get("pooled")
        if pooled is None or statement.__class__ is not str:
            return
        # An object of its own, not the text: a key is compared by identity on each call.
        keys = self._without if params is None else self._with
        key = keys.get(statement) or object()
        plan = pooled.plans.learn(key, statement, params, cursor, self.row_factory)
        if plan is not None:
            if len(keys) >= _MAX_KEYS:
                keys.clear()
            keys[statement] = key

    async def run(self, statement: Statement, params: Params | None, read: Read) -> Any:
        """Execute *statement* alone and return what *read* makes of the answer; `DECLINED` when nothing was done."""
        if statement.__class__ is not str or (self._loop is not None and self._loop is not current_loop()):
            return DECLINED
        key = (self._without if params is None else self._with).get(statement)
        if key is None or (self._session_values is not None and self._session_values()):
            return DECLINED
        pool, frame = self.pool, sys._getframe(1)
        pooled = pool.take_idle(frame) or await pool.wait_for_one(frame)
        if pooled is None:
            return DECLINED
        try:
            plan = pooled.plans.find(key, params, psycopg.adapters)
            if plan is None or not (plan.has_rows or read is read_count):
                return DECLINED
            plan.send(plan.name, plan.params, plan.formats)
            plan.params = None  # which may be large
            result = (await pooled.watcher.fetch(self._limit))[0]
            if result.status == _FATAL:
                error = error_from_result(result, encoding=pooled.connection.info.encoding)
                if is_outdated(error):
                    # The server refused before it executed anything, so the usual way may run the statement again.
                    pool.forget_plans()
                    return DECLINED
                raise error
            return read(plan, result)
        except BaseException as error:
            await after_error(pooled.connection, error)
            raise
        finally:
            pool.give_back(pooled)

    async def run_on(self, lease: Borrowed, statement: Statement, params: Params | None, read: Read) -> Any:
        """Do as `run`, on a borrowed connection."""
        pooled = lease.pooled
        if statement.__class__ is not str or pooled is None:
            return DECLINED
        key = (self._without if params is None else self._with).get(statement)
        if key is None:
            return DECLINED
        lock = pooled.connection.lock
        if not try_acquire(lock):
            await lock.acquire()
        try:
            connection = lease.lent  # another task may have made it a moment ago
            if connection is None:
                if not PIPELINES or lease.refusal is not None or lease.pooled is None:
                    return DECLINED
            elif connection.row_factory is not self.row_factory or not is_plain(connection):
                return DECLINED
            first = pooled.pgconn.transaction_status == _IDLE
            plan = pooled.plans.find(key, params, adapters_of(connection))
            if plan is None or not (plan.has_rows or read is read_count):
                return DECLINED
            begin = None if not first else b"BEGIN" if connection is None else begin_statement(connection)
            try:
                return read(plan, await execute_plan(pooled, plan, begin))
            except psycopg.Error as error:
                if not is_outdated(error):
                    raise
                self.pool.forget_plans()
                if not first:
                    raise  # the transaction has failed with it, and earlier work cannot be repeated
        finally:
            lock.release()
        # Nothing else was in the transaction: roll back, and let psycopg run the statement in a new one.
        await lease.connection.rollback()
        return DECLINED
