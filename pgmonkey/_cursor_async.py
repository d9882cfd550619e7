"""The cursors of lent connections: psycopg's, which take a short way where nothing unusual is asked for."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from psycopg import AsyncCursor
from psycopg._queries import PostgresClientQuery, PostgresQuery
from psycopg.adapt import Transformer
from psycopg.pq import Format

from ._connector_async import AsyncPooledConnection
from ._fast_async import begins, execute_plan, execute_text, find_plan, is_usual, learn_plan
from ._statement import is_one_plain


async def _execute(
    self: AsyncCursor[Any], query: Any, params: Any = None, *, prepare: Any = None, binary: Any = None
) -> Any:
    """Do what psycopg does; what is prepared in one round trip, also where a transaction begins with it."""
    pooled: AsyncPooledConnection | None = self._conn.__dict__.get("pooled")
    usual = prepare is None and binary is None and self.format == Format.TEXT
    if pooled is None or query.__class__ not in (str, bytes) or not usual:
        return await AsyncCursor.execute(self, query, params, prepare=prepare, binary=binary)
    async with self._conn.lock:
        key = query if params is not None else (query, None)
        plan = None
        if is_usual(self._conn) and not self._closed:
            plan = find_plan(pooled, key, params, self._adapters)
        if plan is not None:
            result = await execute_plan(pooled, plan, begins(self._conn, pooled))
            self._reset()
            self._tx, self._last_query = Transformer(self), query
            self._set_results([result])
            return self
    await AsyncCursor.execute(self, query, params)
    learn_plan(pooled, key, query, params, self)
    return self


async def _execute_merged(
    self: AsyncCursor[Any], query: Any, params: Any = None, *, prepare: Any = None, binary: Any = None
) -> Any:
    """Do what psycopg's client-side cursors do, in one round trip with the BEGIN that it needs."""
    connection = self._conn
    pooled: AsyncPooledConnection | None = connection.__dict__.get("pooled")
    usual = prepare is None and binary is None and query.__class__ is str and self.format == Format.TEXT
    if not usual or pooled is None or not is_one_plain(query):
        return await AsyncCursor.execute(self, query, params, prepare=prepare, binary=binary)
    async with connection.lock:
        if is_usual(connection) and not self._closed:
            self._reset()
            self._tx = Transformer(self)
            self._query = converted = self._convert_query(query, params)
            results = await execute_text(pooled, converted, begins(connection, pooled))
            self._last_query = query
            self._set_results(results)
            return self
    return await AsyncCursor.execute(self, query, params)


_SHORT_WAYS = {PostgresQuery: _execute, PostgresClientQuery: _execute_merged}


@lru_cache
def shortened(cursor_class: Any) -> Any:
    """Return the subclass of a class of cursors that takes the short way; itself where there is none for it."""
    execute = _SHORT_WAYS.get(cursor_class._query_cls)
    if cursor_class.execute is not AsyncCursor.execute or execute is None:
        return cursor_class
    # Without slots, so that a cursor can become one of this class.
    variables = {"__module__": cursor_class.__module__, "__slots__": (), "execute": execute}
    return type(cursor_class.__name__, (cursor_class,), variables)
