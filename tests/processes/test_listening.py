"""What a process that listens does when it ends, and when it forks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from .interpreters import run

Backends = Callable[[], list[tuple[int, str]]]
ENDINGS = {
    "a daemon thread listens": """
import threading
from pgmonkey import Database
database = Database(CONFIG)
ready = threading.Event()
def work():
    with database.listen("orders") as notes:
        ready.set()
        for note in notes: print(note)
threading.Thread(target=work, daemon=True).start()
assert ready.wait(60)
""",
    "threads that are waited for listen": """
import threading
from pgmonkey import Database
database = Database(CONFIG)
ready = threading.Semaphore(0)
def work():
    with database.listen("orders") as notes:
        ready.release()
        for note in notes: print(note)
for _ in range(3):
    threading.Thread(target=work).start()
for _ in range(3):
    ready.acquire()
""",
    "a task listens": """
import asyncio
from pgmonkey import AsyncDatabase
async def work(database, ready):
    async with database.listen("orders") as notes:
        ready.set()
        async for note in notes: print(note)
async def main():
    database, ready = AsyncDatabase(CONFIG), asyncio.Event()
    tasks = [asyncio.create_task(work(database, ready)) for _ in range(3)]
    await ready.wait()
asyncio.run(main())
""",
    "it was forgotten": """
import asyncio
from pgmonkey import AsyncDatabase, Database
notes = Database(CONFIG).listen("orders").__enter__()
async def main():
    global others
    others = await AsyncDatabase(CONFIG).listen("orders").__aenter__()
asyncio.run(main())
""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_that_listens_ends_without_a_word(ending: str, config: dict[str, Any], backends: Backends) -> None:
    assert run(ENDINGS[ending], config) == ""
    for _ in range(100):
        if not backends():
            break
        time.sleep(0.1)
    assert backends() == []


FORK = """
import ctypes, os, sys
from pgmonkey import Database, Gap
database = Database(CONFIG)
def payloads(notes, count):
    found = []
    for note in notes:
        found.append("gap" if isinstance(note, Gap) else note.payload)
        if len(found) == count:
            return found
with database.listen("orders") as notes:
    database.notify("orders", "1")
    assert payloads(notes, 1) == ["1"]
    child = FORK_NOW
    if child == 0:
        assert payloads(notes, 1) == ["gap"]  # on a connection of its own
        database.notify("orders", "of the child")
        assert payloads(notes, 1) == ["of the child"]
        LEAVE
    assert os.waitpid(child, 0)[1] == 0
    assert payloads(notes, 1) == ["of the child"]
    database.notify("orders", "2")
    assert payloads(notes, 1) == ["2"], "the parent's connection is as it was"
print("ok")
"""


@pytest.mark.parametrize("way", {"os.fork": "os.fork()", "bare": "ctypes.PyDLL(None).fork()"}.values())
@pytest.mark.parametrize("leave", ["os._exit(0)", "sys.exit(0)"])
def test_a_forked_child_leaves_its_parents_connection_alone(way: str, leave: str, config: dict[str, Any]) -> None:
    flags = ("-W", "ignore::DeprecationWarning")
    assert run(FORK.replace("LEAVE", leave).replace("FORK_NOW", way), config, flags=flags) == "ok\n"
