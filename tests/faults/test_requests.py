"""Many more clients than connections: what each was told is what is stored."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ..contract.conftest import FRAMEWORKS, App, Started
from .load import wait_until

Figure = Callable[[str, str], None]
CLIENTS, CONNECTIONS = 200, 5
# What is asked, how often, and the answer: half of the requests are refused, by what they return or raise.
KINDS = {
    "/write?status=201&a=": (50, 201),
    "/write?status=409&a=": (30, 409),
    "/refuse?status=400&a=": (15, 400),
    "/crash?a=": (5, 500),
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_200_clients_on_a_pool_of_five(
    framework: str,
    config: dict[str, Any],
    observer: psycopg.Connection[Any],
    tmp_path: Path,
    figure: Figure,
    pytestconfig: pytest.Config,
) -> None:
    number = 1000 if pytestconfig.getoption("--short") else 10_000
    pool = {"min_size": 1, "max_size": CONNECTIONS, "timeout": 60}
    started = Started(framework, tmp_path, {**config, "pool_settings": pool, "async_pool_settings": pool})
    with started.client() as client:
        statuses = asyncio.run(_ask(started.port, number))
        app = App(started, client, observer)
        wait_until(lambda: (stats := app.stats())["pool_available"] == stats["pool_size"])
    stored = set(app.rows())
    acknowledged = {a for a, status in statuses.items() if status < 400}
    lost, there = acknowledged - stored, stored - acknowledged
    assert not lost
    assert not there
    assert len(statuses) == number
    seen = ", ".join(f"{count} answered {status}" for status, count in sorted(Counter(statuses.values()).items()))
    figure(
        f"{CLIENTS} clients at once on a pool of {CONNECTIONS}",
        f"{framework}: {number} requests, {seen}: {len(lost)} lost, {len(there)} refused but there",
    )


async def _ask(port: int, number: int) -> dict[int, int]:
    """Return the status of each of *number* requests, which `CLIENTS` clients send one after the other."""
    rng = random.Random(15)
    weights = [weight for weight, _ in KINDS.values()]
    calls = iter(enumerate(rng.choices(list(KINDS), weights, k=number)))
    statuses: dict[int, int] = {}

    async def work() -> None:
        for a, path in calls:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"POST {path}{a} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            writer.write(head.encode())
            answer = await reader.read()
            writer.close()
            statuses[a] = int(answer[9:12])
            assert statuses[a] == KINDS[path][1], answer

    await asyncio.gather(*(work() for _ in range(CLIENTS)))
    return statuses
