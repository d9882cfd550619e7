# Generated from pgmonkey/_async/fetching.py by tools/twins.py: change that file, then run the tool.

"""How the query methods read a result through psycopg's cursors; `pgmonkey._driver.plan` does so on the fast path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

from psycopg import Cursor
from psycopg.rows import Row, RowMaker

from .._driver.deadlines import Deadline
from .._driver.failure import text_of
from .._driver.psycopg_types import RowFactory
from .._driver.sql import Statement
from ..errors import ManyRowsError, NoRowError

T = TypeVar("T")

Fetch: TypeAlias = "Callable[[Cursor[Any], RowMaker[Any]], Callable[[], T]]"
"""Loads the values of a result; returns what makes the answer of a query method from them."""


class Given(NamedTuple):
    """What the call of a query method says beside its statement."""

    row_factory: RowFactory | None = None
    """What makes its rows; None for the database's own."""
    deadline: Deadline | None = None
    """When it must have ended."""
    fast: bool = True
    """Whether it may take the fast path."""
    own: bool = False
    """Whether the statement is ours, and so executed by psycopg's own cursor."""


NOTHING = Given()


def makes_rows(cursor_class: type[Cursor[Any]]) -> bool:
    """Tell whether a class of the program's own makes its rows in a way of its own."""
    return cursor_class.fetchone is not Cursor.fetchone or cursor_class.fetchall is not Cursor.fetchall


def as_it_is(row: Any) -> Any:
    """Return *row*."""
    return row


def fetch_one(cursor: Cursor[Any], make: RowMaker[Row]) -> Callable[[], Row | None]:
    """Load the first row, or None."""
    values = cursor.fetchone()
    return lambda: None if values is None else make(values)


def fetch_exactly_one(cursor: Cursor[Any], make: RowMaker[Row]) -> Callable[[], tuple[int, Row | None]]:
    """Load the first row, and tell how many there are."""
    values = cursor.fetchone()
    count = 0 if cursor.pgresult is None else cursor.pgresult.ntuples
    return lambda: (count, None if values is None or count != 1 else make(values))


def only_row(query: Statement, count: int, row: Any) -> Any:
    """Return *row* where the *count* of rows is 1; else raise the error that names *query*."""
    if count == 1:
        return row
    number, error = (f"{count} rows", ManyRowsError) if count else ("no row", NoRowError)
    raise error(f"the statement returned {number} where exactly one was expected: {text_of(query)}")


def fetch_all(cursor: Cursor[Any], make: RowMaker[Row]) -> Callable[[], list[Row]]:
    """Load all rows."""
    rows = cursor.fetchall()
    return lambda: [make(values) for values in rows]


def fetch_value(cursor: Cursor[Any], _make: RowMaker[Any]) -> Callable[[], Any]:
    """Load the first column of the first row, or None."""
    values = Cursor.fetchone(cursor)  # a column, whatever a class of the program's own makes of a row
    return lambda: None if values is None else values[0]


def fetch_values(cursor: Cursor[Any], _make: RowMaker[Any]) -> Callable[[], list[Any]]:
    """Load the first column of all rows."""
    rows = Cursor.fetchall(cursor)
    return lambda: [values[0] for values in rows]


def count(cursor: Cursor[Any], _make: RowMaker[Any]) -> Callable[[], int]:
    """Load nothing; return the number of rows affected."""
    number = cursor.rowcount
    return lambda: number


COLUMNS = (fetch_value, fetch_values)
"""Those that need tuples, whatever a class of cursors of the program's own makes of a row."""
