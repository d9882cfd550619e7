"""What is not a query: importing, getting a cached connection, an idle pool's memory, and how checkout grows."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from pgmonkey import AsyncDatabase, Database, PGConnectionManager

_IDLE = 50
_MEMORY = """
import resource
{make}
def used():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
pool = connect(1)
before = used()
pools = [connect(1) for _ in range({count})]
print((used() - before) // {count})
"""
_POOLS = {
    "psycopg_pool": """
from psycopg_pool import ConnectionPool
def connect(size):
    pool = ConnectionPool({dsn!r}, min_size=size, max_size=8, open=True)
    pool.wait()
    return pool
""",
    "pgmonkey": """
from pgmonkey import Database
def connect(size, names=iter(range(1000))):
    pool = {{"min_size": size, "max_size": 8, "name": f"p{{next(names)}}"}}
    database = Database({{"connection_settings": {{"conninfo": {dsn!r}}}, "pool_settings": pool}})
    database.connect()
    return database
""",
}


# Modules are compiled once, as they are where applications run.
_ENVIRON = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _run(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=_ENVIRON).stdout.strip()


def _import_time(statement: str) -> float:
    code = f"import time; started = time.perf_counter(); {statement}; print(time.perf_counter() - started)"
    return float(_run(code))


def _median(function: Callable[[], Any], calls: int, rounds: int = 9) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(calls):
            function()
        times.append((time.perf_counter() - started) / calls)
    return statistics.median(times)


def cold_start(dsn: str) -> list[str]:
    """Return rows: importing, and from nothing to the first row."""
    imports: dict[str, list[float]] = {"import psycopg, psycopg_pool, yaml": [], "from pgmonkey import Database": []}
    first = {
        "psycopg": f"import psycopg; psycopg.connect({dsn!r}).execute('SELECT 1').fetchone()",
        "pgmonkey": "from pgmonkey import Database; "
        f"Database({{'connection_settings': {{'conninfo': {dsn!r}}}}}).fetch_one('SELECT 1')",
    }
    rows: dict[str, list[float]] = {name: [] for name in first}
    for statement in imports:
        _import_time(statement)
    for _ in range(11):
        for statement, times in imports.items():
            times.append(_import_time(statement))
        for name, code in first.items():
            started = time.perf_counter()
            _run(code)
            rows[name].append(time.perf_counter() - started)
    (base, ours), (theirs, mine) = (list(map(statistics.median, each.values())) for each in (imports, rows))
    return [
        "| `from pgmonkey import Database`, beside psycopg, psycopg_pool and yaml "
        f"| {ours * 1e3:.0f} ms, **{ours / base:.2f}** |",
        f"| a process to its first row, beside psycopg's | {mine * 1e3:.0f} ms, **{mine / theirs:.2f}** |",
    ]


def cached(dsn: str) -> list[str]:
    """Return rows: `get_database_connection` when it is cached."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        os.environ["BENCHMARK_CONNINFO"] = dsn
        for resolve_env, conninfo in ((False, dsn), (True, "${BENCHMARK_CONNINFO}")):
            path.write_text(yaml.safe_dump({"connection_settings": {"conninfo": conninfo}}))
            manager = PGConnectionManager()
            seconds = _median(lambda: manager.get_database_connection(path, "pool", resolve_env=resolve_env), 5000)  # noqa: B023
            name = "`get_database_connection`, cached" + (", with `resolve_env`" if resolve_env else "")
            found.append(f"| {name} | {seconds * 1e6:.1f} µs |")
            manager.clear_cache()
    return found


def memory(dsn: str) -> list[str]:
    """Return a row: an idle pool of one connection."""
    used = {
        name: int(_run(_MEMORY.format(make=make.format(dsn=dsn), count=_IDLE))) / 1024 for name, make in _POOLS.items()
    }
    ours, theirs = used["pgmonkey"], used["psycopg_pool"]
    return [f"| an idle pool of one connection, beside psycopg_pool's | {ours:.0f} KiB, **{ours / theirs:.2f}** |"]


def request_cpu(dsn: str) -> list[str]:
    """Return a row: this process's time for a request's transaction that reads once, beside the query method's."""
    pool = {"min_size": 1, "max_size": 1}
    database = Database({"connection_settings": {"conninfo": dsn}, "pool_settings": pool})

    def unit() -> None:
        with database.unit_of_work():
            database.fetch_one("SELECT 1")

    def spent(function: Callable[[], Any]) -> float:
        started = time.process_time()
        for _ in range(3000):
            function()
        return time.process_time() - started

    for _ in range(10):
        unit()
        database.fetch_one("SELECT 1")
    ratios = [spent(unit) / spent(lambda: database.fetch_one("SELECT 1")) for _ in range(7)]
    database.close()
    what = "processor time of a request that reads once, beside the query method's"
    return [f"| {what} | **{statistics.median(ratios):.2f}** |"]


def _borrow(database: Database[Any]) -> None:
    with database.connection():
        """Borrowed and given back, with nothing sent."""


def _query(database: Database[Any]) -> None:
    database.fetch_one("SELECT 1")


def _in_threads(database: Database[Any], threads: int, use: Callable[[Database[Any]], None]) -> float:
    """Return the processor time of one *use*, in seconds."""
    each = max(6400 // threads, 400)  # so that it is not the start of the thread that is measured

    def work() -> None:
        for _ in range(each):
            use(database)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    started = time.process_time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return (time.process_time() - started) / (threads * each)


def _by_threads(
    dsn: str, cases: dict[int, tuple[int, int]], rounds: int, use: Callable[[Database[Any]], None] = _borrow
) -> dict[int, float]:
    """Return seconds for each case, a number of threads and the size of their pool; the cases take turns."""
    times: dict[int, list[float]] = {number: [] for number in cases}
    with ExitStack() as stack:
        databases: dict[int, Database[Any]] = {}
        for number, (_, size) in cases.items():
            settings = {"min_size": size, "max_size": size, "name": f"{number} of {size}, {use.__name__}"}
            database = Database({"connection_settings": {"conninfo": dsn}, "pool_settings": settings})
            stack.callback(database.close)
            database.connect()
            while database.stats()["pool_size"] < size:
                time.sleep(0.02)
            databases[number] = database
        for turn in range(rounds + 1):
            for number, (threads, _) in cases.items():
                seconds = _in_threads(databases[number], threads, use)
                times[number] += [seconds] if turn else []  # the first is to warm up
    return {number: statistics.median(seconds) for number, seconds in times.items()}


async def _by_tasks(dsn: str, cases: Sequence[int], rounds: int) -> dict[int, float]:
    """Return seconds for each number of tasks, on a pool of 8; the cases take turns."""
    times: dict[int, list[float]] = {number: [] for number in cases}
    pool = {"min_size": 8, "max_size": 8, "timeout": 60}
    database = AsyncDatabase({"connection_settings": {"conninfo": dsn}, "async_pool_settings": pool})
    await database.connect()
    for turn in range(rounds + 1):
        for tasks in cases:
            each = max(8000 // tasks, 20)  # so that it is not the start of the task that is measured

            async def work(each: int = each) -> None:
                for _ in range(each):
                    async with database.connection():
                        await asyncio.sleep(0)

            started = time.process_time()
            await asyncio.gather(*(work() for _ in range(tasks)))
            seconds = (time.process_time() - started) / (tasks * each)
            times[tasks] += [seconds] if turn else []
    await database.close()
    return {number: statistics.median(seconds) for number, seconds in times.items()}


def growth(dsn: str) -> list[str]:
    """Return a table: the processor time of a checkout, by what may make it dearer."""
    rounds = 11
    by_query = {threads: (threads, 100) for threads in (1, 8, 64)}
    lines = ["### A checkout and return, as more take part", "", "| | processor time | |", "|---|---|---|"]
    for title, cases in (
        ("threads, on a pool of 8", _by_threads(dsn, {n: (n, 8) for n in (1, 8, 64)}, rounds)),
        ("connections in the pool, one thread", _by_threads(dsn, {n: (1, n) for n in (1, 10, 100)}, rounds)),
        ("threads with a query method, on a pool of 100", _by_threads(dsn, by_query, rounds, _query)),
        ("tasks, on a pool of 8", asyncio.run(_by_tasks(dsn, (9, 50, 500, 2000), rounds))),
    ):
        base = next(iter(cases.values()))
        for number, seconds in cases.items():
            lines.append(f"| {number} {title} | {seconds * 1e6:.1f} µs | **{seconds / base:.2f}** |")
    return [*lines, ""]


def table(dsn: str) -> list[str]:
    """Return the tables of this module."""
    rows = [*cold_start(dsn), *cached(dsn), *memory(dsn), *request_cpu(dsn)]
    return ["### What is not a query", "", "| | |", "|---|---|", *rows, "", *growth(dsn)]
