"""The program that the soak test runs: threads and tasks over both pools, some of them cancelled, for as long as asked.

Reads commands from standard input: ``measure`` pauses, and prints what the process has; ``go`` goes on; ``end`` ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import json
import os
import random
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import psycopg

from pgmonkey import AsyncDatabase, Database

THREADS, TASKS = 8, 50
database = Database(json.loads(sys.argv[1]))
async_database = AsyncDatabase(json.loads(sys.argv[1]))
# Every key that was acknowledged, for whoever looks for lost ones.
journal = open(sys.argv[2], "a", buffering=1)  # noqa: SIM115
keys = itertools.count(1)
going = threading.Event()
stopped = False
working = 0
counting = threading.Lock()
failures = 0


def count(change: int) -> None:
    global working
    with counting:
        working += change


def work() -> None:
    global failures
    while not stopped:
        going.wait()
        count(1)
        key = next(keys)
        try:
            if key % 3:
                database.execute("INSERT INTO t VALUES (%s)", [key])
            else:
                with database.transaction() as connection:
                    connection.execute("SET search_path = nowhere, public")
                    database.execute("INSERT INTO t VALUES (%s)", [key])
                    next(iter(database.stream("SELECT generate_series(1, 100)", size=10)))
            journal.write(f"{key}\n")
        except psycopg.Error:
            failures += 1
        finally:
            count(-1)
        time.sleep(0.02)


async def write(key: int) -> None:
    if key % 3:
        await async_database.execute("INSERT INTO t VALUES (%s)", [key])
    else:
        async with async_database.transaction():
            await async_database.execute("INSERT INTO t VALUES (%s)", [key])
            await async_database.fetch_value("SELECT pg_sleep(0.002)")
    journal.write(f"{key}\n")


async def task() -> None:
    global failures
    while not stopped:
        if not going.is_set():
            await asyncio.sleep(0.02)
            continue
        count(1)
        try:
            writing = asyncio.create_task(write(next(keys)))
            if random.random() < 0.1:
                await asyncio.sleep(random.uniform(0, 0.01))
                writing.cancel()
            with suppress(asyncio.CancelledError):
                await writing
        except psycopg.Error:
            failures += 1
        finally:
            count(-1)
        await asyncio.sleep(0.1)


async def main() -> None:
    await asyncio.gather(*(task() for _ in range(TASKS)))


def measure() -> dict[str, Any]:
    going.clear()
    deadline = time.monotonic() + 30
    pools = [database.stats, async_database.stats]
    while working or any(pool()["pool_available"] != pool()["pool_min"] for pool in pools):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    time.sleep(1)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    return {
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "memory": pages * os.sysconf("SC_PAGE_SIZE"),
        "connections": sum(pool()["pool_size"] for pool in pools),
        "given back": sum(pool()["pool_available"] for pool in pools),
        "failures": failures,
    }


if __name__ == "__main__":
    threads = [threading.Thread(target=work, daemon=True) for _ in range(THREADS)]
    threads.append(threading.Thread(target=lambda: asyncio.run(main()), daemon=True))
    for thread in threads:
        thread.start()
    going.set()
    for line in sys.stdin:
        if line == "measure\n":
            print(json.dumps(measure()), flush=True)
        elif line == "go\n":
            going.set()
        else:
            break
