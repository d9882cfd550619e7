# Generated from pgmonkey/_async/fastpath.py by tools/twins.py: change that file, then run the tool.

"""The fast path: execute a prepared statement without psycopg's cursor, alone or inside a transaction."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from os import getpid
from time import perf_counter
from typing import Any, Protocol, TypeAlias

import psycopg
from psycopg import Connection
from psycopg.abc import Params
from psycopg.cursor import Cursor
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGresult
from psycopg.sql import SQL, Composed

from .._driver.begin import Begin, begin_statement, send_query_with_begin, send_text_with_begin, send_with_begin
from .._driver.compat import FAST_PATH, PIPELINES, PostgresQuery
from .._driver.cursors import prepare
from .._driver.deadlines import Deadline, limit_in
from .._driver.failure import Refusal
from .._driver.plan import LOOKED_AT, Declined, Plan, Read, is_plain, is_psycopgs, read_count, remember, text_key
from .._driver.prepared import is_refused
from .._driver.psycopg_types import RowFactory
from .._driver.sql import Statement
from .._driver.templates import Template, spelled
from .._driver.wire import check_results
from .._pool import detour
from .._telemetry.events import Loan
from ..errors import ForkedError
from .connector import PooledConnection
from .guard import after_error, in_itself
from .pool import Pool
from .psycopg_types import AnyConnection, AnyCursor
from .waiting import current_loop, held_by_caller, try_acquire

_NO_PLAN, _REFUSED = Declined.NO_PLAN, Declined.REFUSED
# As plain numbers, which are faster to compare than members of an enumeration.
_IDLE, _INERROR = int(TransactionStatus.IDLE), int(TransactionStatus.INERROR)
# Statements that have no plan before psycopg has made text of them.
_COMPOSED = (bytes, SQL, Composed)
_FATAL, _NO_PIPELINE = int(ExecStatus.FATAL_ERROR), int(PipelineStatus.OFF)


Lent: TypeAlias = "Callable[[], PooledConnection | None]"
"""What a lent connection knows of what it was lent over; returns None when that was lost."""
WeakPool: TypeAlias = "Callable[[], Pool | None]"
"""What a lent connection knows of its pool, which it must not keep."""


def execute_plan(pooled: PooledConnection, plan: Plan, begin: Begin | None) -> PGresult:
    """Execute *plan* on a connection whose lock is held, with the BEGIN that it needs before it."""
    if pooled.watcher.pid != getpid():
        raise ForkedError(pooled.watcher.pid, getpid())
    pgconn, prepared, state = pooled.pgconn, pooled.prepared, pooled.connection.__dict__
    limit: float | None = state["command_timeout"] if "deadline" not in state else limit_in(state)
    if plan.effect:
        prepared.note_effect(plan.effect)
    prepared.reused, prepared.first = True, begin is not None or pgconn.transaction_status == _IDLE
    prepared.statements += 1
    try:
        if begin is None:
            plan.send(plan.name, plan.params, plan.formats)
        else:
            send_with_begin(pgconn, begin, plan.name, plan.params, plan.formats)
        plan.params = None  # which may be large
        results = pooled.watcher.fetch(limit)
        check_results(results, pooled.connection)
    except BaseException as error:
        after_error(pooled.connection, error)
        raise
    return results[-1]


def execute_text(pooled: PooledConnection, query: PostgresQuery, begin: Begin | None) -> list[PGresult]:
    """Execute *query*, which has no parameters left, on a connection whose lock is held; *begin* as `execute_plan`."""
    if pooled.watcher.pid != getpid():
        raise ForkedError(pooled.watcher.pid, getpid())
    pgconn, prepared, state = pooled.pgconn, pooled.prepared, pooled.connection.__dict__
    limit: float | None = state["command_timeout"] if "deadline" not in state else limit_in(state)
    prepared.note(query)
    prepared.reused = False
    prepared.statements += 1
    try:
        if begin is None:
            pgconn.send_query(query.query)
        else:
            send_text_with_begin(pgconn, begin, query.query)
        results = pooled.watcher.fetch(limit)
        check_results(results, pooled.connection)
    except BaseException as error:
        after_error(pooled.connection, error)
        raise
    return results if begin is None else results[len(begin) :]


def execute_first(pooled: PooledConnection, cursor: AnyCursor, query: PostgresQuery, begin: Begin) -> list[PGresult]:
    """Execute *query* of *cursor* as psycopg does, but in one message with *begin*; see `execute_plan`."""
    if pooled.watcher.pid != getpid():
        raise ForkedError(pooled.watcher.pid, getpid())
    prepared, state = pooled.prepared, pooled.connection.__dict__
    limit: float | None = state["command_timeout"] if "deadline" not in state else limit_in(state)
    prep, name = prepare(cursor, query)
    prepared.note(query)
    prepared.first = True
    prepared.statements += 1
    try:
        send_query_with_begin(pooled.pgconn, begin, query, prep, name)
        results = pooled.watcher.fetch(limit)
        check_results(results, pooled.connection)
        results = results[-1:]
        prepared.executed(query, prep, name, results)
        maintaining = prepared.maintaining(pooled.connection)
        if maintaining is not None:
            pooled.watcher.run(maintaining, limit)
    except BaseException as error:
        after_error(pooled.connection, error)
        raise
    return results


def may_repeat(pool: WeakPool, pooled: PooledConnection, error: psycopg.Error) -> bool:
    """Tell whether the statement that raised *error* may be executed once more.

    It may when the server did nothing because what was prepared is outdated.  Where other work was done before, that is
    lost with the transaction; then at least no other connection fails in the same way.
    """
    first = pooled.prepared.first
    outdated = pooled.prepared.reused and pooled.pgconn.pipeline_status == _NO_PIPELINE and is_refused(error)
    # A value that does not fit (class 22) is rather the caller's fault.
    if outdated and not first and not str(error.sqlstate).startswith("22"):
        forget_plans(pool)
    return outdated and first


def forget_plans(pool: WeakPool) -> None:
    """Have every connection of *pool* prepare its statements anew."""
    found = pool()
    if found is not None:
        found.forget_plans()


def begin_anew(connection: AnyConnection) -> None:
    """Roll back what a refused statement has begun; the next BEGIN sets the session values again."""
    if connection.pgconn.transaction_status == _INERROR:  # else another task or thread has begun anew since
        Connection.rollback(connection)  # which the connection of a unit refuses


class Borrowed(Protocol):
    """A borrowed connection; the psycopg connection over it is made only when the borrower asks for it."""

    refusal: Refusal | None
    lent: AnyConnection | None
    pooled: PooledConnection | None
    begin: Begin
    loan: Loan | None
    tag: bytes | None
    pool: Pool

    @property
    def connection(self) -> AnyConnection:
        """The psycopg connection."""
        ...


def read_found(found: tuple[Plan, PGresult], read: Read) -> Any:
    """Return what *read* makes of what `FastPath.run_on` returned: under no lock, as the program's code runs."""
    plan, result = found
    try:
        return read(plan, result)
    finally:
        plan.busy = False


class FastPath:
    """The fast path through one pool, for rows of one kind; a statement alone ends with the *tag*."""

    def __init__(self, pool: Pool, row_factory: RowFactory | None, tag: bytes | None = None) -> None:
        blueprint = pool.blueprint
        settings = blueprint.settings
        self.pool = pool
        self._row_factory = row_factory
        self._tag = tag
        self._alone = settings.clean_on_return != "always"  # a plan ends without cleaning
        # What identifies each statement, without and with parameters; its plan is kept with each connection.
        self._without: OrderedDict[object, object] = OrderedDict()
        self._with: OrderedDict[object, object] = OrderedDict()
        self._limit = blueprint.command_timeout
        self._loop = pool.loop
        self.possible = (
            FAST_PATH
            and (row_factory is None or is_psycopgs(row_factory))
            and not blueprint.transaction_settings
            and settings.connection_class is None
            and settings.reset is None
            and settings.check is None
            and not settings.check_on_checkout
        )

    def learn(self, connection: AnyConnection, statement: Statement, params: Params | None, cursor: AnyCursor) -> None:
        """Remember how *cursor* has executed *statement*, if it is prepared and nothing of the borrower's in force."""
        weak: Lent | None = connection.__dict__.get("pooled")
        pooled = None if weak is None else weak()
        if pooled is None or not self._is_usual(connection, pooled):
            return
        if statement.__class__ is Template:
            statement, params = spelled(statement, params)
        try:
            text = text_key(statement, connection)
        except Exception:
            return  # as in `Plans.learn`
        if text is None:
            return
        if "tag" in connection.__dict__:
            text = (text, connection.__dict__["tag"])
        # An object of its own, not the text: a key is compared by identity on each call.
        keys = self._without if params is None else self._with
        key = keys.get(text) or object()
        if pooled.plans.learn(key, statement, params, cursor, connection.row_factory) is not None:
            remember(keys, text, key, 4 * pooled.prepared.prepared_max)

    def _is_usual(self, connection: AnyConnection, pooled: PooledConnection) -> bool:
        """Tell whether a borrowed *connection* makes the cursors and rows that each borrower gets."""
        pools: AnyConnection = pooled.connection
        usual = self._row_factory or pools.row_factory
        return (
            connection.row_factory is usual
            and "tracer" not in connection.__dict__
            and connection.cursor_factory is pools.cursor_factory is Cursor
            and pooled.begin == b"BEGIN"  # else no statement is alone: the mode is that of a transaction
        )

    def run(self, statement: Statement, params: Params | None, read: Read, deadline: Deadline | None = None) -> Any:
        """Execute *statement* alone and return what *read* makes of the answer; a `Declined` when nothing was done."""
        if self._loop is not None and self._loop is not current_loop():
            return _NO_PLAN
        if statement.__class__ is Template:
            statement, params = spelled(statement, params)
        keys = self._without if params is None else self._with
        tag = self._tag
        # What is not text is composed on the connection.
        key = keys.get(statement if tag is None else (statement, tag)) if statement.__class__ is str else None
        if (key is None and statement.__class__ not in _COMPOSED) or not self._alone:
            return _NO_PLAN
        pool = self.pool if (find := detour.find) is None else find(self.pool)
        frame = sys._getframe(1)
        asked = 0.0 if pool.observer is None else perf_counter()
        execution = None
        limit = None if deadline is None else deadline.limit(None)
        pooled = pool.take_idle(frame) or pool.wait_for_one(frame, limit)
        if pooled is None:
            return _NO_PLAN
        try:
            if key is None:
                text = text_key(statement, pooled.connection)
                key = keys.get(text if tag is None else (text, tag))
            plan = None if key is None else pooled.plans.find(key, params)
            if plan is None or not (plan.has_rows or read is read_count):
                return _NO_PLAN
            if pool.observer is not None:
                loan = Loan(pool.observer, pool.subject, pooled.server, asked or perf_counter(), None)
                execution = loan.executing(statement, params)
            limit = self._limit if deadline is None else deadline.limit(self._limit)
            plan.send(plan.name, plan.params, plan.formats)
            plan.params = None  # which may be large
            result = (pooled.watcher.fetch(limit))[0]
            if result.status == _FATAL:
                error = error_from_result(result, encoding=pooled.connection.info.encoding)
                if is_refused(error):
                    execution = None  # psycopg executes it
                    return _REFUSED
                raise error
            if (*map(pooled.pgconn.parameter_status, LOOKED_AT),) != plan.session:
                plan = pooled.plans.adapted(plan, result)
            if execution is not None:
                execution.finished(result)
            plan.busy = True
        except BaseException as error:
            if execution is not None:
                execution.ended(error)
            after_error(pooled.connection, error)
            raise
        finally:
            pool.give_back(pooled)
            if execution is not None:
                execution.loan.tell_all()
        try:
            return read(plan, result)
        finally:
            plan.busy = False

    def run_on(self, lease: Borrowed, statement: Statement, params: Params | None, read: Read) -> Any:
        """Execute *statement* on a borrowed connection; return what `read_found` reads, or a `Declined` as `run`."""
        pooled = lease.pooled
        if statement.__class__ is Template:
            statement, params = spelled(statement, params)
        keys, tag = self._without if params is None else self._with, lease.tag
        key = keys.get(statement if tag is None else (statement, tag)) if statement.__class__ is str else None
        if pooled is None or (key is None and statement.__class__ not in _COMPOSED):
            return _NO_PLAN
        lock = pooled.connection.lock
        if not try_acquire(lock):
            if held_by_caller(lock):
                raise in_itself()
            lock.acquire()
        try:
            connection = lease.lent  # another task may have made it a moment ago
            if connection is None:
                if not PIPELINES or lease.refusal is not None or lease.pooled is None:
                    return _NO_PLAN
            elif not self._is_usual(connection, pooled) or not is_plain(connection):
                return _NO_PLAN
            idle = pooled.pgconn.transaction_status == _IDLE
            if key is None:
                text = text_key(statement, connection or pooled.connection)
                key = keys.get(text if tag is None else (text, tag))
            plan = None if key is None else pooled.plans.find(key, params, connection)
            if plan is None or not (plan.has_rows or read is read_count):
                return _NO_PLAN
            begin = None if not idle else lease.begin if connection is None else begin_statement(connection)
            if begin == ():
                return _NO_PLAN
            loan = lease.loan
            execution = None if loan is None else loan.executing(statement, params, pooled.pgconn)
            try:
                result = execute_plan(pooled, plan, begin)
                if (*map(pooled.pgconn.parameter_status, LOOKED_AT),) != plan.session:
                    plan = pooled.plans.adapted(plan, result)
                if execution is not None:
                    execution.finished(result)
                plan.busy = True
                return plan, result
            except BaseException as error:
                if isinstance(error, psycopg.Error) and may_repeat(lease.pool.weak, pooled, error):
                    execution = None
                else:
                    if execution is not None:
                        execution.ended(error)
                    raise
        finally:
            lock.release()
        begin_anew(lease.connection)
        return _REFUSED
