# Generated from _cursor_async.py by tools/twins.py: change that file, then run the tool.

"""The cursors of lent connections: psycopg's, which take a short way where nothing unusual is asked for."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from psycopg import Cursor
from psycopg._queries import PostgresClientQuery, PostgresQuery
from psycopg.adapt import Transformer
from psycopg.pq import Format

from ._connector import PooledConnection
from ._fast import begins, execute_plan, execute_text, find_plan, is_usual, learn_plan
from ._statement import is_one_plain


def _execute(self: Cursor[Any], query: Any, params: Any = None, *, prepare: Any = None, binary: Any = None) -> Any:
    """Do what psycopg does; what is prepared in one round trip, also where a transaction begins with it."""
    pooled: PooledConnection | None = self._conn.__dict__.get("pooled")
    usual = prepare is None and binary is None and self.format == Format.TEXT
    if pooled is None or query.__class__ not in (str, bytes) or not usual:
        return Cursor.execute(self, query, params, prepare=prepare, binary=binary)
    with self._conn.lock:
        key = query if params is not None else (query, None)
        plan = None
        if is_usual(self._conn) and not self._closed:
            plan = find_plan(pooled, key, params, self._adapters)
        if plan is not None:
            result = execute_plan(pooled, plan, begins(self._conn, pooled))
            self._reset()
            self._tx, self._last_query = Transformer(self), query
            self._set_results([result])
            return self
    Cursor.execute(self, query, params)
    learn_plan(pooled, key, query, params, self)
    return self


def _execute_merged(
    self: Cursor[Any], query: Any, params: Any = None, *, prepare: Any = None, binary: Any = None
) -> Any:
    """Do what psycopg's client-side cursors do, in one round trip with the BEGIN that it needs."""
    connection = self._conn
    pooled: PooledConnection | None = connection.__dict__.get("pooled")
    usual = prepare is None and binary is None and query.__class__ is str and self.format == Format.TEXT
    if not usual or pooled is None or not is_one_plain(query):
        return Cursor.execute(self, query, params, prepare=prepare, binary=binary)
    with connection.lock:
        if is_usual(connection) and not self._closed:
            self._reset()
            self._tx = Transformer(self)
            self._query = converted = self._convert_query(query, params)
            results = execute_text(pooled, converted, begins(connection, pooled))
            self._last_query = query
            self._set_results(results)
            return self
    return Cursor.execute(self, query, params)


_SHORT_WAYS = {PostgresQuery: _execute, PostgresClientQuery: _execute_merged}


@lru_cache
def shortened(cursor_class: Any) -> Any:
    """Return the subclass of a class of cursors that takes the short way; itself where there is none for it."""
    execute = _SHORT_WAYS.get(cursor_class._query_cls)
    if cursor_class.execute is not Cursor.execute or execute is None:
        return cursor_class
    # Without slots, so that a cursor can become one of this class.
    variables = {"__module__": cursor_class.__module__, "__slots__": (), "execute": execute}
    return type(cursor_class.__name__, (cursor_class,), variables)
