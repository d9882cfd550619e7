"""Tasks that are cancelled, twice and at any point, and clients that leave."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import yaml

from pgmonkey import AsyncDatabase
from pgmonkey.embedded import _free_port, die_with_parent

from .load import wait_until

Figure = Callable[[str, str], None]
ROW = "Tasks cancelled, and cancelled again; clients that leave"
STATES = (
    "SELECT count(*) FILTER (WHERE state = 'active'), count(*) FILTER (WHERE state LIKE 'idle in%') FROM"
    " pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' AND"
    " pid <> pg_backend_pid()"
)


async def work(database: AsyncDatabase[Any], number: int) -> None:
    kind = number % 4
    if kind == 0:
        await database.fetch_value("SELECT pg_sleep(60)")
    elif kind == 1:
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO t VALUES (%s)", [number])
            await connection.execute("SELECT pg_sleep(0.001)")
    elif kind == 2:
        async for _ in database.stream("SELECT generate_series(1, 3000)", size=100):
            """Read on."""
    else:
        await database.execute("INSERT INTO t VALUES (%s)", [number])


async def check(database: AsyncDatabase[Any], observer: psycopg.Connection[Any]) -> tuple[int, int]:
    """Return the sessions that are at work and in a transaction, once those that were ended had a moment to end."""
    deadline = time.monotonic() + 2
    while True:
        await asyncio.sleep(0.01)
        stats, states = database.stats(), observer.execute(STATES).fetchone()
        if (stats["pool_available"] == stats["pool_size"] and states == (0, 0)) or time.monotonic() > deadline:
            assert stats["pool_available"] == stats["pool_size"], stats
            assert stats["requests_waiting"] == 0
            assert states is not None
            return states[0], states[1]


async def test_bursts_and_random_points(
    config: dict[str, Any], observer: psycopg.Connection[Any], figure: Figure
) -> None:
    database = AsyncDatabase(config)
    await database.connect()
    rng = random.Random(7)
    numbers = iter(range(10**6))
    for _ in range(30):
        tasks = [asyncio.create_task(work(database, next(numbers))) for _ in range(60)]
        await asyncio.sleep(rng.uniform(0, 0.02))
        for _ in range(2):
            for task in tasks:
                task.cancel()
            await asyncio.sleep(rng.uniform(0, 0.002))
        await asyncio.gather(*tasks, return_exceptions=True)
    active, in_transaction = await check(database, observer)
    assert (active, in_transaction) == (0, 0)
    figure(ROW, f"30 bursts of 60: pool full, {active} queries running, {in_transaction} idle in transaction")

    async def cancelled_somewhere(number: int) -> None:
        task = asyncio.create_task(work(database, number))
        await asyncio.sleep(rng.expovariate(200))
        task.cancel()
        await asyncio.wait([task])

    for _ in range(50):
        await asyncio.gather(*(cancelled_somewhere(next(numbers)) for _ in range(40)))
    active, in_transaction = await check(database, observer)
    assert (active, in_transaction) == (0, 0)
    assert sorted(await asyncio.gather(*(database.fetch_value("SELECT 1") for _ in range(50)))) == [1] * 50
    stats = database.stats()
    assert stats["pool_available"] == stats["pool_size"] == 8
    figure(ROW, f"2,000 at random points: pool full, {active} running, {in_transaction} in transaction")
    await database.close()


async def test_clients_that_leave(
    config: dict[str, Any], observer: psycopg.Connection[Any], figure: Figure, tmp_path: Path
) -> None:
    observer.execute("CREATE TABLE late (a int); CREATE TABLE doomed (a int)")
    apps = Path(__file__).resolve().parents[1] / "contract" / "apps"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    port = _free_port()
    environ = {**os.environ, "CONTRACT_CONFIG": str(tmp_path / "config.yaml"), "PYTHONPATH": str(apps)}
    command = [sys.executable, "-m", "uvicorn", "--log-level", "error", "--port", str(port), "fastapi_app:app"]
    process = subprocess.Popen(command, env=environ, cwd=tmp_path, preexec_fn=die_with_parent)
    try:
        await asyncio.to_thread(wait_until, lambda: _listens(port), 30)
        rng = random.Random(3)
        limit = asyncio.Semaphore(40)

        async def leave(number: int) -> None:
            line = rng.choice(["GET /slow?sleep=30&a=", "POST /write?status=201&a=", "GET /stream?rows=100000&a="])
            async with limit:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(f"{line}{number} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
                await asyncio.sleep(rng.uniform(0, 0.05))
                writer.transport.abort()

        await asyncio.gather(*(leave(number) for number in range(500)))
        deadline = time.monotonic() + 5
        while True:
            states, stats = observer.execute(STATES).fetchone(), await _stats(port)
            if states == (0, 0) and stats["pool_available"] == stats["pool_size"]:
                break
            assert time.monotonic() < deadline, (states, stats)
            await asyncio.sleep(0.02)
    finally:
        process.terminate()
        process.wait(20)
    figure(ROW, "500 HTTP clients (FastAPI): pool full, 0 running, 0 in transaction")


async def _stats(port: int) -> dict[str, int]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    stats: dict[str, int] = yaml.safe_load((await reader.read()).partition(b"\r\n\r\n")[2])
    writer.close()
    return stats


def _listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
