"""The core's own threads have nothing of those that start them, also where Python lets a thread inherit the context."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from ..configs import pools
from .interpreters import run

PROGRAM = """
import contextvars, gc, sys, threading, weakref
from pgmonkey import Database
class Request: pass
assert sys.flags.thread_inherit_context
current, found = contextvars.ContextVar("current"), {}
upkeep = threading.Event()
def configure(connection):
    found[threading.current_thread().name] = current.get(None)
    if len(found) == 2:
        upkeep.set()
CONFIG["pool_settings"]["configure"] = configure
CONFIG["connection_settings"]["live_view"] = True
database = Database(CONFIG)
def serve():
    request = Request()
    current.set(request)
    database.fetch_value("SELECT 1")
    return weakref.ref(request)
request = contextvars.Context().run(serve)
assert upkeep.wait(30)
assert found.pop("pgmonkey-upkeep") is None
found.clear()
gc.collect()
assert request() is None
print(sorted(thread.name for thread in threading.enumerate()))
database.close()
"""


@pytest.mark.skipif(sys.version_info < (3, 14), reason="before Python 3.14 no thread inherits a context")
def test_a_pools_threads_have_not_the_context_of_a_borrower(config: dict[str, Any]) -> None:
    flags = ("-W", "error", "-X", "thread_inherit_context=1")
    threads = run(PROGRAM, pools(config, min_size=2, max_size=2), flags=flags)
    assert threads == "['MainThread', 'pgmonkey live view', 'pgmonkey-upkeep']\n"
