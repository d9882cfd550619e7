"""Forks, event loops side by side and one after another, and the end of the interpreter at whatever moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml

from pgmonkey.embedded import _free_port, die_with_parent

from .load import wait_until

Figure = Callable[[str, str], None]
FORKS = "Forks and event loops"
ENDS = "A script that ends at any point of the pool's filling, under -W error"


def run(code: str, config: dict[str, Any], *flags: str) -> tuple[str, float]:
    """Run *code* with *config* as ``CONFIG``; return what it printed and the seconds between ``END`` and its end."""
    prelude = f"import json\nCONFIG = json.loads({json.dumps(json.dumps(config))})\n"
    finished = subprocess.run(
        [sys.executable, "-W", "error", *flags, "-c", prelude + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
    )
    ended = time.time()
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    output, said, end = finished.stdout.rpartition("END ")
    assert said, finished.stdout
    return output, ended - float(end)


FORKED = """
    import asyncio, os, sys, threading, time
    from pgmonkey import AsyncDatabase, Database
    database, async_database = Database(CONFIG), AsyncDatabase(CONFIG)
    def operate(number, pids):
        for _ in range(number):
            pids.add(database.fetch_value("SELECT pg_backend_pid()"))
    async def operate_async(number, pids):
        for _ in range(number):
            pids.add(await async_database.fetch_value("SELECT pg_backend_pid()"))
    parents = set()
    operate(5, parents)
    async def in_parent():
        await operate_async(5, parents)
        return fork()
    def fork():
        children = []
        for _ in range(4):
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                asyncio._set_running_loop(None)
                pids = set()
                operate(250, pids)
                asyncio.run(operate_async(250, pids))
                os.write(write, " ".join(map(str, pids)).encode())
                os._exit(0)
            children.append((child, read))
        return children
    children = asyncio.run(in_parent())
    operate(250, parents)
    asyncio.run(operate_async(250, parents))
    theirs = []
    for child, read in children:
        assert os.waitpid(child, 0)[1] == 0
        theirs.append(set(os.read(read, 1000).decode().split()))
    everybody = [set(map(str, parents)), *theirs]
    assert len(set().union(*everybody)) == sum(map(len, everybody)), everybody
    print("ok")
    print("END", time.time())
"""


def test_forks(config: dict[str, Any], figure: Figure) -> None:
    # Python 3.12 warns of fork() in a process with threads, such as the one that may be filling the pool still.
    output, _ = run(FORKED, config, "-W", "ignore::DeprecationWarning")
    assert output == "ok\n"
    figure(FORKS, "4 children with 500 operations and the parent: 0 errors, disjoint backends")


WORKERS = """
    import multiprocessing, sys, time
    from pgmonkey import Database
    database = Database(CONFIG)
    def work(config, number):
        mine = Database(config) if config else database
        return sum(mine.fetch_value("SELECT 1") for _ in range(number))
    if __name__ == "__main__":
        database.fetch_value("SELECT 1")
        with multiprocessing.get_context(METHOD).Pool(4) as pool:
            print(pool.starmap(work, [(CONFIG if METHOD == "spawn" else None, 50)] * 8) == [50] * 8)
        print("END", time.time())
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method: str, config: dict[str, Any], figure: Figure, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    head = f"import json\nCONFIG = json.loads({json.dumps(json.dumps(config))})\nMETHOD = {method!r}\n"
    code = head + textwrap.dedent(WORKERS)
    if method == "forkserver":
        code = code.replace('METHOD == "spawn"', "True")
    script.write_text(code)
    flags = ["-W", "error", "-W", "ignore::DeprecationWarning"]
    finished = subprocess.run([sys.executable, *flags, str(script)], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("True\n"), finished.stdout
    figure(FORKS, f"multiprocessing {method}: 0 errors")


def test_gunicorn_preload(
    config: dict[str, Any], figure: Figure, observer: psycopg.Connection[Any], tmp_path: Path
) -> None:
    app = """
        import yaml
        from flask import Flask
        from flask_pgmonkey import PGMonkey
        app = Flask(__name__)
        app.config["PGMONKEY_CONFIG"] = yaml.safe_load(open("config.yaml"))
        db = PGMonkey(app)
        with app.app_context():
            db.fetch_value("SELECT 1")  # before the fork
        @app.get("/")
        def pid():
            import os
            return {"worker": os.getpid(), "backend": db.fetch_value("SELECT pg_backend_pid()")}
    """
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "app.py").write_text(textwrap.dedent(app))
    port = _free_port()
    command = [sys.executable, "-m", "gunicorn", "--no-control-socket", "--preload", "--workers", "4", "--threads", "4"]
    process = subprocess.Popen(
        [*command, "--log-level", "error", "--bind", f"127.0.0.1:{port}", "app:app"],
        cwd=tmp_path,
        preexec_fn=die_with_parent,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Connection": "close"}) as client:
            wait_until(lambda: _answers(client), 20)
            answers = [client.get("/") for _ in range(500)]
        failed = sum(answer.status_code != 200 for answer in answers)
        pairs = {(answer.json()["backend"], answer.json()["worker"]) for answer in answers}
        assert failed == 0
        assert len(pairs) == len({backend for backend, _ in pairs})
    finally:
        process.terminate()
        process.wait(20)
    workers = len({worker for _, worker in pairs})
    figure(FORKS, f"gunicorn --preload: {failed} of 500 requests fail, {workers} workers share no backend")


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/").status_code == 200
    except httpx.TransportError:
        return False


LOOPS = """
    import asyncio, threading, time
    from pgmonkey import AsyncDatabase
    database = AsyncDatabase(CONFIG)
    async def operate():
        results = await asyncio.gather(*(database.fetch_value("SELECT 1") for _ in range(100)))
        assert sum(results) == 100
    asyncio.run(operate())
    asyncio.run(operate())
    errors = []
    def own_loop():
        mine = AsyncDatabase(CONFIG)
        async def work():
            for _ in range(5):
                assert sum(await asyncio.gather(*(mine.fetch_value("SELECT 1") for _ in range(40)))) == 40
            await mine.close()
        try:
            asyncio.run(work())
        except BaseException as error:
            errors.append(error)
    threads = [threading.Thread(target=own_loop) for _ in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not errors, errors
    print("ok")
    print("END", time.time())
"""


def test_event_loops(config: dict[str, Any], figure: Figure) -> None:
    pool = {"min_size": 2, "max_size": 4}
    output, _ = run(LOOPS, {**config, "pool_settings": pool, "async_pool_settings": pool})
    assert output == "ok\n"
    figure(FORKS, "second asyncio.run: works; 3 loops in 3 threads: 0 errors")


ENDINGS = {
    "sync": """
        import time
        from pgmonkey import Database
        Database(CONFIG).connect()
        time.sleep(MOMENT)
        print("END", time.time())
    """,
    "async": """
        import asyncio, time
        from pgmonkey import AsyncDatabase
        async def main():
            await AsyncDatabase(CONFIG).connect()
            await asyncio.sleep(MOMENT)
        asyncio.run(main())
        print("END", time.time())
    """,
    "both": """
        import asyncio, time
        from pgmonkey import AsyncDatabase, Database
        async def main():
            Database(CONFIG).connect()
            await AsyncDatabase(CONFIG).connect()
            await asyncio.sleep(MOMENT)
        asyncio.run(main())
        print("END", time.time())
    """,
    "daemon thread in mid-query": """
        import threading, time
        from pgmonkey import Database
        database = Database(CONFIG)
        def work(): database.fetch_value("SELECT pg_sleep(30)")
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.2 + MOMENT)
        print("END", time.time())
    """,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_script_ends(ending: str, config: dict[str, Any], observer: psycopg.Connection[Any], figure: Figure) -> None:
    rng = random.Random(5)
    moments = [0.0, *(rng.uniform(0, 0.08) for _ in range(9))]
    took = [run(ENDINGS[ending].replace("MOMENT", str(moment)), config)[1] for moment in moments]
    assert max(took) < 1
    figure(ENDS, f"{ending}: {max(took) * 1000:.0f} ms at most in {len(took)} runs")


def test_a_script_that_is_interrupted(
    config: dict[str, Any], observer: psycopg.Connection[Any], figure: Figure
) -> None:
    code = 'from pgmonkey import Database\nprint("go", flush=True)\nDatabase(CONFIG).fetch_value("SELECT pg_sleep(30)")'
    prelude = f"import json\nCONFIG = json.loads({json.dumps(json.dumps(config))})\n"
    process = subprocess.Popen(
        [sys.executable, "-c", prelude + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background has not
    )
    assert process.stdout is not None
    process.stdout.readline()
    query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
    wait_until(lambda: observer.execute(query).fetchone() == (1,))
    started = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    took = time.monotonic() - started
    assert b"KeyboardInterrupt" in errors
    assert took < 1
    wait_until(lambda: observer.execute(query).fetchone() == (0,), 2)
    figure(ENDS, f"Ctrl-C in mid-query: {took * 1000:.0f} ms, and the query is cancelled")
