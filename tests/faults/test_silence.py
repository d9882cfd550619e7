"""A server that is frozen, and a network that swallows what is sent: nothing says that anything is wrong."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from pgmonkey import AsyncDatabase, CommandTimeoutError, CommitUnknownError, Database

from ..conftest import ON_CI
from .clusters import Cluster
from .load import wait_until
from .proxy import FaultProxy

Figure = Callable[[str, str], None]
ROW = "A frozen server (SIGSTOP), a silent network; deadlines of 2 s"
DEADLINE = 2.0


@pytest.fixture(params=["frozen server", "silent network"])
def silence(request: pytest.FixtureRequest, cluster: Cluster, proxy: FaultProxy) -> Any:
    """A context manager during which nobody answers."""

    @contextmanager
    def frozen() -> Iterator[str]:
        cluster.signal_all(signal.SIGSTOP)
        try:
            yield request.param
        finally:
            cluster.signal_all(signal.SIGCONT)

    @contextmanager
    def silent() -> Iterator[str]:
        proxy.silent = True
        try:
            yield request.param
        finally:
            proxy.silent = False
            proxy.reset_all()

    return frozen if request.param == "frozen server" else silent


def impatient(config: dict[str, Any]) -> dict[str, Any]:
    settings = {**config["connection_settings"], "command_timeout": DEADLINE}
    pool = {"min_size": 1, "max_size": 3, "timeout": DEADLINE}
    return {"connection_settings": settings, "pool_settings": dict(pool), "async_pool_settings": dict(pool)}


def test_threads(silence: Any, proxied: dict[str, Any], figure: Figure) -> None:
    database = Database(impatient(proxied))
    database.fetch_value("SELECT 1")
    took: dict[str, float] = {}
    with silence() as name:
        with timed(took, "query"), pytest.raises(CommandTimeoutError):
            database.fetch_value("SELECT 1")
        with timed(took, "borrow"), pytest.raises(psycopg.OperationalError):
            database.fetch_value("SELECT 1")
        with timed(took, "borrow"), pytest.raises(psycopg.OperationalError):
            database.connection(timeout=DEADLINE).__enter__()
    assert max(took.values()) < DEADLINE + 1
    took["recovery"] = wait_until(lambda: _works(database), 5)
    figure(ROW, f"{name}, sync: " + ", ".join(f"{what} {seconds:.1f} s" for what, seconds in took.items()))


def test_a_block_that_is_left_in_silence(silence: Any, proxied: dict[str, Any], figure: Figure) -> None:
    database = Database(impatient(proxied))
    database.fetch_value("SELECT 1")
    took: dict[str, float] = {}
    connections = database.connection()
    connection = connections.__enter__()
    connection.execute("INSERT INTO t VALUES (1)")
    with silence() as name, timed(took, "commit"), pytest.raises(CommitUnknownError) as caught:
        connections.__exit__(None, None, None)
    assert isinstance(caught.value.__cause__, CommandTimeoutError)
    assert max(took.values()) < DEADLINE + 1
    figure(ROW, f"{name}, sync: commit {took['commit']:.1f} s")
    wait_until(lambda: _works(database), 5)


async def test_tasks(silence: Any, proxied: dict[str, Any], figure: Figure) -> None:
    database = AsyncDatabase(impatient(proxied))
    await database.fetch_value("SELECT 1")
    took: dict[str, float] = {}
    with silence() as name:
        with timed(took, "query"), pytest.raises(CommandTimeoutError):
            await database.fetch_value("SELECT 1")
        with timed(took, "borrow"), pytest.raises(psycopg.OperationalError):
            await database.fetch_value("SELECT 1")
    assert max(took.values()) < DEADLINE + 1
    deadline = time.monotonic() + 5
    while True:
        try:
            await database.fetch_value("SELECT 1")
            break
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
    await database.close()
    figure(ROW, f"{name}, async: " + ", ".join(f"{what} {seconds:.1f} s" for what, seconds in took.items()))


@pytest.mark.parametrize("where", ["statement", "block", "borrow"])
async def test_asyncio_timeouts(where: str, silence: Any, proxied: dict[str, Any], figure: Figure) -> None:
    # No deadline of ours: asyncio's alone.
    database = AsyncDatabase(proxied)
    await database.fetch_value("SELECT 1")
    took: dict[str, float] = {}

    entered = asyncio.Event()
    silent = asyncio.Event()

    async def statement() -> None:
        entered.set()
        await silent.wait()
        await database.fetch_value("SELECT 1")

    async def block() -> None:
        async with database.transaction() as connection:
            await connection.execute("SELECT 1")
            entered.set()
            await asyncio.sleep(60)

    async def borrow() -> None:
        entered.set()
        await silent.wait()
        await asyncio.gather(*(database.fetch_value("SELECT 1") for _ in range(20)))

    task = asyncio.create_task({"statement": statement, "block": block, "borrow": borrow}[where]())
    await entered.wait()
    with silence() as name, timed(took, where), pytest.raises(asyncio.TimeoutError):
        silent.set()
        await asyncio.wait_for(task, DEADLINE)
    assert took[where] < DEADLINE + 1
    deadline = time.monotonic() + 5
    while (stats := database.stats())["pool_size"] != stats["pool_available"]:
        assert time.monotonic() < deadline, stats
        await asyncio.sleep(0.02)
    await database.close()
    figure(ROW, f"{name}, asyncio timeout around a {where}: {took[where]:.1f} s")


@contextmanager
def timed(took: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    took[name] = max(took.get(name, 0.0), time.monotonic() - started)


def _works(database: Database[Any]) -> bool:
    try:
        return bool(database.fetch_value("SELECT 1"))
    except psycopg.OperationalError:
        return False


def _ip(*arguments: str) -> bool:
    return subprocess.run(arguments, capture_output=True).returncode == 0


@pytest.fixture
def link() -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of this side of a link to another network namespace, and a function that has it drop packets."""
    made = shutil.which("ip") and shutil.which("iptables") and _ip("ip", "netns", "add", "pgfaults")
    if not made and not ON_CI:
        pytest.skip("network namespaces need root, iproute2 and iptables")
    try:
        assert _ip("ip", "link", "add", "pgfaults0", "type", "veth", "peer", "name", "eth0", "netns", "pgfaults")
        assert _ip("ip", "addr", "add", "10.99.7.1/24", "dev", "pgfaults0")
        assert _ip("ip", "link", "set", "pgfaults0", "up")
        inside = ("ip", "netns", "exec", "pgfaults")
        assert _ip("ip", "-n", "pgfaults", "addr", "add", "10.99.7.2/24", "dev", "eth0")
        assert _ip("ip", "-n", "pgfaults", "link", "set", "eth0", "up")
        assert _ip("ip", "-n", "pgfaults", "link", "set", "lo", "up")
        yield "10.99.7.1", lambda: _drop(inside)
    finally:
        _ip("ip", "link", "del", "pgfaults0")
        _ip("ip", "netns", "del", "pgfaults")


def _drop(inside: tuple[str, ...]) -> None:
    assert _ip(*inside, "iptables", "-I", "INPUT", "-j", "DROP")
    assert _ip(*inside, "iptables", "-I", "OUTPUT", "-j", "DROP")


SCRIPT = """
import json, sys, time
import psycopg
from pgmonkey import Database
database = Database(json.loads(sys.argv[1]))
database.fetch_value("SELECT 1")
print("connected", flush=True)
sys.stdin.readline()
started = time.monotonic()
try:
    database.fetch_value("SELECT 1")
except psycopg.OperationalError as error:
    print(time.monotonic() - started, error)
"""


def test_a_link_that_drops_packets(
    link: tuple[str, Callable[[], None]], config: dict[str, Any], figure: Figure
) -> None:
    """Without any deadline of ours, tcp_user_timeout ends the wait."""
    address, drop = link
    with Cluster(settings={"listen_addresses": "127.0.0.1,10.99.7.1"}) as server:
        with (server.data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.99.7.0/24 scram-sha-256\n")
        server.execute("SELECT pg_reload_conf()")
        settings = {**server.config()["connection_settings"], "host": address, "tcp_user_timeout": 3000}
        configuration = json.dumps({"connection_settings": settings, "pool_settings": {"min_size": 1}})
        process = subprocess.Popen(
            ["ip", "netns", "exec", "pgfaults", sys.executable, "-c", SCRIPT, configuration],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "connected\n"
        drop()
        output, _ = process.communicate("go\n", timeout=30)
    took, _, reason = output.partition(" ")
    assert 2 < float(took) < 6, output
    figure("A link that drops packets, no deadline, tcp_user_timeout 3 s", f"{float(took):.1f} s: {reason.strip()}")
