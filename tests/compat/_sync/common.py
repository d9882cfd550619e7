# Generated from tests/compat/_async/common.py by tools/twins.py: change that file, then run the tool.

"""What the checks have in common in each colour: this file is the source of its synchronous twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psycopg import Connection
from psycopg.rows import TupleRow

from pgmonkey import Database

from ..checking import Checks, Report, config, observer

Rows = Database[TupleRow]
OFTEN = 8
"""Executions of a statement: psycopg prepares with the sixth, and then the fast path is taken."""


def run(checks: Checks, report: Report) -> None:
    """Run all *checks*; one that fails leaves its connection pool to nobody else."""
    database: Rows | None = None
    for name, check, wanted in checks:
        if not report.begins(name):
            continue
        if database is None:
            database = Database(config(name))
        try:
            got = check(database)
        except Exception as error:
            got = error
        if not report.found(got, wanted):
            database.close()
            database = None
    if database is not None:
        database.close()


class Undo(Exception):
    """Ends a block whose work is not to stay."""


def value_of(connection: Connection[Any], query: Any, params: Any = None) -> Any:
    """Return the first column of the first row."""
    row = row_of(connection, query, params)
    return None if row is None else row[0]


def row_of(connection: Connection[Any], query: Any, params: Any = None) -> Any:
    """Return the first row."""
    cursor = connection.execute(query, params)
    return cursor.fetchone()


def error_of(function: Callable[[], object]) -> str:
    """Return the name of what *function* raises."""
    try:
        function()
    except Exception as error:
        return type(error).__name__
    return "nothing"


def stored(label: str) -> list[int]:
    """Return the numbers that are stored and committed under *label*, as another session sees them."""
    rows = observer().execute("SELECT i FROM stored WHERE t = %s ORDER BY i", [label]).fetchall()
    return [row[0] for row in rows]
