"""A forked child has connections of its own and leaves its parent's alone."""

from __future__ import annotations

import os
from typing import Any

import pytest

from ..configs import proxied
from ..faults.proxy import FaultProxy
from .interpreters import run

# By Python's function, which tells pgmonkey, and as uWSGI does, which tells nobody.
WAYS = {"os.fork": "os.fork()", "bare": "ctypes.PyDLL(None).fork()"}
FORK = """
import ctypes, os, sys
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
        child = FORK_NOW
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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("leave", ["os._exit(0)", "sys.exit(0)"])
def test_a_forked_child_has_connections_of_its_own(leave: str, way: str, config: dict[str, Any]) -> None:
    # Python 3.12 warns of fork() in a process with threads, such as the one that may be connecting at this moment.
    flags = ("-W", "ignore::DeprecationWarning")
    assert run(FORK.replace("LEAVE", leave).replace("FORK_NOW", WAYS[way]), config, flags=flags) == "ok\n"


WHILE_CONNECTING = """
import os, threading, time
threads = set()
# Before pgmonkey's own, and so called after it.
os.register_at_fork(before=lambda: threads.update(os.listdir("/proc/self/task")))
from pgmonkey import Database
for number in range(20):
    CONFIG["pool_settings"] = {"min_size": 3, "max_size": 3, "timeout": 30 + number}  # a pool of its own
    database = Database(CONFIG)
    assert database.fetch_value("SELECT 1") == 1
    while "pgmonkey-upkeep" not in [thread.name for thread in threading.enumerate()]:
        time.sleep(0.001)
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    database.close()
assert threads == {str(os.getpid())}, threads
print("ok")
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="only Linux lists a process's threads")
def test_a_fork_waits_for_what_connects_in_the_background(config: dict[str, Any]) -> None:
    connect = config["connection_settings"]
    with FaultProxy(connect["host"], int(connect["port"])) as proxy:
        proxy.latency = 0.005
        assert run(WHILE_CONNECTING, proxied(config, proxy)) == "ok\n"


THREADS = """
import asyncio, ctypes, os, threading
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
child = FORK_NOW
if child == 0:
    with pool as connection:
        os._exit(connection.execute("SELECT 7").fetchone()[0])
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
forked.set()
for thread in threads:
    thread.join()
print(told)
"""


@pytest.mark.parametrize("way", WAYS)
def test_a_fork_leaves_alone_what_the_threads_of_the_parent_do(way: str, config: dict[str, Any]) -> None:
    """Python ends them in the child, and what they have with them, before it tells anybody of the fork."""
    assert (
        run(THREADS.replace("FORK_NOW", WAYS[way]), config, flags=("-W", "ignore::DeprecationWarning"))
        == "[True, True]\n"
    )


FORGOTTEN = """
import ctypes, os, threading, time
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
child = FORK_NOW
if child == 0:
    leases.clear()
    time.sleep(1)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
thread.join()
leases[0].finish()
print("ok")
"""


@pytest.mark.parametrize("way", WAYS)
def test_what_a_forked_child_forgets_goes_on_in_the_parent(way: str, config: dict[str, Any]) -> None:
    """The pool ends what a forgotten connection is doing, but here it is the parent's."""
    assert run(FORGOTTEN.replace("FORK_NOW", WAYS[way]), config, flags=("-W", "ignore::DeprecationWarning")) == "ok\n"


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


NO_THREADS = """
import logging, os, threading, time
from pgmonkey import Database
logging.disable()
CONFIG["pool_settings"] = {"min_size": 2, "max_size": 2}
database = Database(CONFIG)

def wait_until_full():
    deadline = time.monotonic() + 20
    while database.stats()["pool_size"] < 2:
        assert time.monotonic() < deadline, database.stats()
        time.sleep(0.01)

threading.stack_size(1 << 46)  # no thread can be started
database.connect()
threading.stack_size(0)
with database.connection() as connection:
    connection.close()
wait_until_full()
threading.stack_size(1 << 46)
child = os.fork()
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
for size in 1 << 46, 0:
    threading.stack_size(size)
    with database.connection() as connection:
        connection.close()
wait_until_full()
print("ok")
"""


def test_upkeep_is_tried_again_where_no_thread_can_be_started(config: dict[str, Any]) -> None:
    assert run(NO_THREADS, config) == "ok\n"


HELD = """
import asyncio, ctypes, os
from contextvars import Context
from pgmonkey import AsyncDatabase, Database, ForkedError, PGConnectionManager
CONFIG["pool_settings"] = CONFIG["async_pool_settings"] = {"min_size": 1, "max_size": 9}
database, other = Database(CONFIG), AsyncDatabase(CONFIG)
database.execute("CREATE TABLE forked (a text)")
for _ in range(9):
    database.fetch_value("SELECT %s::text", ["warm"])
pool = PGConnectionManager().get_database_connection_from_dict(CONFIG, "pool")
single = PGConnectionManager().get_database_connection_from_dict(CONFIG, "normal")

def in_child(pid, held, check):
    if pid:
        assert os.waitpid(pid, 0)[1] == 0, held
        return
    status = 1
    try:
        check()
        status = 0
    except BaseException as error:
        os.write(2, f"{held}: {error!r}\\n".encode())
    os._exit(status)

def refused(use):
    try:
        use()
    except ForkedError as error:
        assert str(os.getppid()) in str(error) and "Context().run" in str(error)
    else:
        raise AssertionError("used")

def try_all(*uses):
    def check():
        for use in uses:
            refused(use)
        # What is new is the child's own, also twice at a time.
        own = lambda: database.fetch_value("SELECT %s::text", ["own"])
        assert {Context().run(own) for _ in range(9)} == {"own"}
        with pool as one, pool as two:
            assert one.execute("SELECT 1").fetchone() == two.execute("SELECT 1").fetchone() == (1,)
        # To end what is held says nothing to the server.
        plain.connection.close()
        plain.finish(SystemExit())
    return check

plain, reader = pool.borrow(), pool.borrow(autocommit=False)
cursor = plain.connection.cursor()
for _ in range(9):
    cursor.execute("SELECT %s::text", ["warm"])
plain.connection.execute("LISTEN forked")
plain.connection.commit()
server_cursor = reader.connection.cursor("one")
server_cursor.execute("SELECT generate_series(1, 5000)")
server_cursor.fetchone()
stream = database.stream("SELECT generate_series(1, 5000)", size=10)
next(stream)
block = single.borrow(autocommit=False)
block.connection.execute("INSERT INTO forked VALUES ('single')")
cursors = plain.connection.cursor()
with database.transaction() as transaction:
    database.execute("INSERT INTO forked VALUES ('unit')")
    pid = FORK_NOW
    in_child(pid, "sync", try_all(
        lambda: cursor.execute("SELECT %s::text", ["x"]),
        lambda: cursor.execute("SELECT 2 AS unprepared"),
        lambda: cursor.executemany("INSERT INTO forked VALUES (%s)", [["x"], ["y"]]),
        lambda: plain.connection.execute("SELECT 1"),
        lambda: next(plain.connection.notifies(timeout=0.1)),
        lambda: plain.connection.cursor().copy("COPY forked FROM STDIN").__enter__(),
        lambda: next(cursors.stream("SELECT 1")),
        lambda: plain.connection.transaction().__enter__(),
        plain.connection.commit,
        plain.connection.rollback,
        reader.connection.commit,
        server_cursor.fetchall,
        reader.finish,
        lambda: list(stream),
        lambda: block.connection.execute("INSERT INTO forked VALUES ('child')"),
        block.finish,
        lambda: database.fetch_value("SELECT 1"),
        lambda: database.execute("INSERT INTO forked VALUES (%s)", ["child"]),
        lambda: database.execute_many("INSERT INTO forked VALUES (%s)", [["child"]]),
        lambda: transaction.execute("INSERT INTO forked VALUES ('child')"),
        lambda: database.transaction().__enter__(),
    ) if pid == 0 else None)
    database.execute("INSERT INTO forked VALUES ('after')")
block.finish()
assert len(list(stream)) == 4999
assert len(server_cursor.fetchall()) == 4999
database.execute("NOTIFY forked")
assert next(plain.connection.notifies(timeout=5)).channel == "forked"
plain.finish()
reader.finish()
assert sorted(database.fetch_all("SELECT a FROM forked")) == [("after",), ("single",), ("unit",)]

def refused_at_once(use):
    # Before anything is waited for: the child must not run its parent's event loop.
    refused(lambda: use().__await__().send(None))

async def asynchronously():
    loop = asyncio.get_running_loop()
    for _ in range(9):
        await other.fetch_value("SELECT %s::text", ["warm"])
    handle = await PGConnectionManager().get_database_connection_from_dict(CONFIG, "async_pool")
    lease = await handle.borrow()
    cursor = lease.connection.cursor()
    await cursor.execute("SELECT 1")
    reader = other.stream("SELECT generate_series(1, 5000)", size=10)
    await anext(reader)
    async with other.transaction():
        await other.execute("INSERT INTO forked VALUES ('tasks')")
        pid = FORK_NOW
        if pid == 0:
            try:
                asyncio._set_running_loop(loop)  # before Python 3.12 a child knows of none
                refused_at_once(lambda: cursor.execute("SELECT 2"))
                refused_at_once(lambda: lease.connection.commit())
                refused_at_once(lambda: lease.finish())
                refused_at_once(lambda: other.execute("INSERT INTO forked VALUES ('child')"))
                task = asyncio.current_task(loop)
                if task is not None:  # from Python 3.14 on, a thread that is in a task cannot run another loop
                    asyncio.tasks._leave_task(loop, task)
                asyncio._set_running_loop(None)
                def own():
                    async def ask():
                        return [await other.fetch_value("SELECT %s::text", ["own"]) for _ in range(9)]
                    return asyncio.run(ask())
                assert Context().run(own) == ["own"] * 9
                os._exit(0)
            except BaseException as error:
                os.write(2, repr(error).encode())
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        await other.execute("INSERT INTO forked VALUES ('tasks')")
    assert len([row async for row in reader]) == 4999
    await lease.finish()
    assert await other.fetch_value("SELECT count(*) FROM forked WHERE a = 'tasks'") == 2
    await other.close()
asyncio.run(asynchronously())
print("ok")
"""


@pytest.mark.parametrize("way", WAYS)
def test_a_child_uses_nothing_of_what_its_parent_holds(way: str, config: dict[str, Any]) -> None:
    flags = ("-W", "ignore::DeprecationWarning")
    assert run(HELD.replace("FORK_NOW", WAYS[way]), config, flags=flags) == "ok\n"


WHILE_NOTHING_ANSWERS = """
import os, threading, time
from pgmonkey._sync.waiting import Ticker
begun = threading.Semaphore(0)
class Pool:
    def upkeep(self):
        begun.release()
        time.sleep(300)
pools = [Pool() for _ in range(20)]
tickers = [Ticker(pool.upkeep) for pool in pools]
for ticker in tickers:
    ticker.hurry()
    begun.acquire()
started = time.monotonic()
child = os.fork()
if child == 0:
    os._exit(0)
print(time.monotonic() - started)
"""


def test_a_fork_waits_for_all_pools_together() -> None:
    seconds = float(run(WHILE_NOTHING_ANSWERS, flags=("-W", "ignore::DeprecationWarning")))
    assert seconds < 20  # where it waited for one after the other, it took 40
