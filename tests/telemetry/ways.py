"""Execute statements in every way, under a tracer, and print what it has seen: ``{way: [spans, statements]}``.

``python -m tests.telemetry.ways TRACER before|after``: the tracer is installed before pgmonkey is imported, or when the
pools are open and their statements are prepared.  The configuration is in the variable CONFIG.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol


class Tracer(Protocol):
    """What is in the modules of tracers/."""

    def install(self) -> None:
        """Begin to trace psycopg."""

    def seen(self, work: Callable[[], object]) -> list[str]:
        """Do *work*; return the texts of the statements that were traced in it."""
        ...


ROUNDS = 8
"""How often each statement is executed: psycopg prepares it on the way."""


def run(tracer: Any, when: str) -> dict[str, list[int]]:
    """Return spans and statements by way."""
    if when == "before":
        tracer.install()
    # Only now: the tracer is to find psycopg as no part of pgmonkey has seen it.
    from pgmonkey import AsyncDatabase, Database

    config = json.loads(os.environ["CONFIG"])
    database, asynchronous = Database(config), AsyncDatabase(config)
    ways: dict[str, tuple[int, Callable[[], object]]] = {}

    def way(name: str, statements: int) -> Callable[[Callable[[], object]], None]:
        def add(function: Callable[[], object]) -> None:
            ways[name] = statements, function

        return add

    database.execute("DROP TABLE IF EXISTS t")
    database.execute("CREATE TABLE t (a int)")

    @way("query method", 4)
    def _() -> None:
        database.fetch_one("SELECT a FROM t WHERE a = %s", (1,))
        database.fetch_all("SELECT a FROM t")
        database.fetch_value("SELECT count(*) FROM t")
        database.execute("INSERT INTO t VALUES (%s)", (1,))

    @way("query method in a unit of work", 2)
    def _() -> None:
        with database.unit_of_work():
            database.fetch_one("SELECT a FROM t WHERE a = %s", (1,))
            database.execute("INSERT INTO t VALUES (%s)", (1,))

    @way("cursor in a transaction", 3)
    def _() -> None:
        with database.transaction() as connection:
            connection.execute("SELECT a FROM t WHERE a = %s", (1,)).fetchone()
            with connection.cursor() as cursor:
                cursor.execute("SELECT a FROM t").fetchall()
            with database.transaction():
                connection.execute("INSERT INTO t VALUES (%s)", (1,))

    @way("cursor of a lent connection", 1)
    def _() -> None:
        with database.connection() as connection:
            connection.execute("SELECT a FROM t WHERE a = %s", (1,)).fetchone()

    @way("executemany", 2)
    def _() -> None:
        database.execute_many("INSERT INTO t VALUES (%s)", [(1,), (2,)])
        with database.connection() as connection, connection.cursor() as cursor:
            cursor.executemany("INSERT INTO t VALUES (%s)", [(1,), (2,)])

    async def in_tasks() -> None:
        await asynchronous.fetch_one("SELECT a FROM t WHERE a = %s", (1,))
        async with asynchronous.unit_of_work():
            await asynchronous.fetch_one("SELECT a FROM t WHERE a = %s", (1,))
        async with asynchronous.transaction() as connection:
            await connection.execute("INSERT INTO t VALUES (%s)", (1,))
            await asynchronous.execute_many("INSERT INTO t VALUES (%s)", [(1,), (2,)])

    loop = asyncio.new_event_loop()

    @way("in tasks", 4)
    def _() -> None:
        loop.run_until_complete(in_tasks())

    @way("batch", 3)
    def _() -> None:
        with database.batch() as batch:
            batch.fetch_all("SELECT a FROM t WHERE a = %s", (1,))
            batch.execute("INSERT INTO t VALUES (%s)", (1,))
        with database.unit_of_work(), database.batch() as batch:
            batch.fetch_value("SELECT count(*) FROM t")

    @way("listen", 2)  # LISTEN, and pg_notify()
    def _() -> None:
        with database.listen("orders") as notes:
            database.notify("orders", "1")
            assert next(iter(notes)).payload == "1"

    @way("copy_rows", 2)  # the columns of the table, and COPY
    def _() -> None:
        database.copy_rows("t", [(1,), (2,)])

    @way("stream", 1)
    def _() -> None:
        list(database.stream("SELECT a FROM t"))

    @way("stream of a cursor", 1)
    def _() -> None:
        with database.connection() as connection, connection.cursor() as cursor:
            list(cursor.stream("SELECT a FROM t"))

    @way("COPY", 1)
    def _() -> None:
        with database.connection() as connection, connection.cursor() as cursor:
            with cursor.copy("COPY t FROM STDIN") as copy:
                copy.write_row((1,))

    found: dict[str, list[int]] = {}
    if when == "after":
        for _, work in ways.values():
            for _ in range(ROUNDS):
                work()
        tracer.install()
    for name, (statements, work) in ways.items():
        seen = sum(len(tracer.seen(work)) for _ in range(ROUNDS))  # as the later rounds are prepared
        found[name] = [seen, statements * ROUNDS]
    loop.run_until_complete(asynchronous.close())
    loop.close()
    database.close()
    return found


if __name__ == "__main__":
    name, when = sys.argv[1:3]
    print(json.dumps(run(importlib.import_module(f"tests.telemetry.tracers.{name}"), when)))
