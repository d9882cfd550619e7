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
    "abandoned stream": "from pgmonkey import Database\nd = Database(CONFIG)\n"
    "s = d.stream('SELECT generate_series(1, 10000)')\nnext(s)",
    "thread in a block": "import threading, time\nfrom pgmonkey import Database\nd = Database(CONFIG)\n"
    "def work():\n with d.connection() as c: c.execute('SELECT pg_sleep(2)')\n"
    "threading.Thread(target=work, daemon=True).start(); time.sleep(0.3)",
}


@pytest.mark.parametrize("code", ENDINGS.values(), ids=ENDINGS)
def test_a_process_ends_quietly_and_leaves_nothing(code: str, config: dict[str, Any], backends: Backends) -> None:
    started = time.monotonic()
    run(code + "\nprint('ok')", config)
    assert time.monotonic() - started < 10, "it hung"
    deadline = time.monotonic() + 5
    while backends():
        assert time.monotonic() < deadline, f"left on the server: {backends()}"
        time.sleep(0.01)
