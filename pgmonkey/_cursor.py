# Generated from _cursor_async.py by tools/twins.py: change that file, then run the tool.

"""The cursors of lent connections: psycopg's, which take the short way for what is prepared."""

from __future__ import annotations

from typing import Any

from psycopg import Cursor
from psycopg.adapt import Transformer
from psycopg.pq import Format
from psycopg.rows import Row

from ._connector import PooledConnection
from ._fast import begins, execute_plan, find_plan, is_usual, learn_plan


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
