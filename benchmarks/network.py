"""A network of one millisecond: a proxy in a process of its own, which delays and counts round trips."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool

from pgmonkey import Database
from tests.faults.proxy import FaultProxy

from .verdict import of_columns

ROUND_TRIP = 0.001
_QUERY = "SELECT id, name, made FROM things WHERE id = %s"


class Result(NamedTuple):
    """Seconds and round trips of one call."""

    seconds: float
    round_trips: float


def _serve(host: str, port: int, pipe: Connection) -> None:
    with FaultProxy(host, port) as proxy:
        proxy.latency = ROUND_TRIP / 2
        pipe.send(proxy.port)
        while pipe.recv():
            pipe.send(proxy.round_trips)


@contextmanager
def _far(dsn: str) -> Iterator[tuple[str, Callable[[], int]]]:
    """Give the address of the server at the other end, and what tells the round trips so far."""
    parts = conninfo_to_dict(dsn)
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(parts["host"], int(parts["port"] or 5432), theirs), daemon=True)
    process.start()
    port = ours.recv()

    def round_trips() -> int:
        ours.send(True)
        count: int = ours.recv()
        return count

    login = f"{parts['user']}:{parts.get('password') or ''}"
    yield f"postgresql://{login}@{parts['host']}:{port}/{parts['dbname']}", round_trips
    ours.send(False)
    process.join()


def measure(dsn: str, calls: int) -> dict[str, Result]:
    """Return what one read by primary key takes, each way."""
    results: dict[str, Result] = {}
    with _far(dsn) as (far, round_trips), ConnectionPool(far, min_size=1, max_size=1, open=True) as pool:
        pool.wait()
        held = psycopg.connect(far, autocommit=True)
        size = {"min_size": 1, "max_size": 1}
        database = Database({"connection_settings": {"conninfo": far}, "pool_settings": size})

        def idiom() -> Any:
            with pool.connection() as connection:
                return connection.execute(_QUERY, (1,)).fetchone()

        def transaction() -> Any:
            with database.transaction() as connection:
                return connection.execute(_QUERY, (1,)).fetchone()

        def unit() -> Any:
            with database.unit_of_work():
                return database.fetch_one(_QUERY, (1,))

        ways: dict[str, Callable[[], Any]] = {
            "psycopg, held open": lambda: held.execute(_QUERY, (1,)).fetchone(),
            "psycopg_pool, its idiom": idiom,
            "pgmonkey, query method": lambda: database.fetch_one(_QUERY, (1,)),
            "pgmonkey, request that reads once": unit,
            "pgmonkey, transaction": transaction,
        }
        for name, call in ways.items():
            for _ in range(8):
                call()
            before, times = round_trips(), []
            for _ in range(calls):
                started = time.perf_counter()
                call()
                times.append(time.perf_counter() - started)
            results[name] = Result(statistics.median(times), (round_trips() - before) / calls)
        held.close()
        database.close()
    return results


def table(results: dict[str, Result]) -> list[str]:
    """Return a table: milliseconds, the ratio to psycopg_pool's idiom, and round trips, of each way."""
    base = results["psycopg_pool, its idiom"].seconds
    calls = {name: result.seconds for name, result in results.items()}
    verdict = of_columns({"a call": calls}, ("psycopg, held open",))
    lines = [
        "### A network of 1 ms: one row by its key",
        "",
        verdict,
        "",
        "| | a call | round trips |",
        "|---|---|---|",
    ]
    for name, (seconds, round_trips) in results.items():
        lines.append(f"| {name} | {seconds * 1e3:.2f} ms, **{seconds / base:.2f}** | {round_trips:.1f} |")
    return [*lines, ""]
