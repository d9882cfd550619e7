"""``pgmonkey import``: a CSV file into a table, by COPY, in constant memory, all or nothing."""

from __future__ import annotations

import argparse
import csv
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import IO, Any

import psycopg
from psycopg.rows import tuple_row

from .._driver.copying import COLUMNS, Layout, columns_of, copy_in, identifier, place_of, said
from .._driver.files import header_of
from ..errors import PgmonkeyError
from ..manager import PGConnectionManager
from ._data_files import Source, delimiter_of, opened
from ._given import existing, flags
from ._progress import Progress

Connection = psycopg.Connection[Any]

# How many records, and bytes of them, are stored at a time where bad ones are set aside, at most.
_MOST, _MOST_BYTES = 5000, 1 << 23
# The longest record in bytes: a quote that never ends makes one of the whole file.
_LONGEST = 1 << 26
# How many reasons are printed.
_REASONS = 10
_CURES = {
    "22P04": "does the delimiter fit (--delimiter)?",
    "22021": "give the encoding of the file (--encoding latin1)",
    "22P05": "give the encoding of the file (--encoding latin1)",
}
_CURE = "correct it, or set bad rows aside (--bad-rows FILE)"


def run(options: argparse.Namespace) -> int:
    """Import; print how many rows were stored."""
    manager = PGConnectionManager()
    with ExitStack() as stack:
        source = stack.enter_context(opened(options.data, options.encoding))
        progress = Progress(source.size)
        stack.callback(manager.clear_cache)
        stack.callback(progress.clear)
        try:
            handle = manager.get_database_connection(existing(options), "normal", **flags(options))
            with handle.connection(autocommit=False) as connection:
                count, bad = _import(options, connection, source, progress)
        except KeyboardInterrupt:
            progress.clear()
            print("pgmonkey: interrupted: nothing was stored", file=sys.stderr)
            return 130
        except psycopg.Error as error:
            raise _explained(error, source) from error
    aside = f"; {bad.count} set aside in {options.bad_rows}" if bad is not None and bad.count else ""
    print(f"{source.name}: {count} rows stored in {options.table}{aside}")
    return 0


def _explained(error: psycopg.Error, source: Source) -> Exception:
    place = place_of(error)
    if place is None:
        return error
    column = f"column {place.column}: " if place.column else ""
    cure = _CURES.get(str(error.sqlstate), _CURE)
    return PgmonkeyError(f"{source.name}:{place.line}: {column}{said(error)}; {cure}; nothing was stored")


def _import(
    options: argparse.Namespace, connection: Connection, source: Source, progress: Progress
) -> tuple[int, _BadRows | None]:
    chunks = source.chunks()
    first = next(chunks, b"")
    line = first.partition(b"\n")[0].decode(errors="replace")
    delimiter = delimiter_of(options.delimiter, source.name, line)
    header = not options.no_header
    layout = Layout("csv", header, delimiter, options.null, "UTF8")
    columns = _columns(options, connection, first, layout)
    if options.bad_rows is None:
        cursor = connection.cursor()
        with cursor.copy(copy_in(options.table, columns, layout)) as copy:
            for data in _with(first, chunks):
                copy.write(data)
                progress.show(source.lines, source.bytes, source.position if source.size else 0)
        return max(cursor.rowcount, 0), None
    with open(options.bad_rows, "wb") as file:
        records = _records(_with(first, chunks), source.name)
        bad = _BadRows(file, source.name)
        if header and (found := next(records, None)) is not None:
            file.write(found[1])
        statement = copy_in(options.table, columns, layout._replace(header=False))
        stored = 0
        for count in _in_batches(connection, statement, records, bad):
            stored += count
            progress.show(stored, source.bytes, source.position if source.size else 0)
        progress.clear()
        bad.report()
        return stored, bad


def _with(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from chunks


def _columns(options: argparse.Namespace, connection: Connection, first: bytes, layout: Layout) -> Sequence[str] | None:
    """Return the columns that the fields of the file are for; raise `PgmonkeyError` where one is not the table's."""
    cursor = connection.cursor(row_factory=tuple_row)
    cursor.execute(COLUMNS, [identifier(options.table).as_string(connection)])
    known = [*columns_of(cursor.fetchall())]
    mapped = _mapped(options.map)
    if options.columns is not None:
        names: Sequence[str] = next(csv.reader([options.columns]))
    elif layout.header and first:
        names = header_of(first, layout._replace(encoding="utf-8"), "utf-8", complete=True) or []
    else:
        return None
    for name in mapped:
        if name not in names:
            raise PgmonkeyError(f"--map: {options.data} has no column {name!r}; it has {', '.join(names)}")
    return [_column(mapped.get(name, name), known, options) for name in names]


def _mapped(pairs: Sequence[str]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, column = pair.rpartition("=")
        if not equals or not name or not column:
            raise PgmonkeyError(f"--map: {pair!r} is not NAME=COLUMN")
        found[name] = column
    return found


def _column(name: str, known: Sequence[str], options: argparse.Namespace) -> str:
    """Return the column that *name* means: in a header, upper case and spaces do not count."""
    if name in known:
        return name
    plain = [column for column in known if column.lower() == "_".join(name.lower().split())]
    if len(plain) == 1:
        return plain[0]
    raise PgmonkeyError(
        f"{options.data}: there is no column {name!r} in {options.table}, which has {', '.join(known)}; "
        f"say which one it is: --map '{name}=COLUMN'"
    )


# -- setting rows aside -----------------------------------------------------------------------------------------------


class _BadRows:
    """Where the records go that the server has refused, as they are."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self._name = name
        self._reasons: list[str] = []
        self.count = 0

    def add(self, line: int, record: bytes, error: psycopg.Error, column: str | None) -> None:
        """Write a record."""
        self.count += 1
        self._file.write(record if record.endswith(b"\n") else record + b"\n")
        if self.count <= _REASONS:
            self._reasons.append(f"{self._name}:{line}: {f'column {column}: ' if column else ''}{said(error)}")

    def report(self) -> None:
        """Print the first reasons."""
        for reason in self._reasons:
            print(" ".join(reason.split()), file=sys.stderr)
        if self.count > _REASONS:
            print(f"... and {self.count - _REASONS} more", file=sys.stderr)


def _records(chunks: Iterator[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """Yield the records of a CSV file, each with the number of its first line; quotes may hold line breaks."""
    parts: list[bytes] = []
    start, quoted, size = 1, 0, 0
    for number, line in enumerate(_lines(chunks, name), 1):
        parts.append(line)
        size += len(line)
        quoted ^= line.count(b'"') & 1
        if not quoted:
            yield start, b"".join(parts)
            parts, start, size = [], number + 1, 0
        elif size > _LONGEST:
            raise PgmonkeyError(f"{name}:{start}: a quoted field begins here and never ends; nothing was stored")
    if parts:
        yield start, b"".join(parts)


def _lines(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _LONGEST:
            raise PgmonkeyError(f"{name}: a line is longer than {_LONGEST >> 20} MB; nothing was stored")
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest


def _in_batches(
    connection: Connection, statement: Any, records: Iterator[tuple[int, bytes]], bad: _BadRows
) -> Iterator[int]:
    """Store *records*, and yield how many were stored at a time.

    A COPY with a bad record stores nothing, so it is done again without that one, up to it and from it on.
    """
    waiting: deque[tuple[int, bytes]] = deque()
    size = _MOST
    while True:
        waiting.extend(_up_to(size - len(waiting), records))
        batch = list(islice(waiting, size))
        if not batch:
            return
        cursor = connection.cursor()
        try:
            with connection.transaction(), cursor.copy(statement) as copy:
                copy.write(b"".join(record for _, record in batch))
        except psycopg.Error as error:
            place = place_of(error)
            if place is None:
                raise
            index = _index_of(place.line, batch)
            line, record = batch[index]
            bad.add(line, record, error, place.column)
            del waiting[index]
            size = index or max(1, size // 4)
        else:
            for _ in batch:
                waiting.popleft()
            size = min(2 * size, _MOST)
            yield max(cursor.rowcount, 0)


def _up_to(count: int, records: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    left = _MOST_BYTES
    for record in islice(records, max(0, count)):
        yield record
        left -= len(record[1])
        if left <= 0:
            return


def _index_of(line: int, batch: Sequence[tuple[int, bytes]]) -> int:
    """Return which record of *batch* has the *line*, counted from its beginning."""
    passed = 0
    for index, (_, record) in enumerate(batch):
        passed += max(record.count(b"\n"), 1)
        if passed >= line:
            return index
    return len(batch) - 1
