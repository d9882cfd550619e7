# Generated from pgmonkey/_async/observed.py by tools/twins.py: change that file, then run the tool.

"""The cursors of connections that somebody listens to: those of `cursor`, and each execution is told of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from psycopg.abc import Params

from .._driver.sql import Statement
from .._telemetry.events import Loan
from .cursor import fast_cursor
from .psycopg_types import AnyCursor


@lru_cache
def observed_cursor(cursor_class: type[AnyCursor]) -> type[AnyCursor]:
    """Return the subclass of a class of cursors, of its fast class where there is one, that tells what it executes."""
    fast: Any = fast_cursor(cursor_class)  # type: ignore[arg-type]  # classes are hashable

    def execute(self: AnyCursor, query: Statement, params: Params | None = None, **options: Any) -> Any:
        loan: Loan = self.connection.__dict__["loan"]
        try:
            with loan.executing(query, params, self.connection.pgconn) as execution:
                found = fast.execute(self, query, params, **options)
                execution.rows = self.rowcount
        finally:
            loan.tell()
        return found

    def executemany(self: AnyCursor, query: Statement, params_seq: Iterable[Params], **options: Any) -> None:
        loan: Loan = self.connection.__dict__["loan"]
        batch = len(params_seq) if isinstance(params_seq, (list, tuple)) else -1
        try:
            with loan.executing(query, params_seq, self.connection.pgconn, batch) as execution:
                fast.executemany(self, query, params_seq, **options)
                execution.rows = self.rowcount
        finally:
            loan.tell()

    def stream(self: AnyCursor, query: Statement, params: Params | None = None, **options: Any) -> Iterator[Any]:
        loan: Loan = self.connection.__dict__["loan"]
        rows = fast.stream(self, query, params, **options)
        try:
            with loan.executing(query, params, self.connection.pgconn) as execution:
                execution.rows = 0
                for row in rows:
                    execution.rows += 1
                    yield row
        finally:
            rows.close()
            loan.tell()

    @contextmanager
    def copy(self: AnyCursor, statement: Statement, params: Params | None = None, **options: Any) -> Iterator[Any]:
        loan: Loan = self.connection.__dict__["loan"]
        try:
            with loan.executing(statement, params, self.connection.pgconn) as execution:
                with fast.copy(self, statement, params, **options) as copying:
                    yield copying
                execution.rows = self.rowcount
        finally:
            loan.tell()

    methods = {"execute": execute, "executemany": executemany, "stream": stream, "copy": copy, "over": fast}
    # No slots of its own, so that psycopg's cursors can become of this class.
    return type(fast.__name__, (fast,), {"__module__": fast.__module__, "__slots__": (), **methods})
