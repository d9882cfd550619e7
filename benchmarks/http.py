"""Requests a second: each framework with each library, a server process each, all answering the same request."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import uvloop

from pgmonkey.embedded import die_with_parent

from .verdict import of_rates
from .workloads import ROWS

CONNECTIONS = 8
_REQUEST = b"GET /things/%d HTTP/1.1\r\nHost: benchmark\r\n\r\n"
_STEP = 7919  # a prime, so that the keys come in no order
_ROOT = Path(__file__).resolve().parent.parent
_GUNICORN = ("gunicorn", "--worker-class", "gthread", "--threads", "8", "--no-control-socket", "--log-level", "error")
_UVICORN = ("uvicorn", "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error")
LIBRARIES = {
    "flask": ("none", "libpq alone", "psycopg_pool", "Flask-SQLAlchemy", "pgmonkey"),
    "fastapi": (
        *("none", "libpq alone", "psycopg_pool", "asyncpg", "asyncpg, a transaction", "SQLAlchemy"),
        *("pgmonkey", "pgmonkey, Depends(db.connection)", "psycopg_pool, def", "pgmonkey, def"),
    ),
    "django": (
        *("none", "libpq alone", "stock", "CONN_MAX_AGE", "pool", "pgmonkey", "pgmonkey, TransactionMiddleware"),
        *("pool, ATOMIC_REQUESTS", "pgmonkey, ATOMIC_REQUESTS"),
    ),
}
_BOUNDS = ("none", "libpq alone")


@contextmanager
def serving(framework: str, library: str, dsn: str, core: int) -> Iterator[int]:
    """Serve one application on *core*; give its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    application = f"benchmarks.apps.{framework}_app:{'application' if framework == 'django' else 'app'}"
    if framework == "fastapi":
        command = [*_UVICORN, "--host", "127.0.0.1", "--port", str(port), application]
    else:
        command = [*_GUNICORN, "--bind", f"127.0.0.1:{port}", application]
    environ = {**os.environ, "BENCHMARK_DSN": dsn, "BENCHMARK_LIBRARY": library}

    def prepare() -> None:
        die_with_parent()
        if core >= 0 and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {core})

    process = subprocess.Popen([sys.executable, "-m", *command], env=environ, cwd=_ROOT, preexec_fn=prepare)
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class _Client(asyncio.Protocol):
    """One connection, which asks again as soon as it is answered."""

    def __init__(self, deadline: float) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self.answers = 0
        self._deadline = deadline
        self._buffer = b""
        self._key = id(self) % ROWS

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._key = (self._key + _STEP) % ROWS
        self._transport.write(_REQUEST % (self._key + 1))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._buffer.rstrip().endswith(b"}"):
            return
        answer, self._buffer = self._buffer, b""
        if not answer.startswith(b"HTTP/1.1 200") or b'thing %d"' % (self._key + 1) not in answer:
            self.done.set_exception(RuntimeError(answer.decode(errors="replace")[:500]))
        elif time.perf_counter() < self._deadline:
            self.answers += 1
            self._ask()
        elif not self.done.done():
            self.done.set_result(None)
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server closed the connection"))


async def _load(port: int, seconds: float) -> float:
    """Return how many requests a second are answered."""
    loop, started = asyncio.get_running_loop(), time.perf_counter()
    clients = [
        (await loop.create_connection(lambda: _Client(started + seconds), "127.0.0.1", port))[1]
        for _ in range(CONNECTIONS)
    ]
    await asyncio.gather(*(client.done for client in clients))
    return sum(client.answers for client in clients) / (time.perf_counter() - started)


def measure(framework: str, dsn: str, *, rounds: int, seconds: float, core: int) -> dict[str, list[float]]:
    """Return the requests a second of each library, one figure a round; the server's processes run on *core*."""
    rates: dict[str, list[float]] = {library: [] for library in LIBRARIES[framework]}
    with ExitStack() as stack:
        ports = {library: stack.enter_context(serving(framework, library, dsn, core)) for library in rates}
        for turn in range(rounds + 1):
            for library, port in ports.items():
                rate = uvloop.run(_load(port, seconds))
                rates[library] += [rate] if turn else []  # the first is to warm up
    return rates


def table(framework: str, rates: dict[str, list[float]]) -> list[str]:
    """Return a table: requests a second, and the share of what the application does without a database."""
    medians = {library: statistics.median(values) for library, values in rates.items()}
    ceiling = medians["none"]
    lines = [of_rates(medians, _BOUNDS), "", f"| {framework} | requests a second | of no database |", "|---|---|---|"]
    for library, median in medians.items():
        lines.append(f"| {library} | {median:.0f} | **{median / ceiling:.2f}** |")
    return [*lines, ""]
