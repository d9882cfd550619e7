"""Many rows: as classes, by COPY, by one statement many times, and from a file, beside psycopg, asyncpg and psql."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import psycopg
from psycopg.rows import class_row

from pgmonkey import AsyncDatabase, Database

_TABLE = "CREATE UNLOGGED TABLE IF NOT EXISTS bulk (id int, name text, price float8)"
_INSERT = "INSERT INTO bulk VALUES (%s, %s, %s)"
_FETCH = "SELECT i AS id, 'name ' || i AS name, i / 7.0::float8 AS price FROM generate_series(1, 100) AS i"
_IMPORTED = 1_000_000


@dataclasses.dataclass
class Row:
    """A row as a class."""

    id: int
    name: str
    price: float


class Import(NamedTuple):
    """What an import took: seconds, and the most memory at a time, in megabytes."""

    seconds: float
    megabytes: float


def _rows(count: int) -> list[tuple[int, str, float]]:
    return [(number, f"name {number}", number / 7) for number in range(count)]


async def _seconds(call: Callable[[], Any], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        answer = call()
        if isinstance(answer, Awaitable):
            await answer
    return (time.perf_counter() - started) / times


async def _measure(dsn: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return the medians of seconds of each case, by who does it."""
    many, copied = _rows(10_000), _rows(100_000)
    pool = {"min_size": 1, "max_size": 1}
    config = {"connection_settings": {"conninfo": dsn}, "pool_settings": pool, "async_pool_settings": pool}
    database, async_database = Database(config), AsyncDatabase(config)
    plain, native = psycopg.connect(dsn, autocommit=True), await asyncpg.connect(dsn)
    plain.execute(_TABLE)
    make = class_row(Row)(plain.execute(_FETCH))
    found = database.fetch_all(_FETCH)

    def executemany() -> None:
        with plain.transaction(), plain.cursor() as cursor:
            cursor.executemany(_INSERT, many)

    async def native_executemany() -> None:
        async with native.transaction():
            await native.executemany("INSERT INTO bulk VALUES ($1, $2, $3)", many)

    def copy() -> None:
        with plain.transaction(), plain.cursor().copy("COPY bulk FROM STDIN") as copying:
            for row in copied:
                copying.write_row(row)

    cases: dict[str, dict[str, Callable[[], Any]]] = {
        "`fetch_all` of 100 rows": {
            "tuples": lambda: database.fetch_all(_FETCH),
            "dataclasses": lambda: database.fetch_all(_FETCH, row_factory=class_row(Row)),
            "psycopg, held open, dataclasses": lambda: (
                plain.cursor(row_factory=class_row(Row)).execute(_FETCH).fetchall()
            ),
            "the conversion alone": lambda: [make(row) for row in found],
        },
        "`execute_many` of 10,000 rows": {
            "pgmonkey": lambda: database.execute_many(_INSERT, many),
            "pgmonkey, asyncio": lambda: async_database.execute_many(_INSERT, many),
            "psycopg's `executemany`": executemany,
            "asyncpg's `executemany`": native_executemany,
        },
        "`copy_rows` of 100,000 tuples": {
            "pgmonkey": lambda: database.copy_rows("bulk", copied),
            "pgmonkey, asyncio": lambda: async_database.copy_rows("bulk", copied),
            "psycopg's COPY": copy,
            "asyncpg's `copy_records_to_table`": lambda: native.copy_records_to_table("bulk", records=copied),
        },
    }
    medians: dict[str, dict[str, float]] = {}
    for name, ways in cases.items():
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(rounds + 1):
            for way, call in ways.items():
                seconds = await _seconds(call, 200 if name.startswith("`fetch") else 1)
                plain.execute("TRUNCATE bulk")
                taken[way] += [seconds] if turn else []  # the first is to warm up
        medians[name] = {way: statistics.median(seconds) for way, seconds in taken.items()}
    database.close()
    await async_database.close()
    await native.close()
    plain.close()
    return medians


# A process of its own, small: what is forked counts the memory of its parent as its own at first.
_LAUNCH = """
import os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - started, usage.ru_maxrss / 1024)
sys.exit(status != 0)
"""


def _run(command: Sequence[str], folder: Path) -> Import:
    launched = [sys.executable, "-c", _LAUNCH, *command]
    printed = subprocess.run(launched, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout
    return Import(*map(float, printed.split()))


def _imports(dsn: str, rounds: int) -> dict[str, Import]:
    """Return the medians of an import of a million rows, by the command and by psql, where that is there."""
    with tempfile.TemporaryDirectory() as name, psycopg.connect(dsn, autocommit=True) as connection:
        folder = Path(name)
        connection.execute(_TABLE)
        (folder / "config.yaml").write_text(f"connection_settings:\n  conninfo: '{dsn}'\n")
        with open(folder / "bulk.csv", "w") as file:
            file.write("id,name,price\n")
            file.writelines(f"{number},name {number},{number / 7}\n" for number in range(_IMPORTED))
        commands = {"`pgmonkey import`": [sys.executable, "-m", "pgmonkey", "import", "bulk.csv", "--table", "bulk"]}
        if psql := shutil.which("psql"):
            commands["psql's `\\copy`"] = [psql, "-X", dsn, "-c", "\\copy bulk FROM bulk.csv WITH (FORMAT csv, HEADER)"]
        taken: dict[str, list[Import]] = {way: [] for way in commands}
        for _ in range(rounds):
            for way, command in commands.items():
                taken[way].append(_run(command, folder))
                connection.execute("TRUNCATE bulk")
    return {way: Import(*map(statistics.median, zip(*seen, strict=True))) for way, seen in taken.items()}


def table(dsn: str, rounds: int) -> list[str]:
    """Measure; return the tables, in milliseconds, each with the ratio to the first line."""
    lines = ["### Many rows", ""]
    for name, ways in asyncio.run(_measure(dsn, rounds)).items():
        lines += [f"| {name} | |", "|---|---|"]
        first = next(iter(ways.values()))
        lines += [f"| {way} | {seconds * 1e3:.3g} ms, **{seconds / first:.2f}** |" for way, seconds in ways.items()]
        lines.append("")
    lines += ["| a file of 1,000,000 rows | |", "|---|---|"]
    for way, seen in _imports(dsn, min(rounds, 3)).items():
        lines.append(f"| {way} | {_IMPORTED / seen.seconds:,.0f} rows a second, {seen.megabytes:.0f} MB |")
    return [*lines, ""]
