"""Clients that leave at whatever moment, or read slowly: over sockets, so that they can."""

from __future__ import annotations

import random
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .grid import EXAMPLES
from .test_contract import at_once

if TYPE_CHECKING:
    from .conftest import App

CUT = {
    "flask": ["GET /slow?sleep=0.02&a=", "POST /write?status=201&a=", "GET /stream?rows=500&a="],
    "django": ["GET /slow?sleep=0.02&a=", "POST /write?status=201&a=", "GET /stream?rows=500&a="],
    "fastapi": [
        *("GET /slow?sleep=0.02&a=", "GET /slow-sync?sleep=0.02&a=", "POST /write?status=201&a="),
        *("GET /stream?rows=500&a=", "GET /bare?sleep=0.02&who="),
    ],
}


def request(app: App, line: str) -> socket.socket:
    """Send a request and return the socket, on which the answer arrives."""
    connected = socket.create_connection(("127.0.0.1", app.port), 30)
    connected.sendall(f"{line} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    return connected


def reset(connected: socket.socket) -> None:
    """Close with a reset, as a client does that is killed."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connected.close()


def running(app: App, query: str = "%") -> int:
    """Return the number of the application's backends that are in a transaction or at work."""
    row = app.observer.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend' AND state <> 'idle' AND query LIKE %s",
        [query],
    ).fetchone()
    assert row is not None
    return int(row[0])


def lent(app: App) -> int:
    """Return the number of connections that the application's pools have lent."""
    stats = app.stats()
    return stats["pool_size"] - stats["pool_available"]


def wait_for(app: App, number: int, query: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while running(app, query) != number:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_p5_requests_that_are_cut_lose_nothing(app: App) -> None:
    rng = random.Random(11)
    many = range(16 * EXAMPLES)
    calls = [(a, rng.choice(CUT[app.framework]), rng.random() < 0.5, rng.uniform(0, 0.06)) for a in many]

    def call(arguments: tuple[int, str, bool, float]) -> int | None:
        a, line, cut, moment = arguments
        with request(app, f"{line}{a}") as connected:
            if cut:
                time.sleep(moment)
                if a % 2:
                    reset(connected)
                return None
            answer = b"".join(iter(lambda: connected.recv(65536), b""))
        status = int(answer[9:12])
        assert status in (200, 201), answer[:200]
        return a if "/slow" in line or "/write" in line else None

    acknowledged = {a for a in at_once(20, call, calls) if a is not None}
    app.release_frame()
    app.wait_until_all_is_given_back()
    assert acknowledged <= set(app.rows())


def test_p13_a_client_that_leaves_has_its_query_cancelled(app: App) -> None:
    if app.framework != "fastapi":
        # A WSGI server does not tell; what was begun is finished, and the connection comes back then.
        with request(app, "GET /slow?sleep=0.5&a=1"):
            wait_for(app, 1, "%pg_sleep%")
        app.release_frame()
        app.wait_until_all_is_given_back()
        return
    for line in ("GET /slow?sleep=60&a=1", "GET /slow-sync?sleep=60&a=1"):
        with request(app, line):
            wait_for(app, 1, "%pg_sleep%")
        wait_for(app, 0, "%", 1)
        app.wait_until_all_is_given_back()
        assert app.rows() == []


@pytest.mark.parametrize("how", ["closes", "resets"])
def test_p13_a_client_that_stops_reading_gives_the_streams_connection_back(app: App, how: str) -> None:
    with request(app, "GET /stream?rows=200000") as connected:
        assert len(connected.recv(100_000)) > 0
        assert lent(app) == 1
        if how == "resets":
            reset(connected)
    deadline = time.monotonic() + 1
    while lent(app):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    wait_for(app, 0, "%")


def peak(pid: int) -> int:
    """Return the most memory that the process, or a child of it, has had resident, in KiB."""
    status = Path(f"/proc/{pid}/status")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return max([own, *(peak(int(child)) for child in children)])


def test_p13_a_stream_needs_constant_memory(app: App) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells, in /proc, the most memory that another process has had")

    def stream(rows: int) -> int:
        length = 0
        with app.client.stream("GET", "/stream", params={"rows": rows}) as answer:
            for chunk in answer.iter_bytes():
                length += len(chunk)
        return length

    assert stream(2000) == 2000 * 1024
    before = peak(app.process.pid)
    assert stream(40_000) == 40_000 * 1024
    assert peak(app.process.pid) - before < 10_000, "KiB, for 40 MB"
