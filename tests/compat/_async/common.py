"""What the checks have in common in each colour: this file is the source of its synchronous twin."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from pgmonkey import AsyncDatabase

from ..checking import Checks, Report, config, observer

Rows = AsyncDatabase[TupleRow]
OFTEN = 8
"""Executions of a statement: psycopg prepares with the sixth, and then the fast path is taken."""


async def run(checks: Checks, report: Report) -> None:
    """Run all *checks*; one that fails leaves its connection pool to nobody else."""
    database: Rows | None = None
    for name, check, wanted in checks:
        if not report.begins(name):
            continue
        if database is None:
            database = AsyncDatabase(config(name))
        try:
            got = await check(database)
        except Exception as error:
            got = error
        if not report.found(got, wanted):
            await database.close()
            database = None
    if database is not None:
        await database.close()


class Undo(Exception):
    """Ends a block whose work is not to stay."""


async def value_of(connection: AsyncConnection[Any], query: Any, params: Any = None) -> Any:
    """Return the first column of the first row."""
    row = await row_of(connection, query, params)
    return None if row is None else row[0]


async def row_of(connection: AsyncConnection[Any], query: Any, params: Any = None) -> Any:
    """Return the first row."""
    cursor = await connection.execute(query, params)
    return await cursor.fetchone()


async def error_of(function: Callable[[], Awaitable[object]]) -> str:
    """Return the name of what *function* raises."""
    try:
        await function()
    except Exception as error:
        return type(error).__name__
    return "nothing"


def stored(label: str) -> list[int]:
    """Return the numbers that are stored and committed under *label*, as another session sees them."""
    rows = observer().execute("SELECT i FROM stored WHERE t = %s ORDER BY i", [label]).fetchall()
    return [row[0] for row in rows]
