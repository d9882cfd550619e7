# Generated from pgmonkey/_async/bulk.py by tools/twins.py: change that file, then run the tool.

"""Many rows at once, on a connection that is in a transaction: `execute_many`, and COPY."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias, cast

import psycopg
from psycopg.cursor import Cursor

from .._driver.copying import (
    COLUMNS,
    Layout,
    RowEncoder,
    TableName,
    Values,
    columns_of,
    copy_in,
    copy_out,
    identifier,
    refused_row,
    values_of,
)
from .._driver.files import CopyFile, header_of, start_of_text, to_read, to_write
from .._driver.many import can_execute_many, executing_many, values_of_results
from .._driver.prepared import is_refused
from .._driver.sql import Params, Plain, Statement
from .._telemetry.events import Loan
from .cursor import fast_cursor, own_cursor
from .psycopg_types import AnyConnection, AnyCursor
from .waiting import chunks, done

Rows: TypeAlias = "Iterable[Any] | Iterable[Any]"
# Rows that are taken at a time, at first and at most: their size is not known before they are encoded.
_FIRST_ROWS, _ROWS = 16, 500
# Bytes that are to be encoded at a time, and read from a file.
_ENCODED, _BYTES = 1 << 18, 1 << 16


def execute_many(
    connection: AnyConnection, query: Statement, rows: Sequence[Params], *, returning: bool
) -> tuple[int, Callable[[], list[Any]]]:
    """Execute *query* for each of *rows*; return the number of rows affected, and what makes those that it returned.

    The program's own classes make them, so not while the connection is in use.
    """
    cursor = connection.cursor()
    if not _is_psycopgs(cursor, returning) or not can_execute_many(cursor, query):
        return _as_psycopg(cursor, query, rows, returning)
    loan: Loan | None = connection.__dict__.get("loan")
    execution = None if loan is None else loan.executing(query, rows, connection.pgconn, len(rows))
    try:
        with connection.lock:
            count, results = connection.wait(executing_many(cursor, query, rows, returning=returning))
            values = values_of_results(cursor, results)
        if execution is not None:
            execution.rows = count
            execution.ended()
    except BaseException as error:
        if execution is not None:
            execution.ended(error)
        raise
    finally:
        if loan is not None:
            loan.tell()
    if not values:
        return count, list
    make = cursor.row_factory(cursor)
    return count, lambda: [make(row) for row in values]


def _is_psycopgs(cursor: AnyCursor, returning: bool) -> bool:
    kind = type(cursor)  # not its `__class__`: a tracer's proxy gives that of the cursor inside
    kind = vars(kind).get("over", kind)
    plain = kind.executemany in (Cursor.executemany, fast_cursor(Cursor).executemany)
    return plain and (not returning or kind.fetchall is Cursor.fetchall)


class Outdated(Exception):
    """Nothing was done, perhaps because what psycopg had prepared is outdated: `one_by_one` prepares nothing."""


def _as_psycopg(
    cursor: AnyCursor, query: Statement, rows: Sequence[Params], returning: bool
) -> tuple[int, Callable[[], list[Any]]]:
    try:
        cursor.executemany(query, cast(Any, rows), returning=returning)
    except psycopg.Error as error:
        if cursor.rowcount > 0 or not is_refused(error):
            raise
        raise Outdated from error
    if not returning:
        return cursor.rowcount, list
    count, found = max(cursor.rowcount, 0), list[Any]()
    more: bool | None = True
    while more:
        if cursor.description is not None:
            found += cursor.fetchall()
        more = cursor.nextset()
        count += max(cursor.rowcount, 0) if more else 0
    return count, lambda: found


def one_by_one(
    connection: AnyConnection, query: Statement, rows: Sequence[Params], *, returning: bool
) -> tuple[int, Callable[[], list[Any]]]:
    """Do as `execute_many`, with a round trip for each of *rows*."""
    count, found = 0, list[Any]()
    with connection.cursor() as cursor:
        for params in rows:
            cursor.execute(cast(Plain, query), params, prepare=False)
            count += max(cursor.rowcount, 0)
            if returning and cursor.description is not None:
                found += cursor.fetchall()
    return count, lambda: found


# -- COPY -------------------------------------------------------------------------------------------------------------


def copy_rows(connection: AnyConnection, table: TableName, rows: Rows, columns: Sequence[str] | None) -> int:
    """Store *rows* in *table* by COPY; return their number."""
    encoder: RowEncoder | None = None
    values: Values | None = None
    copy: Any = None
    count, cursor, size = 0, connection.cursor(), _FIRST_ROWS
    source, making = chunks(rows, lambda: size), True
    try:
        with ExitStack() as stack:
            for chunk in source:
                making = False
                if encoder is None:
                    given, values = values_of(chunk[0], columns)
                    types = _columns_of(connection, table)
                    encoder = RowEncoder(given or [*types], types, values, connection.adapters)
                if encoder.take(chunk):
                    stack.close()
                    count += max(cursor.rowcount, 0)
                    form = Layout("binary" if encoder.binary else "text")
                    copy = stack.enter_context(cursor.copy(copy_in(table, encoder.names, form)))
                    encoder.begin(copy)
                sent = 0
                for data in encoder.encode():
                    copy.write(data)
                    sent += len(data)
                size = min(_ROWS, max(1, len(chunk) * _ENCODED // (sent or 1)))
                making = True
            making = False
    except psycopg.Error as error:
        if encoder is None or error is encoder.failure or making:
            raise
        if encoder.failure is not None:
            # Older releases of psycopg send the half of a row that was encoded, and raise what the server says to it.
            raise encoder.failure from encoder.failure.__cause__
        refused = refused_row(error, rows, encoder.names, values, encoder.start)
        if refused is error:
            raise
        raise refused from error
    finally:
        source.close()
    return count + max(cursor.rowcount, 0)


def _columns_of(connection: AnyConnection, table: TableName) -> dict[str, int]:
    cursor = own_cursor(connection)
    cursor.execute(COLUMNS, [identifier(table).as_string(connection)])
    return columns_of(cursor.fetchall())


def copy_to(connection: AnyConnection, query: Statement, file: CopyFile, params: Params, options: Layout) -> int:
    """Write what *query* returns into *file*; return the number of rows."""
    cursor = connection.cursor()
    with ExitStack() as stack:
        write = stack.enter_context(to_write(file))
        parts: list[Any] = []
        size = 0
        for data in stack.enter_context(cursor.copy(copy_out(query, options), params)):
            parts.append(data)
            size += len(data)
            if size >= _BYTES:
                done(write(b"".join(parts)))
                parts, size = [], 0
        done(write(b"".join(parts)))
    return max(cursor.rowcount, 0)


def copy_from(
    connection: AnyConnection, table: TableName, file: CopyFile, columns: Sequence[str] | None, options: Layout
) -> int:
    """Store what is in *file* in *table*; return the number of rows."""
    cursor = connection.cursor()
    with to_read(file) as read:
        data = start_of_text(done(read(_BYTES)), options.format)
        if not data:
            return 0
        if columns is None and options.header and options.format == "csv":
            complete = False
            while (columns := header_of(data, options, connection.info.encoding, complete=complete)) is None:
                more = done(read(_BYTES))
                data, complete = data + more, not more
        with cursor.copy(copy_in(table, columns, options)) as copy:
            while data:
                copy.write(data)
                data = done(read(_BYTES))
    return max(cursor.rowcount, 0)
