"""A forked child has connections of its own and leaves its parent's alone."""

from __future__ import annotations

from typing import Any

import pytest

from .interpreters import run

FORK = """
import os, sys
from pgmonkey import AsyncDatabase, Database, PGConnectionManager
CONFIG["pool_settings"] = {"min_size": 2, "max_size": 2}
database = Database(CONFIG)
pool = PGConnectionManager().get_database_connection_from_dict(CONFIG, "pool")
pid = lambda: database.fetch_value("SELECT pg_backend_pid()")
with pool as held:
    parent = {pid(), held.info.backend_pid}
    held.execute("CREATE TABLE forked (a int)")
    children = []
    for _ in range(4):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            for _ in range(50):
                with pool as connection:
                    connection.execute("SELECT 1")
            os.write(write, str(pid()).encode())
            LEAVE
        children.append((child, read))
    for _ in range(50):
        pid()
    theirs = set()
    for child, read in children:
        assert os.waitpid(child, 0)[1] == 0
        theirs.add(int(os.read(read, 100)))
    held.execute("INSERT INTO forked VALUES (1)")
assert len(theirs) == 4 and not theirs & parent, (theirs, parent)
assert pid() in parent
assert database.fetch_all("SELECT * FROM forked") == [(1,)], "the parent's transaction went on"
print("ok")
"""


@pytest.mark.parametrize("leave", ["os._exit(0)", "sys.exit(0)"])
def test_a_forked_child_has_connections_of_its_own(leave: str, config: dict[str, Any]) -> None:
    # Python 3.12 warns of fork() in a process with threads, such as the one that may be connecting at this moment.
    flags = ("-W", "ignore::DeprecationWarning")
    assert run(FORK.replace("LEAVE", leave), config, flags=flags) == "ok\n"


THREADS = """
import asyncio, os, threading
from pgmonkey import PGConnectionManager
pool = PGConnectionManager().get_database_connection_from_dict(CONFIG, "pool")
of_thread = threading.local()
inside, forked, told = threading.Semaphore(0), threading.Event(), []
XID = "SELECT txid_current()"
def work():
    of_thread.lease = pool.borrow()
    connection = of_thread.lease.connection
    first = connection.execute(XID).fetchone()
    inside.release()
    forked.wait(30)
    told.append(connection.execute(XID).fetchone() == first)
    of_thread.lease.finish()
async def borrow():
    handle = await PGConnectionManager().get_database_connection_from_dict(CONFIG, "async_pool")
    of_thread.lease = await handle.borrow()
async def ask():
    return await (await of_thread.lease.connection.execute(XID)).fetchone()
def work_in_a_loop():
    loop = asyncio.new_event_loop()
    loop.run_until_complete(borrow())
    first = loop.run_until_complete(ask())
    inside.release()
    forked.wait(30)
    told.append(loop.run_until_complete(ask()) == first)
    loop.run_until_complete(of_thread.lease.finish())
    loop.close()
threads = [threading.Thread(target=work), threading.Thread(target=work_in_a_loop)]
for thread in threads:
    thread.start()
    assert inside.acquire(timeout=30)
child = os.fork()
if child == 0:
    with pool as connection:
        os._exit(connection.execute("SELECT 7").fetchone()[0])
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
forked.set()
for thread in threads:
    thread.join()
print(told)
"""


def test_a_fork_leaves_alone_what_the_threads_of_the_parent_do(config: dict[str, Any]) -> None:
    """Python ends them in the child, and what they have with them, before it tells anybody of the fork."""
    assert run(THREADS, config, flags=("-W", "ignore::DeprecationWarning")) == "[True, True]\n"


FORGOTTEN = """
import os, threading, time
from pgmonkey import PGConnectionManager
from psycopg.pq import TransactionStatus
pool = PGConnectionManager().get_database_connection_from_dict(CONFIG, "pool")
leases = [pool.borrow()]
pgconn = leases[0].connection.pgconn
thread = threading.Thread(target=leases[0].connection.execute, args=["SELECT pg_sleep(3)"])
thread.start()
while pgconn.transaction_status != TransactionStatus.ACTIVE:
    time.sleep(0.01)
time.sleep(0.5)  # the first to be sent is BEGIN
child = os.fork()
if child == 0:
    leases.clear()
    time.sleep(1)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
thread.join()
leases[0].finish()
print("ok")
"""


def test_what_a_forked_child_forgets_goes_on_in_the_parent(config: dict[str, Any]) -> None:
    """The pool ends what a forgotten connection is doing, but here it is the parent's."""
    assert run(FORGOTTEN, config, flags=("-W", "ignore::DeprecationWarning")) == "ok\n"


SETTLED = """
import os, threading, time
from pgmonkey import Database
CONFIG["pool_settings"] = {"min_size": 2, "max_size": 2, "max_lifetime": 4}
database = Database(CONFIG)
database.connect()
while database.stats()["pool_available"] < 2:
    time.sleep(0.01)
time.sleep(0.1)
pids = lambda: set(database.fetch_all("SELECT pid FROM pg_stat_activity WHERE datname = current_database()"))
for _ in range(20):
    child = os.fork()
    if child == 0:
        assert threading.active_count() == 1
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
first = pids()
assert [thread.name for thread in threading.enumerate()][1:] == ["pgmonkey-upkeep"]
time.sleep(5)
assert len(pids() - first) == 2, "upkeep goes on in the parent"
print("ok")
"""


def test_a_fork_finds_no_thread_of_a_settled_pool(config: dict[str, Any]) -> None:
    """Of threads Python 3.12 would warn, as they may hold locks."""
    assert run(SETTLED, config, flags=("-W", "error")) == "ok\n"
