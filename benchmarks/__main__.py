"""``python -m benchmarks``: every candidate beside the others in one run, medians and ratios, as a table in Markdown.

Candidates take turns within a round, so that what else the machine does falls on all of them; client and server share
one core, which is also what makes the figures steady; of requests, the clients have another core.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack, ExitStack
from datetime import datetime, timezone
from pathlib import Path

import psycopg
import uvloop

from pgmonkey.embedded import Server

from . import async_candidates, bulk, cases, costs, http, network, picture, predecessor, sync_candidates
from .verdict import of_columns
from .workloads import SCHEMA, WORKLOADS, Workload

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
Times = dict[str, list[float]]


def in_threads(function: Callable[[], object], calls: int, threads: int) -> float:
    """Return the seconds that a call takes when *threads* make *calls* between them."""
    if threads == 1:
        started = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - started) / calls
    barrier = threading.Barrier(threads + 1)

    def work() -> None:
        function()  # a connection of its own, where threads have one
        barrier.wait()
        for _ in range(calls // threads):
            function()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    barrier.wait()
    started = time.perf_counter()
    for worker in workers:
        worker.join()
    return (time.perf_counter() - started) / calls


async def in_tasks(function: Callable[[], Awaitable[object]], calls: int, tasks: int) -> float:
    """Return the seconds that a call takes when *tasks* make *calls* between them."""

    async def work() -> None:
        for _ in range(calls // tasks):
            await function()

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(tasks)))
    return (time.perf_counter() - started) / calls


def measure_threads(dsn: str, workload: Workload, threads: int, calls: int, rounds: int) -> Times:
    """Return the seconds a call of each candidate, one figure a round."""
    times: Times = {name: [] for name in sync_candidates.CANDIDATES}
    with ExitStack() as stack:
        calling = {
            name: stack.enter_context(candidate(dsn, threads))(workload)
            for name, candidate in sync_candidates.CANDIDATES.items()
        }
        for turn in range(rounds + 1):
            for name, function in calling.items():
                seconds = in_threads(function, calls, threads)
                times[name] += [seconds] if turn else []  # the first is to warm up
    return times


async def measure_tasks(dsn: str, workload: Workload, tasks: int, calls: int, rounds: int) -> Times:
    """Return the seconds a call of each candidate, one figure a round."""
    times: Times = {name: [] for name in async_candidates.CANDIDATES}
    async with AsyncExitStack() as stack:
        calling = {}
        for name, candidate in async_candidates.CANDIDATES.items():
            calling[name] = (await stack.enter_async_context(candidate(dsn)))(workload)
        for turn in range(rounds + 1):
            for name, function in calling.items():
                seconds = await in_tasks(function, calls, tasks)
                times[name] += [seconds] if turn else []
    return times


def medians(times: Times) -> dict[str, float]:
    """Return the microseconds of each candidate."""
    return {name: statistics.median(seconds) * 1e6 for name, seconds in times.items()}


def table(title: str, columns: dict[str, Times], base: str, bounds: Collection[str]) -> list[str]:
    """Return a table: microseconds a call, and the ratio to *base*, by candidate and workload; see `verdict`."""
    verdict = of_columns({column: medians(times) for column, times in columns.items()}, bounds)
    lines = [f"### {title}", "", verdict, "", f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name in next(iter(columns.values())):
        cells = []
        for times in columns.values():
            median, reference = statistics.median(times[name]), statistics.median(times[base])
            low, *_, high = statistics.quantiles(times[name], n=4)
            cells.append(f"{median * 1e6:.0f} µs ± {(high - low) / 2 / median:.0%}, **{median / reference:.2f}**")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def main() -> None:
    """Measure, print, and write the document when that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--calls", type=int, default=2000, help="calls of a candidate in a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--core", type=int, default=0, help="the core for client and server; -1 for all")
    parser.add_argument("--write", action="store_true", help="write the figures into docs/performance.md")
    arguments = parser.parse_args()
    if arguments.core >= 0 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {arguments.core})
    lines: list[str] = []
    with Server(settings={"max_connections": "400"}) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            for statement in filter(str.strip, SCHEMA.split(";")):
                connection.execute(statement.encode())
        dsn, calls, rounds = server.dsn(), arguments.calls, arguments.rounds
        panels: dict[str, dict[str, float]] = {}
        for threads in (1, 8):
            columns = {w.name: measure_threads(dsn, w, threads, calls, rounds) for w in WORKLOADS}
            panels[f"One row by its key, {threads} thread{'s' * (threads > 1)}"] = medians(columns["primary key"])
            lines += table(f"Threads: {threads}", columns, "psycopg, held open", sync_candidates.BOUNDS)
        for tasks in (1, 50):
            columns = {w.name: uvloop.run(measure_tasks(dsn, w, tasks, calls, rounds)) for w in WORKLOADS}
            panels[f"One row by its key, {tasks} task{'s' * (tasks > 1)} (uvloop)"] = medians(columns["primary key"])
            lines += table(f"Tasks, under uvloop: {tasks}", columns, "asyncpg's pool", async_candidates.BOUNDS)
        columns = {w.name: asyncio.run(measure_tasks(dsn, w, 50, calls, rounds)) for w in WORKLOADS}
        lines += table("Tasks, under asyncio's own loop: 50", columns, "asyncpg's pool", async_candidates.BOUNDS)
        lines += cases.table(cases.measure(dsn, rounds))
        lines += bulk.table(dsn, rounds)
        lines += network.table(network.measure(dsn, arguments.calls // 10))
        lines += predecessor.table(dsn)
        lines += costs.table(dsn)
        lines += ["### Requests: one row by its key, as JSON, over 8 connections", ""]
        if arguments.core >= 0 and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, set(range(os.cpu_count() or 1)) - {arguments.core} or {0})  # the clients'
        for framework in http.LIBRARIES:
            rates = http.measure(framework, dsn, rounds=arguments.rounds, seconds=1.0, core=arguments.core)
            lines += http.table(framework, rates)
        versions = f"Python {platform.python_version()}, PostgreSQL {server.version}, psycopg {psycopg.__version__}"
        day = datetime.now(timezone.utc).date()
        heading = f"{day}; {versions} ({psycopg.pq.__impl__}), one core of {os.cpu_count()}, loopback TCP."
    text = "\n".join([heading, "", *lines]).rstrip()
    sys.stdout.write(text + "\n")
    if arguments.write:
        document = DOCUMENT.read_text(encoding="utf-8")
        marked = r"(<!-- figures -->\n).*(\n<!-- end of figures -->)"
        written = re.sub(marked, lambda match: f"{match[1]}{text}{match[2]}", document, flags=re.DOTALL)
        DOCUMENT.write_text(written, encoding="utf-8")
        DOCUMENT.with_suffix(".svg").write_text(picture.draw(panels), encoding="utf-8")


if __name__ == "__main__":
    main()
