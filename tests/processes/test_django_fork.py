"""A forked child of a Django project has connections of its own and leaves its parent's alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..django.projects import ok, run
from .test_fork import WAYS


@pytest.mark.parametrize("way", WAYS)
def test_forks_have_connections_of_their_own(way: str, project: Path) -> None:
    code = """
import ctypes, os, threading
from django.db import connection
def pid():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid() FROM pg_sleep(0.001)")
        return cursor.fetchone()[0]
stop, mine = threading.Event(), set()
def load():
    while not stop.is_set():
        mine.add(pid())
threads = [threading.Thread(target=load, daemon=True) for _ in range(THREADS)]
mine.add(pid())
[thread.start() for thread in threads]
children = []
for _ in range(4):
    read, write = os.pipe()
    child = FORK_NOW
    if child == 0:
        try:
            os.write(write, " ".join(str(pid()) for _ in range(50)).encode())
            os._exit(0)
        except BaseException:
            os._exit(1)
    os.close(write)
    children.append((child, read))
theirs = []
for child, read in children:
    pids = set(os.read(read, 65536).decode().split())
    assert os.waitpid(child, 0)[1] == 0
    theirs.append({int(each) for each in pids})
stop.set()
[thread.join() for thread in threads]
mine.add(pid())
for i, one in enumerate(theirs):
    assert one and not one & mine
    assert all(not one & other for other in theirs[i + 1:])
print("disjoint")
"""
    # A bare fork may find locks of the interpreter itself taken by another thread.
    code = code.replace("FORK_NOW", WAYS[way]).replace("THREADS", "2" if way == "os.fork" else "0")
    assert ok(run(project, code=code)) == "disjoint\n"


def test_a_fork_leaves_alone_what_the_threads_of_the_parent_do(project: Path) -> None:
    """Python ends them in the child, and what they have with them, before it tells anybody of the fork."""
    code = """
import os, signal, threading
from django.db import connection, transaction
from django_pgmonkey._pools import pools
def query(statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]
inside, forked, told = threading.Event(), threading.Event(), []
def work():
    with transaction.atomic():
        first = query("SELECT txid_current()")
        with pools._lock:
            inside.set()
            forked.wait(30)
        told.append(query("SELECT txid_current()") == first)
thread = threading.Thread(target=work)
thread.start()
assert inside.wait(30)
child = os.fork()
if child == 0:
    signal.alarm(20)
    try:
        pools.close("default")
        os._exit(query("SELECT 7"))
    except BaseException:
        os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
forked.set()
thread.join()
print(told)
"""
    assert ok(run(project, code=code)) == "[True]\n"


@pytest.mark.parametrize("way", WAYS)
def test_a_fork_in_an_atomic_block_is_an_error_in_the_child(way: str, project: Path) -> None:
    code = """
import ctypes, os
from django.db import InterfaceError, connection, transaction
def query(statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]
query("SELECT 1")  # so that a connection is held
with transaction.atomic():
    first = query("SELECT txid_current()")
    child = FORK_NOW
    if child == 0:
        try:
            query("SELECT 1")
        except InterfaceError as error:
            os._exit(7 if "is a fork of it" in str(error) else 6)
        except Exception as error:
            os.write(2, repr(error).encode())
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert query("SELECT txid_current()") == first
child = FORK_NOW
if child == 0:
    os._exit(query("SELECT 8"))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 8
print(query("SELECT 9"))
"""
    assert ok(run(project, code=code.replace("FORK_NOW", WAYS[way]))) == "9\n"
