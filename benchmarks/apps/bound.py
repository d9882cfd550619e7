"""The bound: libpq by way of psycopg, a connection for each thread or task, a statement prepared once, nothing else."""

from __future__ import annotations

import asyncio
import select
import threading
from typing import Any

import psycopg

_NAME, _QUERY = b"thing", b"SELECT id, name FROM things WHERE id = $1"
Row = tuple[int, str]


class _Asker:
    def __init__(self, dsn: str) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True)
        self.socket = self._connection.fileno()
        self._pgconn: Any = self._connection.pgconn
        self._pgconn.prepare(_NAME, _QUERY)
        self._row: Row = 0, ""

    def ask(self, number: int) -> None:
        self._pgconn.send_query_prepared(_NAME, [str(number).encode()])

    def answer(self) -> Row | None:
        """Return the row, None as long as it has not arrived."""
        self._pgconn.consume_input()
        while not self._pgconn.is_busy():
            result = self._pgconn.get_result()
            if result is None:
                return self._row
            self._row = int(result.get_value(0, 0)), result.get_value(0, 1).decode()
        return None


class InThreads:
    """For threads, each of which keeps its connection."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._of_thread = threading.local()

    def fetch(self, number: int) -> Row:
        """Return the row of this number."""
        mine = self._of_thread
        if not hasattr(mine, "asker"):
            mine.asker, mine.poller = _Asker(self._dsn), select.poll()
            mine.poller.register(mine.asker.socket, select.POLLIN)
        mine.asker.ask(number)
        row = None
        while row is None:
            mine.poller.poll()
            row = mine.asker.answer()
        return row  # type: ignore[no-any-return]


class InTasks:
    """For tasks, of which there are never more than connections."""

    def __init__(self, dsn: str, size: int) -> None:
        self._free = [_Asker(dsn) for _ in range(size)]
        self._waiting: dict[_Asker, asyncio.Future[Row]] = {}
        for asker in self._free:
            asyncio.get_running_loop().add_reader(asker.socket, self._arrived, asker)

    def _arrived(self, asker: _Asker) -> None:
        row = asker.answer()
        if row is not None:
            self._waiting.pop(asker).set_result(row)
            self._free.append(asker)

    def fetch(self, number: int) -> asyncio.Future[Row]:
        """Return what to await for the row of this number."""
        asker = self._free.pop()
        asker.ask(number)
        self._waiting[asker] = future = asyncio.get_running_loop().create_future()
        return future
