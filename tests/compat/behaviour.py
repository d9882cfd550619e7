"""Check behaviour that must never change silently when psycopg's internals do: ``python -m tests.compat.behaviour``.

Prints one line: ``OK``, or what differs, one word=value per check; the exit status is 1 if anything differs.  Where
pgmonkey does not work at all, that is ``refused=`` and its error.  Names of checks as arguments run only those.

PGMONKEY_TEST_DSN names the server, whose user must be a superuser; without it, one is started.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
import warnings

import psycopg

from .checking import Report, conninfo, one_line, schema, server

SUBJECTS = ("methods", "transactions", "statements", "borrowing", "adapting")
"""The modules in ``_async`` and ``_sync``, each with the checks of one subject."""

PATIENCE = 45
"""Seconds that all checks may take; two of them, side by side on a busy machine, take some five to ten."""


def main(only: list[str]) -> int:
    """Run the checks named *only*, or all; return the exit status."""
    warnings.formatwarning = _one_line_warning
    report = Report(only)
    _watch(report)
    try:
        with server():
            outcome = _run(report)
    except ImportError as error:  # before there is a server
        outcome = f"refused={one_line(error)}"
    print(outcome, flush=True)
    return 0 if outcome == "OK" else 1


def _run(report: Report) -> str:
    with schema():
        try:
            _psycopg_alone()
            asyncio.run(_psycopg_alone_in_a_loop())
        except Exception as error:
            return f"psycopg={one_line(error)}"
        try:
            _first_use()
        except Exception as error:
            return f"refused={one_line(error)}"
    from importlib import import_module  # after the first use, so that a refusal is all that is said

    from . import tasks
    from ._async.common import run as run_async
    from ._sync.common import run

    async def run_in_a_loop() -> None:
        for name in SUBJECTS:
            await run_async(import_module(f"{__package__}._async.{name}").checks, report)
        await run_async(tasks.checks, report)

    with schema():
        for name in SUBJECTS:
            run(import_module(f"{__package__}._sync.{name}").checks, report)
    with schema():
        asyncio.run(run_in_a_loop())
    return str(report)


def _psycopg_alone() -> None:
    """Do with psycopg what its users do: whoever renames in it must leave it working."""
    with psycopg.connect(conninfo()) as connection, connection.transaction(), connection.pipeline():
        for i in range(7):
            connection.execute("SELECT %s::int", (i,))
        cursor = connection.execute("SELECT %s::int", (7,))
        if cursor.fetchall() != [(7,)]:
            raise psycopg.InternalError("SELECT 7 does not give 7")
    with psycopg.connect(conninfo(), cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute("SELECT %s::int", (1,))


async def _psycopg_alone_in_a_loop() -> None:
    async with await psycopg.AsyncConnection.connect(conninfo()) as connection, connection.transaction():
        for i in range(7):
            await connection.execute("SELECT %s::int", (i,))
        cursor = await connection.execute("SELECT %s::int", (7,))
        if await cursor.fetchall() != [(7,)]:
            raise psycopg.InternalError("SELECT 7 does not give 7")


def _first_use() -> None:
    """Import pgmonkey and use it: if it cannot work with this psycopg, it is here that it says so."""
    from pgmonkey import Database

    from .checking import config

    database = Database(config("first use"))
    try:
        database.fetch_value("SELECT 1")
        with database.transaction() as connection:
            connection.execute("SELECT 1")
    finally:
        database.close()


def _watch(report: Report) -> None:
    """End the process when it takes too long: what it was at is printed, and below, if nothing can be, by C."""

    def give_up() -> None:
        print(f"{report}  hang={report.running}".removeprefix("OK  "), flush=True)
        faulthandler.dump_traceback()
        os._exit(1)

    faulthandler.dump_traceback_later(PATIENCE + 2, exit=True)
    timer = threading.Timer(PATIENCE, give_up)
    timer.daemon = True
    timer.start()


def _one_line_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{category.__name__}: {message}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
