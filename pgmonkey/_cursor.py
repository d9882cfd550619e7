# Generated from _cursor_async.py by tools/twins.py: change that file, then run the tool.

"""The cursors of lent connections: psycopg's, which take the short way for what is prepared."""

from __future__ import annotations

from typing import Any

from psycopg import Cursor
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import Row

from ._connector import PooledConnection
from ._fast import Plan, find_plan, learn_plan
from ._fetching import begin_and_send, taking


class PooledCursor(Cursor[Row]):
    """Executes what its connection has prepared in one round trip, also where a transaction begins with it."""

    def execute(self, query: Any, params: Any = None, *, prepare: Any = None, binary: Any = None) -> Any:
        """Do what psycopg's own does."""
        pooled: PooledConnection | None = self._conn.__dict__.get("pooled")
        usual = prepare is None and binary is None and self.format == Format.TEXT
        if pooled is None or query.__class__ is not str or not usual:
            return super().execute(query, params, prepare=prepare, binary=binary)
        with self._conn.lock:
            key = query if params is not None else (query, None)
            plan = find_plan(pooled, key, params, self._adapters) if self._ready() else None
            if plan is not None:
                result = self._execute(pooled, plan)
                self._reset()
                self._tx, self._last_query = Transformer(self), query
                self._set_results([result])
                return self
        super().execute(query, params)
        learn_plan(pooled, key, query, params, self)
        return self

    def _ready(self) -> bool:
        connection = self._conn
        state = connection.__dict__
        return (
            connection.pgconn.status == ConnStatus.OK
            and connection._pipeline is None
            and not self._closed
            and not connection._notice_handlers
            and not connection._notify_handlers
            and "refusal" not in state
            and "transaction_settings" not in state
        )

    def _execute(self, pooled: PooledConnection, plan: Plan) -> PGresult:
        connection: Any = self._conn
        pgconn = pooled.pgconn
        if not plan.harmless:
            pooled.prepared.expect("")
        try:
            if connection._autocommit or pgconn.transaction_status != TransactionStatus.IDLE:
                plan.send(plan.name, plan.params, plan.formats)
            else:
                begin_and_send(pgconn, connection._get_tx_start_command(), plan.name, plan.params, plan.formats)
            results = plan.fetch(connection.__dict__["command_timeout"])
            for result in results:
                if result.status == ExecStatus.FATAL_ERROR:
                    raise error_from_result(result, encoding=connection.info.encoding)
        except BaseException as error:
            connection.after(error, taking(pgconn))
            raise
        while notification := pgconn.notifies():
            if pgconn.notify_handler is not None:
                pgconn.notify_handler(notification)
        return results[-1]
