"""The program that the soak test runs, for as long as asked: threads and tasks over both pools, some of them cancelled.

With "odd" as third argument, a third pool has hooks that raise now and then; the main thread is interrupted at its
statements by a signal, and forks children that use the pools, too.  Reads commands from standard input: ``measure``
pauses, and prints what the process has; ``go`` goes on; ``end`` ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import json
import logging
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import Any

import psycopg

from pgmonkey import AsyncDatabase, Database

THREADS, TASKS = 8, 50
FORK_EVERY, CHILD_TAKES = 2.0, 60.0  # seconds
ODD = sys.argv[3] == "odd"


class Odd(Exception):
    """What hooks and the handler of a signal raise."""


def raise_seldom(*_: object) -> None:
    if ODD and going.is_set() and random.random() < 0.02:  # not while it is measured: upkeep calls hooks, too
        raise Odd


def with_hooks(config: dict[str, Any]) -> dict[str, Any]:
    hooks = dict.fromkeys(("configure", "check", "reset", "reconnect_failed"), raise_seldom)
    return {**config, "pool_settings": {**config["pool_settings"], **hooks}}


database = Database(json.loads(sys.argv[1]))
hooked = Database(with_hooks(json.loads(sys.argv[1])))
async_database = AsyncDatabase(json.loads(sys.argv[1]))
# Every key that was acknowledged, for whoever looks for lost ones.
journal = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
keys = itertools.count(1)
going = threading.Event()
stopped = False
working = 0
counting = threading.Lock()
failures = 0
armed = False
"""Whether the handler of the signal is to raise."""
children: dict[int, float] = {}
"""When each child was started."""
lost_children = 0


def count(change: int) -> None:
    global working
    with counting:
        working += change


def write_one(database: Database, key: int) -> None:
    if key % 3:
        database.execute("INSERT INTO t VALUES (%s)", [key])
    else:
        with database.transaction() as connection:
            connection.execute("SET search_path = nowhere, public")
            database.execute("INSERT INTO t VALUES (%s)", [key])
            next(iter(database.stream("SELECT generate_series(1, 100)", size=10)))
    # In one step: a file object's lock may be held when the process forks.
    os.write(journal, f"{key}\n".encode())


def work(database: Database) -> None:
    global failures
    while not stopped:
        going.wait()
        count(1)
        try:
            write_one(database, next(keys))
        except (psycopg.Error, Odd):
            failures += 1
        finally:
            count(-1)
        time.sleep(0.02)


def work_interrupted() -> None:
    """Write once on either pool, interrupted at whatever step by an exception of a signal's handler."""
    global failures, armed
    try:
        armed = ODD
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.02))
            write_one(random.choice([database, hooked]), next(keys))
        finally:
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
    except (psycopg.Error, Odd):
        failures += 1


def fork() -> int:
    """Start a child that writes on each pool, under keys that no other has."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for n, used in enumerate((database, hooked)):
                with suppress(psycopg.Error, Odd):
                    write_one(used, -2 * os.getpid() - n)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


async def write(key: int) -> None:
    if key % 3:
        await async_database.execute("INSERT INTO t VALUES (%s)", [key])
    else:
        async with async_database.transaction():
            await async_database.execute("INSERT INTO t VALUES (%s)", [key])
            await async_database.fetch_value("SELECT pg_sleep(0.002)")
    os.write(journal, f"{key}\n".encode())


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
    pools = [database.stats, hooked.stats, async_database.stats]
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
        "lost children": lost_children,
    }


def raise_when_armed(*_: object) -> None:
    if armed:
        raise Odd


def tell_unless_odd(unraisable: Any) -> None:
    """Tell what a finalizer raised, unless the signal came in it, or in psycopg's making of the object."""
    psycopgs = str(getattr(unraisable.object, "__module__", "")).startswith("psycopg")
    if unraisable.exc_type is not Odd and not psycopgs:
        sys.__unraisablehook__(unraisable)


def reap() -> None:
    """Forget the children that have ended; count those that failed, and end those that hang."""
    global lost_children
    for child, started in list(children.items()):
        if time.monotonic() - started > CHILD_TAKES:
            os.kill(child, signal.SIGKILL)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            lost_children += status != 0
            del children[child]


def serve() -> None:
    """Do the main thread's work until a command comes, and what that says."""
    forked = time.monotonic()
    while True:
        if select.select([sys.stdin], [], [], 0 if going.is_set() else None)[0]:
            line = sys.stdin.readline()
            if line == "measure\n":
                while children:
                    reap()
                    time.sleep(0.05)
                print(json.dumps(measure()), flush=True)
            elif line == "go\n":
                going.set()
            else:
                return
            continue
        work_interrupted()
        time.sleep(0.02)
        if ODD and time.monotonic() - forked > FORK_EVERY:
            forked = time.monotonic()
            children[fork()] = forked
        reap()


if __name__ == "__main__":
    threads = [threading.Thread(target=work, args=(database,), daemon=True) for _ in range(THREADS)]
    threads += [threading.Thread(target=work, args=(hooked,), daemon=True) for _ in range(2)]
    threads.append(threading.Thread(target=lambda: asyncio.run(main()), daemon=True))
    for thread in threads:
        thread.start()
    signal.signal(signal.SIGALRM, raise_when_armed)
    sys.unraisablehook = tell_unless_odd
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # the signal may come in libpq's callback for notices
    going.set()
    serve()
