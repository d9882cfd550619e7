"""A name server that does not answer: nobody waits for it longer than for a connection."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..conftest import ON_CI

Figure = Callable[[str, str], None]
ROW = "A name server that does not answer; timeout 1 s"
TIMEOUT = 1.0

SCRIPT = """
import asyncio, json, sys, threading, time
import psycopg
from pgmonkey import AsyncDatabase, Database
config, threads = json.loads(sys.argv[1]), sys.argv[2] == "threads"

def seen(started, error):
    print(json.dumps([time.monotonic() - started, str(error)]), flush=True)

def query():
    started = time.monotonic()
    try:
        database.fetch_value("SELECT 1")
    except psycopg.errors.ConnectionTimeout as error:
        seen(started, error)

async def aquery(database):
    started = time.monotonic()
    try:
        await database.fetch_value("SELECT 1")
    except psycopg.errors.ConnectionTimeout as error:
        seen(started, error)

async def main():
    database = AsyncDatabase(config)
    await asyncio.gather(*(aquery(database) for _ in range(4)))
    await database.close()

if threads:
    database = Database(config)
    borrowers = [threading.Thread(target=query) for _ in range(4)]
    for borrower in borrowers:
        borrower.start()
    for borrower in borrowers:
        borrower.join()
    database.close()
else:
    asyncio.run(main())
print(json.dumps(time.time()))
"""


@pytest.fixture
def resolver(tmp_path: Path) -> Iterator[list[str]]:
    """The beginning of a command that runs the rest of it where the only name server is silent."""
    if (not shutil.which("unshare") or os.geteuid() != 0) and not ON_CI:
        pytest.skip("a name server of one's own needs root and util-linux")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.7.7.7", 53))
        (tmp_path / "resolv.conf").write_text("nameserver 127.7.7.7\noptions timeout:5 attempts:2\n")
        mount = f"mount --bind {tmp_path / 'resolv.conf'} /etc/resolv.conf"
        yield ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]


@pytest.mark.parametrize("kind", ["threads", "tasks"])
def test_borrowers_end_in_time(kind: str, resolver: list[str], config: dict[str, Any], figure: Figure) -> None:
    pool = {"min_size": 1, "max_size": 4, "timeout": TIMEOUT}
    settings = {**config["connection_settings"], "host": "db.silent.example"}
    silent = json.dumps({"connection_settings": settings, "pool_settings": pool, "async_pool_settings": pool})
    process = subprocess.run(
        [*resolver, sys.executable, "-W", "error", "-c", SCRIPT, silent, kind],
        capture_output=True,
        text=True,
        timeout=60,
    )
    left = time.time()
    assert process.returncode == 0, process.stderr
    *lines, end = map(json.loads, process.stdout.splitlines())
    assert len(lines) == 4, process.stdout
    took = max(seconds for seconds, _ in lines)
    assert TIMEOUT - 0.01 <= took < TIMEOUT + 0.2
    for _, error in lines:
        assert error == "the host name 'db.silent.example' was not resolved within 1 s (timeout)"
    # The search goes on for 10 s, and the process does not wait for it.
    assert left - end < 3
    figure(ROW, f"{kind}: {took:.2f} s; the process ends {left - end:.2f} s later")
