"""Many rows at once, on a connection that is in a transaction: `execute_many`, and COPY."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeAlias, cast

import psycopg
from psycopg.cursor_async import AsyncCursor

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
from .psycopg_types import AsyncAnyConnection, AsyncAnyCursor
from .waiting import chunks, done

AsyncRows: TypeAlias = "Iterable[Any] | AsyncIterable[Any]"
# Rows that are taken at a time, at first and at most: their size is not known before they are encoded.
_FIRST_ROWS, _ROWS = 16, 500
# Bytes that are to be encoded at a time, and read from a file.
_ENCODED, _BYTES = 1 << 18, 1 << 16


async def execute_many(
    connection: AsyncAnyConnection, query: Statement, rows: Sequence[Params], *, returning: bool
) -> tuple[int, Callable[[], list[Any]]]:
    """Execute *query* for each of *rows*; return the number of rows affected, and what makes those that it returned.

    The program's own classes make them, so not while the connection is in use.
    """
    cursor = connection.cursor()
    if not _is_psycopgs(cursor, returning) or not can_execute_many(cursor, query):
        return await _as_psycopg(cursor, query, rows, returning)
    loan: Loan | None = connection.__dict__.get("loan")
    execution = None if loan is None else loan.executing(query, rows, connection.pgconn, len(rows))
    try:
        async with connection.lock:
            count, results = await connection.wait(executing_many(cursor, query, rows, returning=returning))
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


def _is_psycopgs(cursor: AsyncAnyCursor, returning: bool) -> bool:
    kind = type(cursor)  # not its `__class__`: a tracer's proxy gives that of the cursor inside
    kind = vars(kind).get("over", kind)
    plain = kind.executemany in (AsyncCursor.executemany, fast_cursor(AsyncCursor).executemany)
    return plain and (not returning or kind.fetchall is AsyncCursor.fetchall)


class Outdated(Exception):
    """Nothing was done, perhaps because what psycopg had prepared is outdated: `one_by_one` prepares nothing."""


async def _as_psycopg(
    cursor: AsyncAnyCursor, query: Statement, rows: Sequence[Params], returning: bool
) -> tuple[int, Callable[[], list[Any]]]:
    try:
        await cursor.executemany(query, cast(Any, rows), returning=returning)
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
            found += await cursor.fetchall()
        more = cursor.nextset()
        count += max(cursor.rowcount, 0) if more else 0
    return count, lambda: found


async def one_by_one(
    connection: AsyncAnyConnection, query: Statement, rows: Sequence[Params], *, returning: bool
) -> tuple[int, Callable[[], list[Any]]]:
    """Do as `execute_many`, with a round trip for each of *rows*."""
    count, found = 0, list[Any]()
    async with connection.cursor() as cursor:
        for params in rows:
            await cursor.execute(cast(Plain, query), params, prepare=False)
            count += max(cursor.rowcount, 0)
            if returning and cursor.description is not None:
                found += await cursor.fetchall()
    return count, lambda: found


# -- COPY -------------------------------------------------------------------------------------------------------------


async def copy_rows(
    connection: AsyncAnyConnection, table: TableName, rows: AsyncRows, columns: Sequence[str] | None
) -> int:
    """Store *rows* in *table* by COPY; return their number."""
    encoder: RowEncoder | None = None
    values: Values | None = None
    copy: Any = None
    count, cursor, size = 0, connection.cursor(), _FIRST_ROWS
    source, making = chunks(rows, lambda: size), True
    try:
        async with AsyncExitStack() as stack:
            async for chunk in source:
                making = False
                if encoder is None:
                    given, values = values_of(chunk[0], columns)
                    types = await _columns_of(connection, table)
                    encoder = RowEncoder(given or [*types], types, values, connection.adapters)
                if encoder.take(chunk):
                    await stack.aclose()
                    count += max(cursor.rowcount, 0)
                    form = Layout("binary" if encoder.binary else "text")
                    copy = await stack.enter_async_context(cursor.copy(copy_in(table, encoder.names, form)))
                    encoder.begin(copy)
                sent = 0
                for data in encoder.encode():
                    await copy.write(data)
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
        await source.aclose()
    return count + max(cursor.rowcount, 0)


async def _columns_of(connection: AsyncAnyConnection, table: TableName) -> dict[str, int]:
    cursor = own_cursor(connection)
    await cursor.execute(COLUMNS, [identifier(table).as_string(connection)])
    return columns_of(await cursor.fetchall())


async def copy_to(
    connection: AsyncAnyConnection, query: Statement, file: CopyFile, params: Params, options: Layout
) -> int:
    """Write what *query* returns into *file*; return the number of rows."""
    cursor = connection.cursor()
    async with AsyncExitStack() as stack:
        write = stack.enter_context(to_write(file))
        parts: list[Any] = []
        size = 0
        async for data in await stack.enter_async_context(cursor.copy(copy_out(query, options), params)):
            parts.append(data)
            size += len(data)
            if size >= _BYTES:
                await done(write(b"".join(parts)))
                parts, size = [], 0
        await done(write(b"".join(parts)))
    return max(cursor.rowcount, 0)


async def copy_from(
    connection: AsyncAnyConnection, table: TableName, file: CopyFile, columns: Sequence[str] | None, options: Layout
) -> int:
    """Store what is in *file* in *table*; return the number of rows."""
    cursor = connection.cursor()
    with to_read(file) as read:
        data = start_of_text(await done(read(_BYTES)), options.format)
        if not data:
            return 0
        if columns is None and options.header and options.format == "csv":
            complete = False
            while (columns := header_of(data, options, connection.info.encoding, complete=complete)) is None:
                more = await done(read(_BYTES))
                data, complete = data + more, not more
        async with cursor.copy(copy_in(table, columns, options)) as copy:
            while data:
                await copy.write(data)
                data = await done(read(_BYTES))
    return max(cursor.rowcount, 0)
