"""``pgmonkey export``: a table, or the rows of a query, into a CSV file, by COPY, in constant memory."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import Any

from psycopg import sql

from .._driver.copying import Layout, copy_out, identifier
from ..manager import PGConnectionManager
from ._data_files import CHUNK, codec_of, created, delimiter_of
from ._given import existing, flags
from ._progress import Progress


def run(options: argparse.Namespace) -> int:
    """Export; print how many rows were written, on stderr where the rows go to stdout."""
    try:
        count = _export(options)
    except KeyboardInterrupt:
        print("pgmonkey: interrupted: nothing was written", file=sys.stderr)
        return 130
    to_stdout = options.data == "-"
    print(
        f"{'stdout' if to_stdout else options.data}: {count} rows written", file=sys.stderr if to_stdout else sys.stdout
    )
    return 0


def _export(options: argparse.Namespace) -> int:
    query: Any = options.query
    if query is None:
        query = sql.SQL("TABLE {}").format(identifier(options.table))
    delimiter = delimiter_of(options.delimiter, options.data)
    layout = Layout("csv", not options.no_header, delimiter, options.null, "UTF8")
    codec = codec_of(options.encoding or "utf-8")
    encode = None if codec.name == "utf-8" else codec.incrementalencoder()
    progress = Progress()
    manager = PGConnectionManager()
    with ExitStack() as stack:
        stack.callback(manager.clear_cache)
        stack.callback(progress.clear)
        handle = manager.get_database_connection(existing(options), "normal", **flags(options))
        connection = stack.enter_context(handle.connection(autocommit=False))
        file = stack.enter_context(created(options.data))
        cursor = connection.cursor()
        parts: list[Any] = []
        size = done = 0

        def write() -> None:
            data = b"".join(parts)
            file.write(data if encode is None else encode.encode(data.decode()))

        for number, data in enumerate(stack.enter_context(cursor.copy(copy_out(query, layout)))):
            parts.append(data)
            size += len(data)
            if size >= CHUNK:
                write()
                parts, done, size = [], done + size, 0
                progress.show(number, done)
        write()
    return max(cursor.rowcount, 0)
