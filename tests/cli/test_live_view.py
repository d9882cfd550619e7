"""`live_view`: the pools of all worker processes, by ``pgmonkey top``, on a page and by the commands."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psycopg
import pytest
import yaml

from pgmonkey import telemetry
from pgmonkey._telemetry.page import as_page
from pgmonkey._telemetry.sockets import FOLDER, Server, ask_all
from pgmonkey._telemetry.view import as_text, views
from pgmonkey.cli import main

from ..contract.conftest import free_port

T = TypeVar("T")

APP = """
import os, threading
from flask import Flask, abort, request
from flask_pgmonkey import PGMonkey

app = Flask(__name__)
app.config["PGMONKEY_CONFIG"] = os.environ["CONFIG_FILE"]
db = PGMonkey(app)

def known():
    if request.headers.get("Authorization") != "Bearer secret":
        abort(401)

app.register_blueprint(db.live_blueprint(known))

@app.get("/leak/<int:number>")
def leak(number):
    db.fetch_value("SELECT 1")
    db.fetch_value("SELECT pg_advisory_xact_lock_shared(1)")
    return {"pid": os.getpid()}

@app.get("/quick")
def quick():
    db.fetch_value("SELECT pg_sleep(0.02)")
    return {}

@app.get("/slow")
def slow():
    db.fetch_value("SELECT pg_sleep(%s), 'hunter2'", (0.3,))
    return {"pid": os.getpid()}

@app.get("/wrong")
def wrong():
    db.fetch_value("SELECT nothing FROM nowhere")
"""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the sockets: their paths must be short."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pgm-") as made:
        monkeypatch.setenv(FOLDER, made)
        yield Path(made)


@pytest.fixture
def shown(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose pool can be looked at."""
    connect = {**config["connection_settings"], "live_view": True}
    pool = {"name": "shop", "min_size": 1, "max_size": 16, "timeout": 30}
    return {"connection_settings": connect, "pool_settings": pool, "async_pool_settings": pool}


@pytest.fixture
def workers(shown: dict[str, Any], folder: Path, tmp_path: Path) -> Iterator[httpx.Client]:
    """Four workers of gunicorn."""
    (tmp_path / "shown.py").write_text(APP)
    (tmp_path / "shown.yaml").write_text(yaml.safe_dump(shown))
    port = free_port()
    command = ["-m", "gunicorn", "--no-control-socket", f"--bind=127.0.0.1:{port}", "--workers=4", "--threads=16"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, *command, "--worker-class=gthread", "--preload", "shown:app"],
            cwd=tmp_path,
            env={**os.environ, "CONFIG_FILE": str(tmp_path / "shown.yaml")},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

            def answers() -> bool:
                assert process.poll() is None, (tmp_path / "log").read_text()
                with suppress(httpx.TransportError):
                    return client.get("/pgmonkey/").status_code == 401
                return False

            until(answers)
            yield client
    finally:
        process.terminate()
        process.wait(60)


def until(look: Callable[[], T | None]) -> T:
    """Return what *look* returns as soon as that is true."""
    for _ in range(600):
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come about")


def test_four_workers_of_gunicorn(
    workers: httpx.Client,
    observer: psycopg.Connection[Any],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def get(path: str) -> int:
        return httpx.get(f"{workers.base_url}{path}", timeout=60).status_code

    backends = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

    def seen() -> telemetry.PoolView:
        (view,) = until(lambda: telemetry.look({"pool 'shop'"}))  # a busy worker answers too late
        return view

    def agreed() -> telemetry.PoolView | None:
        (before,) = observer.execute(backends).fetchone() or (0,)
        view = seen()
        (behind,) = observer.execute(backends).fetchone() or (0,)
        return view if before == behind == view.size else None

    with ThreadPoolExecutor(16) as threads:
        for _ in range(20):  # until each worker was given one
            assert set(threads.map(get, ["/quick"] * 16)) == {200}
            if len(until(telemetry.look)[0].processes) == 4:
                break
        observer.execute("SELECT pg_advisory_lock(1)")
        held = [threads.submit(get, f"/leak/{number}") for number in range(12)]
        until(lambda: seen().used == 12)
        view = until(agreed)
        assert 2 <= len(view.processes) <= 4
        assert sum(own["pool_size"] for own in view.processes.values()) == view.size
        assert view.stats["pool_max"] == 16 * len(view.processes)
        assert view.held[0].where.startswith("for GET /leak/<int:number>, at shown.py:")
        assert len(view.waits) >= 12

        page = workers.get("/pgmonkey/", headers={"Authorization": "Bearer secret"})
        assert page.status_code == 200
        assert f"<dt>in use</dt><dd>{view.used}</dd>" in page.text
        assert f"<dt>connections</dt><dd>{view.size} of {view.stats['pool_max']}</dd>" in page.text
        assert "for GET /leak/&lt;int:number&gt;, at shown.py:" in page.text

        assert main(["top", "--once", "--pool", "shop"]) == 0
        told = capsys.readouterr().out
        assert re.search(rf"connections {view.size} of {view.stats['pool_max']} +in use 12 ", told), told
        assert re.search(r"for GET /leak/<int:number>, at shown\.py:\d+ \(leak\)", told), told

        command = [sys.executable, "-m", "flask", "--app", "shown", "pgmonkey", "stats"]
        environ = {**os.environ, "CONFIG_FILE": str(tmp_path / "shown.yaml")}
        stats = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True).stdout
        assert "the processes that run (" in stats
        assert re.search(rf"pool_size +{view.size}\n", stats), stats

        observer.execute("SELECT pg_advisory_unlock(1)")
        assert {one.result() for one in held} == {200}

    assert [get(path) for path in ("/slow", "/wrong")] == [200, 500]
    until(lambda: seen().errors)
    view = seen()
    (slow,) = [one for one in view.slow if one.statement == "SELECT pg_sleep(%s), ?"]
    assert re.match(r"for GET /slow, at shown\.py:\d+ \(slow\)", slow.where)
    assert view.errors[0].what == "UndefinedTable (42P01)"
    assert re.match(r"for GET /wrong, at shown\.py:\d+ \(wrong\)", view.errors[0].where)

    # A worker that dies leaves its socket, which whoever looks next removes.
    dead, counted = next(iter(view.processes)), len(view.processes)
    (left,) = folder.glob(f"{dead}-*")
    os.kill(dead, signal.SIGKILL)
    until(lambda: dead not in seen().processes)
    until(lambda: telemetry.look() and not left.exists())
    assert len(seen().processes) <= counted


FASTAPI = """
import asyncio, httpx
from fastapi import FastAPI, Header, HTTPException
from fastapi_pgmonkey import PGMonkey, RequestConnection

def known(authorization: str = Header("")):
    if authorization != "Bearer secret":
        raise HTTPException(401)

db = PGMonkey("shown.yaml")
app = FastAPI()
db.init_app(app)
app.include_router(db.live_router(known))

@app.get("/held/{number}")
async def held(number: int, connection: RequestConnection):
    await connection.execute("SELECT 1")
    await connection.execute("SELECT pg_sleep(0.2)")
    for _ in range(30):  # on a busy machine, no answer may come in time
        page = (await client.get("/pgmonkey", headers={"Authorization": "Bearer secret"})).text
        if "<dt>in use</dt><dd>1</dd>" in page:
            break
    return page

async def look():
    global client
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=60)
    async with app.router.lifespan_context(app), client:
        print((await client.get("/pgmonkey")).status_code)
        print((await client.get("/held/1")).json())

asyncio.run(look())
"""
DJANGO = """
import os, sys
import django
from django.conf import settings
settings.configure(
    ALLOWED_HOSTS=["*"], ROOT_URLCONF="__main__", SECRET_KEY="x", USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django_pgmonkey", "OPTIONS": {"config": "shown.yaml"}}},
    INSTALLED_APPS=["django_pgmonkey"], MIDDLEWARE=["django_pgmonkey.middleware.TransactionMiddleware"],
)
django.setup()
from django.db import connection
from django.http import HttpResponse, HttpResponseForbidden
from django.test import Client
from django.urls import path
from django_pgmonkey import live

def known(view):
    def checked(request):
        secret = request.headers.get("Authorization") == "Bearer secret"
        return view(request) if secret else HttpResponseForbidden()
    return checked

def held(request, number):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.2)")
    for _ in range(30):  # on a busy machine, no answer may come in time
        page = Client().get("/pgmonkey/", headers={"Authorization": "Bearer secret"}).content
        if b"<dt>in use</dt><dd>1</dd>" in page:
            break
    return HttpResponse(page)

urlpatterns = [path("pgmonkey/", live.page(known)), path("held/<int:number>", held)]
print(Client().get("/pgmonkey/").status_code)
print(Client().get("/held/1").content.decode())
"""


@pytest.mark.parametrize(
    ("program", "refused", "route"),
    [(FASTAPI, "401", "GET /held/{number}"), (DJANGO, "403", "GET held/&lt;int:number&gt;")],
    ids=["fastapi", "django"],
)
def test_the_page(program: str, refused: str, route: str, shown: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "shown.yaml").write_text(yaml.safe_dump(shown))
    (tmp_path / "looks.py").write_text(program)
    command = [sys.executable, "looks.py"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert finished.returncode == 0, finished.stderr
    status, _, page = finished.stdout.partition("\n")
    assert status == refused
    assert "<dt>in use</dt><dd>1</dd>" in page
    assert f"for {route}, " in page
    assert "looks.py:" in page
    assert "SELECT pg_sleep(?)" in page


def test_the_sockets_are_private(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = folder / "own"
    monkeypatch.setenv(FOLDER, str(own))
    server = Server(lambda: {"pid": 1, "pools": []})
    assert server.start()
    assert server.start()
    assert stat.S_IMODE(own.lstat().st_mode) == 0o700
    (file,) = own.iterdir()
    assert stat.S_ISSOCK(file.lstat().st_mode)
    assert stat.S_IMODE(file.lstat().st_mode) == 0o600
    (own / "left.sock").symlink_to(folder / "elsewhere")
    (folder / "elsewhere").write_text("kept")
    assert until(ask_all) == [{"pid": 1, "pools": []}]
    assert list(own.iterdir()) == [file]
    assert (folder / "elsewhere").read_text() == "kept"


@pytest.mark.parametrize("wrong", ["a link", "open to others", "a file"])
def test_a_folder_of_somebody_else_is_refused(
    wrong: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    private, given = folder / "private", folder / "given"
    private.mkdir(mode=0o700)
    if wrong == "a link":
        given.symlink_to(private)
    elif wrong == "a file":
        given.write_text("")
    else:
        given.mkdir()
        given.chmod(0o755)
    monkeypatch.setenv(FOLDER, str(given))
    assert not Server(dict).start()
    assert "will not see this process" in caplog.text
    with pytest.raises(PermissionError, match="no folder that only this user can enter"):
        ask_all()
    assert not list(private.iterdir())


def test_who_does_not_answer_is_left_out(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as dead:
        silent.bind(str(folder / "1-silent.sock"))
        silent.listen()
        dead.bind(str(folder / "2-dead.sock"))
        server = Server(lambda: {"pid": 3, "pools": []})
        assert server.start()
        assert until(ask_all) == [{"pid": 3, "pools": []}]
    assert (folder / "1-silent.sock").exists()
    assert not (folder / "2-dead.sock").exists()


WITHOUT_DESCRIPTORS = """
import os, resource, socket, time
from pgmonkey._telemetry.sockets import Server, ask_all, folder
socket.setdefaulttimeout(SECONDS)
server = Server(lambda: {"pid": 3, "pools": []})
assert server.start()
time.sleep(0.5)
(name,) = os.listdir(folder())
asking = socket.socket(socket.AF_UNIX)
asking.settimeout(None)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
asking.connect(os.path.join(folder(), name))  # for which it has a descriptor already
time.sleep(0.5)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
for _ in range(60):
    if found := ask_all():
        break
print(found)
"""


@pytest.mark.parametrize("seconds", ["0.2", "None"])
def test_it_answers_after_a_default_timeout_and_a_lack_of_descriptors(seconds: str, folder: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_DESCRIPTORS.replace("SECONDS", seconds)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert finished.stdout == "[{'pid': 3, 'pools': []}]\n", finished.stderr


FORKED = """
import os, sys, time
from pgmonkey._telemetry.sockets import Server
server = Server(lambda: {"pid": os.getpid(), "pools": []})
assert server.start()
if os.fork():
    os._exit(0)
time.sleep(60)
"""


def test_a_forked_child_does_not_keep_the_socket_of_its_parent(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", FORKED], start_new_session=True) as parent:
        try:
            parent.wait(60)
            assert len(list(folder.iterdir())) == 1
            until(lambda: not ask_all() and not list(folder.iterdir()))
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def test_processes_are_added_up() -> None:
    def answer(pid: int, seconds: float, waits: list[float]) -> dict[str, Any]:
        told = {"at": time.time(), "statement": "SELECT 1", "route": None, "place": "a.py:1 (f)", "seconds": seconds}
        stats = {"pool_size": 3, "pool_available": 1, "pool_max": 5, "requests_waiting": 2}
        pool = {"name": "p", "server": "", "stats": stats, "waits": waits, "held": [(seconds, "at b.py:2 (g)")]}
        return {"pid": pid, "pools": [{**pool, "slow": [told], "errors": [], "last_error": None}]}

    numbers = [number / 1000 for number in range(100)]
    (view,) = views([answer(1, 0.5, numbers[50:]), answer(2, 2.0, numbers[:50])])
    assert (view.size, view.used, view.stats["requests_waiting"], view.stats["pool_max"]) == (6, 4, 4, 10)
    assert [view.wait(share) for share in (0.5, 0.95, 0.99)] == [0.05, 0.095, 0.099]
    assert [(told.pid, told.seconds) for told in view.slow] == [(2, 2.0)]
    assert [held.pid for held in view.held] == [2, 1]
    assert view.held[0].where == "at b.py:2 (g)"


def test_nothing_of_a_program_reaches_the_terminal_or_the_page_as_code() -> None:
    name = "pool '<b>\x1b[2J'"
    told = {"at": time.time(), "statement": 'SELECT "<script>\x1b"', "route": "GET /\n<i>", "place": "a.py:1 (f)"}
    stats = {"pool_size": 1, "pool_available": 1, "pool_max": 1, "requests_waiting": 0}
    pool: dict[str, Any] = {"name": name, "server": "h:1/d", "stats": stats, "waits": [], "held": [(1.0, "at \x1b")]}
    pool |= {"slow": [{"seconds": 1, **told}], "last_error": "no\nserver", "errors": [{"what": "E", **told}]}
    found = views([{"pid": 1, "pools": [pool]}])
    assert all(line.isprintable() for line in as_text(found))
    assert not {"\x1b", "<b>", "<i>", "<script>"} & set(re.findall(r"\x1b|<\w+>", as_page(found)))
