# Generated from _fast_async.py by tools/twins.py: change that file, then run the tool.

"""The short way for a single statement that is prepared already: what psycopg makes anew for each execution is kept.

The first executions go the usual way, by `conn.execute`.  When psycopg has prepared a statement on a connection, what
that execution used is remembered there: the statement's name, the dumpers and loaders, the maker of rows.  From then on
only the parameters, and the answer, pass through psycopg.  Wherever that might not be the same, the usual way is taken.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import Connection, Cursor, rows
from psycopg._queries import PostgresQuery
from psycopg.abc import Transformer as AnyTransformer
from psycopg.adapt import AdaptersMap, PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.generators import execute
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from ._colour import current_loop, quick_answer
from ._connector import PooledConnection
from ._pool import Pool
from ._prepared import is_outdated
from ._statement import Params, leaves_state

if TYPE_CHECKING:
    from typing_extensions import LiteralString

_LARGEST = 200
MISS: Any = object()
"""Nothing was done: take the usual way."""

Read = Callable[["Plan", PGresult], Any]


class _Context:
    """What a Transformer is made from: a connection, with psycopg's types as they are registered now."""

    def __init__(self, connection: Connection[Any]) -> None:
        self.connection = connection
        self.adapters = AdaptersMap(psycopg.adapters)


class Plan:
    """How one connection executes one statement that it has prepared."""

    __slots__ = ("_dumpers", "_key", "_loaders", "_name", "has_rows", "make_row", "query", "transformer")

    def __init__(self, name: bytes, query: PostgresQuery, transformer: AnyTransformer, cursor: Cursor[Any]) -> None:
        self._name = name
        self._key = (query.query, query.types)
        self.query = query
        self.transformer = transformer
        self.has_rows = cursor.description is not None
        self.make_row = cursor._make_row
        # A type that is registered later replaces these, because they are shared with a copy.
        self._dumpers, self._loaders = psycopg.adapters._dumpers[PyFormat.AUTO], psycopg.adapters._loaders[0]

    @property
    def outdated(self) -> bool:
        """Whether types were registered since."""
        registered = psycopg.adapters
        return registered._dumpers[PyFormat.AUTO] is not self._dumpers or registered._loaders[0] is not self._loaders

    def dump(self, params: Params) -> bool:
        """Dump *params*; tell whether they are of the types that the statement was prepared for."""
        query = self.query
        query.dump(params)
        return query.types == self._key[1] and query.query == self._key[0]

    def name(self, pooled: PooledConnection) -> bytes | None:
        """Return the name of the prepared statement, None when it is gone."""
        return self._name if pooled.prepared.use(self._key, self._name) else None


class FastPath:
    """The short way through one pool, for rows of one kind."""

    def __init__(self, pool: Pool, row_factory: Any) -> None:
        settings = pool.plan.settings
        arguments = pool.plan.connect
        self._pool = pool
        self._row_factory = row_factory
        self._known: set[Any] = set()
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

    def learn(self, pooled: PooledConnection, statement: LiteralString, params: Params, cursor: Cursor[Any]) -> None:
        """Remember how *cursor* has executed *statement*, if it was prepared and all is as usual."""
        connection, result = pooled.connection, cursor.pgresult
        if not pooled.prepared.any or result is None or leaves_state(statement):
            return
        if connection._adapters or connection._notice_handlers or connection._notify_handlers:
            return
        transformer = Transformer(_Context(connection))
        query = PostgresQuery(transformer)
        query.convert(statement, params)
        name = pooled.prepared.name_of((query.query, query.types))
        if name is not None:
            transformer.set_pgresult(result)
            if len(pooled.plans) >= _LARGEST:
                pooled.plans.clear()
            key = (statement, params is None, self._row_factory)
            # One for parameters of these types, and to begin with.
            plan = Plan(name, query, transformer, cursor)
            pooled.plans[key] = plan
            pooled.plans[(key, query.types)] = plan
            self._known.add(key)

    def run(self, statement: Any, params: Params, read: Read) -> Any:
        """Execute *statement* and return what *read* makes of the answer; `MISS` when nothing was done."""
        if statement.__class__ is not str:
            return MISS
        key = (statement, params is None, self._row_factory)
        if key not in self._known or self._loop is not current_loop():
            return MISS
        frame = sys._getframe(1)
        pooled = self._pool.take_idle(frame) or self._pool.wait_for_one(frame)
        if pooled is None:
            return MISS
        try:
            plan: Plan | None = pooled.plans.get(key)
            if plan is not None and not plan.dump(params):
                plan = pooled.plans.get((key, plan.query.types))
                if plan is not None:
                    plan.dump(params)
            if plan is None or plan.outdated or (read is not read_count and not plan.has_rows):
                return MISS
            name = plan.name(pooled)
            if name is None:
                return MISS
            query, connection = plan.query, pooled.connection
            pgconn = connection.pgconn
            pgconn.send_query_prepared(name, query.params, query.formats)
            result = quick_answer(pgconn, pooled.arrived)
            if result is None or pgconn.is_busy():
                rest = connection.wait(execute(pgconn))
                result = result or rest[0]
            else:
                pgconn.get_result()  # says that this was all
            if result.status == ExecStatus.FATAL_ERROR:
                error = error_from_result(result, encoding=connection.info.encoding)
                if is_outdated(error):
                    self._pool.forget_plans()
                    return MISS
                raise error
            return read(plan, result)
        except psycopg.OperationalError as error:
            self._pool.observe(error, pooled.connection.pgconn)
            raise
        finally:
            self._pool.give_back(pooled)


def read_one(plan: Plan, result: PGresult) -> Any:
    """Return the first row, None when there is none."""
    if not result.ntuples:
        return None
    plan.transformer.set_pgresult(result, set_loaders=False)
    return plan.transformer.load_row(0, plan.make_row)


def read_value(plan: Plan, result: PGresult) -> Any:
    """Return the first column of the first row, None when there is none."""
    if not result.ntuples:
        return None
    plan.transformer.set_pgresult(result, set_loaders=False)
    return plan.transformer.load_row(0, tuple)[0]


def read_all(plan: Plan, result: PGresult) -> list[Any]:
    """Return all rows."""
    plan.transformer.set_pgresult(result, set_loaders=False)
    return plan.transformer.load_rows(0, result.ntuples, plan.make_row)


def read_count(plan: Plan, result: PGresult) -> int:
    """Return the number of rows affected, as psycopg's ``rowcount`` does."""
    if result.status == ExecStatus.TUPLES_OK:
        return result.ntuples
    count = result.command_tuples
    return -1 if count is None else count
