"""The cursors of connections that somebody listens to: those of `cursor`, and each execution is told of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

from psycopg.abc import Params

from .._driver.sql import Statement
from .._telemetry.events import Loan
from .cursor import fast_cursor
from .psycopg_types import AsyncAnyCursor


@lru_cache
def observed_cursor(cursor_class: type[AsyncAnyCursor]) -> type[AsyncAnyCursor]:
    """Return the subclass of a class of cursors, of its fast class where there is one, that tells what it executes."""
    fast: Any = fast_cursor(cursor_class)  # type: ignore[arg-type]  # classes are hashable

    async def execute(self: AsyncAnyCursor, query: Statement, params: Params | None = None, **options: Any) -> Any:
        loan: Loan = self.connection.__dict__["loan"]
        try:
            with loan.executing(query, params, self.connection.pgconn) as execution:
                found = await fast.execute(self, query, params, **options)
                execution.rows = self.rowcount
        finally:
            loan.tell()
        return found

    async def executemany(self: AsyncAnyCursor, query: Statement, params_seq: Iterable[Params], **options: Any) -> None:
        loan: Loan = self.connection.__dict__["loan"]
        batch = len(params_seq) if isinstance(params_seq, (list, tuple)) else -1
        try:
            with loan.executing(query, params_seq, self.connection.pgconn, batch) as execution:
                await fast.executemany(self, query, params_seq, **options)
                execution.rows = self.rowcount
        finally:
            loan.tell()

    async def stream(
        self: AsyncAnyCursor, query: Statement, params: Params | None = None, **options: Any
    ) -> AsyncIterator[Any]:
        loan: Loan = self.connection.__dict__["loan"]
        rows = fast.stream(self, query, params, **options)
        try:
            with loan.executing(query, params, self.connection.pgconn) as execution:
                execution.rows = 0
                async for row in rows:
                    execution.rows += 1
                    yield row
        finally:
            await rows.aclose()
            loan.tell()

    @asynccontextmanager
    async def copy(
        self: AsyncAnyCursor, statement: Statement, params: Params | None = None, **options: Any
    ) -> AsyncIterator[Any]:
        loan: Loan = self.connection.__dict__["loan"]
        try:
            with loan.executing(statement, params, self.connection.pgconn) as execution:
                async with fast.copy(self, statement, params, **options) as copying:
                    yield copying
                execution.rows = self.rowcount
        finally:
            loan.tell()

    methods = {"execute": execute, "executemany": executemany, "stream": stream, "copy": copy, "over": fast}
    # No slots of its own, so that psycopg's cursors can become of this class.
    return type(fast.__name__, (fast,), {"__module__": fast.__module__, "__slots__": (), **methods})
