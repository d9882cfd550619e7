# Generated from _cursor_async.py by tools/twins.py: change that file, then run the tool.

"""The cursors of lent connections: psycopg's, which take a short way where nothing unusual is asked for."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from psycopg import Cursor
from psycopg._queries import PostgresClientQuery, PostgresQuery
from psycopg.adapt import Transformer
from psycopg.pq import Format
from psycopg.rows import Row

from ._connector import PooledConnection
from ._fast import begins, execute_plan, execute_text, find_plan, is_usual, learn_plan
from ._statement import is_one_plain


class PooledCursor(Cursor[Row]):
    """Executes what its connection has prepared in one round trip, also where a transaction begins with it."""

    def execute(self, query: Any, params: Any = None, *, prepare: Any = None, binary: Any = None) -> Any:
        """Do what psycopg's own does."""
        pooled: PooledConnection | None = self._conn.__dict__.get("pooled")
        usual = prepare is None and binary is None and self.format == Format.TEXT
        if pooled is None or query.__class__ not in (str, bytes) or not usual:
            return super().execute(query, params, prepare=prepare, binary=binary)
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
        super().execute(query, params)
        learn_plan(pooled, key, query, params, self)
        return self


class PooledClientCursor(Cursor[Row]):
    """Executes what psycopg's client-side cursors make of a query, in one round trip with the BEGIN that it needs."""

    def execute(self, query: Any, params: Any = None, *, prepare: Any = None, binary: Any = None) -> Any:
        """Do what psycopg's own does."""
        connection = self._conn
        pooled: PooledConnection | None = connection.__dict__.get("pooled")
        usual = prepare is None and binary is None and query.__class__ is str and self.format == Format.TEXT
        if not usual or pooled is None or not is_one_plain(query):
            return super().execute(query, params, prepare=prepare, binary=binary)
        with connection.lock:
            if is_usual(connection) and not self._closed:
                self._reset()
                self._tx = Transformer(self)
                self._query = converted = self._convert_query(query, params)
                result = execute_text(pooled, converted, begins(connection, pooled))
                self._last_query = query
                self._set_results([result])
                return self
        return super().execute(query, params)


@lru_cache
def shortened(factory: Any) -> Any:
    """Return the subclass of a *factory* of cursors that takes the short way; itself where there is none for it."""
    execute, kind = getattr(factory, "execute", None), getattr(factory, "_query_cls", None)
    if execute is not Cursor.execute or kind not in (PostgresQuery, PostgresClientQuery):
        return factory
    short = PooledCursor if kind is PostgresQuery else PooledClientCursor
    return type(factory.__name__, (short, factory), {"__module__": factory.__module__, "__doc__": factory.__doc__})
