"""A process ends without warnings, without waiting, and leaves nothing on the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from .interpreters import run

Backends = Callable[[], list[tuple[int, str]]]
ENDINGS = {
    "sync pool": "from pgmonkey import Database\nDatabase(CONFIG).fetch_value('SELECT 1')",
    "normal": "from pgmonkey import PGConnectionManager\n"
    "c = PGConnectionManager().get_database_connection_from_dict(CONFIG, 'normal')\n"
    "c.__enter__().execute('SELECT 1')",
    "async pool": "import asyncio\nfrom pgmonkey import AsyncDatabase\n"
    "async def main(): await AsyncDatabase(CONFIG).fetch_value('SELECT 1')\nasyncio.run(main())",
    "async pool while filling": "import asyncio\nfrom pgmonkey import AsyncDatabase\n"
    "CONFIG['async_pool_settings'] = {'min_size': 20}\n"
    "async def main(): await AsyncDatabase(CONFIG).connect(); await asyncio.sleep(0.005)\nasyncio.run(main())",
    "sync pool while filling": "from pgmonkey import Database\n"
    "CONFIG['pool_settings'] = {'min_size': 20}\nDatabase(CONFIG).connect()",
    "borrowed while filling": "from pgmonkey import PGConnectionManager\nCONFIG['pool_settings'] = {'min_size': 9}\n"
    "pool = PGConnectionManager().get_database_connection_from_dict(CONFIG, 'pool')\n"
    "leases = [pool.borrow() for _ in range(3)]",
    "loop closed without asyncio.run": "import asyncio\nfrom pgmonkey import AsyncDatabase\n"
    "loop = asyncio.new_event_loop()\n"
    "loop.run_until_complete(AsyncDatabase(CONFIG).fetch_value('SELECT 1'))\nloop.close()",
    "exit in the background of tasks": "import asyncio, sys\nfrom pgmonkey import AsyncDatabase\nmade = []\n"
    "async def configure(connection): made.append(connection); len(made) < 2 or sys.exit(0)\n"
    "CONFIG['async_pool_settings'] = {'min_size': 2, 'configure': configure}\n"
    "d = AsyncDatabase(CONFIG)\nasync def main(): await d.connect(); await asyncio.sleep(30)\nasyncio.run(main())",
    "abandoned stream": "from pgmonkey import Database\nd = Database(CONFIG)\n"
    "s = d.stream('SELECT generate_series(1, 10000)')\nnext(s)",
    "thread in a block": "import threading, time\nfrom pgmonkey import Database\nd = Database(CONFIG)\n"
    "def work():\n with d.connection() as c: c.execute('SELECT pg_sleep(2)')\n"
    "threading.Thread(target=work, daemon=True).start(); time.sleep(0.3)",
    "threads in long statements": "import threading, time\nfrom pgmonkey import Database\nd = Database(CONFIG)\n"
    "for _ in range(4): threading.Thread(target=d.execute, args=['SELECT pg_sleep(60)'], daemon=True).start()\n"
    "time.sleep(0.5)",
    "tasks of a thread in long statements": "import asyncio, threading, time\nfrom pgmonkey import AsyncDatabase\n"
    "async def work():\n d = AsyncDatabase(CONFIG)\n"
    " await asyncio.gather(*(d.execute('SELECT pg_sleep(60)') for _ in range(3)))\n"
    "threading.Thread(target=lambda: asyncio.run(work()), daemon=True).start(); time.sleep(0.5)",
    "first used at exit": "import atexit\nfrom pgmonkey import Database\nCONFIG['pool_settings'] = {'min_size': 3}\n"
    "d = Database(CONFIG)\natexit.register(lambda: d.fetch_value('SELECT 1'))",
    "used after its end": "import atexit\natexit.register(lambda: d.fetch_value('SELECT 1'))\n"
    "from pgmonkey import Database\nd = Database(CONFIG)\nd.fetch_value('SELECT 1')",
}
BUSY = {
    "threads": """
import random, threading, time
from pgmonkey import Database
CONFIG["pool_settings"] = {"min_size": 8, "max_size": 8}
database = Database(CONFIG)
def work():
    while True:
        with database.transaction():
            database.fetch_value("SELECT 1 + %s", [1])
            database.execute("SELECT 2")
for _ in range(8):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.25 + random.random() * 0.2)
""",
    "loops": """
import asyncio, random, threading, time
from pgmonkey import AsyncDatabase
CONFIG["async_pool_settings"] = {"min_size": 1, "max_size": 2}
async def one(database):
    while True:
        async with database.transaction():
            await database.fetch_value("SELECT 1 + %s", [1])
            await database.execute("SELECT 2")
async def work():
    database = AsyncDatabase(CONFIG)
    await asyncio.gather(*(one(database) for _ in range(3)))
for _ in range(4):
    threading.Thread(target=lambda: asyncio.run(work()), daemon=True).start()
time.sleep(0.25 + random.random() * 0.2)
""",
}
ENDED = """
import os, signal, sys, threading
from pgmonkey import Database
database = Database(CONFIG)
def busy():
    while True:
        database.fetch_value("SELECT 1")
threading.Thread(target=busy, daemon=True).start()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
threading.Timer(0.4, os.kill, [os.getpid(), signal.SIGTERM]).start()
database.execute("SELECT pg_sleep(60)")
"""


@pytest.mark.parametrize("code", ENDINGS.values(), ids=ENDINGS)
def test_a_process_ends_quietly_and_leaves_nothing(code: str, config: dict[str, Any], backends: Backends) -> None:
    started = time.monotonic()
    run(code + "\nprint('ok')", config)
    assert time.monotonic() - started < 10, "it hung"
    wait_until_gone(backends)


@pytest.mark.parametrize("busy", BUSY)
def test_a_process_with_busy_daemon_threads_ends_quietly(busy: str, config: dict[str, Any]) -> None:
    for _ in range(6):
        run(BUSY[busy], config)


def test_what_runs_when_a_signal_handler_ends_the_process_is_cancelled(
    config: dict[str, Any], backends: Backends
) -> None:
    run(ENDED, config)
    wait_until_gone(backends)


def wait_until_gone(backends: Backends) -> None:
    deadline = time.monotonic() + 5
    while backends():
        assert time.monotonic() < deadline, f"left on the server: {backends()}"
        time.sleep(0.01)
