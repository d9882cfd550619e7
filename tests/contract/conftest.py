"""Each framework's contract application behind a real HTTP server, over a database of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml
from psycopg import sql

from pgmonkey.embedded import Server, die_with_parent

from ..faults.proxy import FaultProxy

APPS = Path(__file__).parent / "apps"
FRAMEWORKS = ("flask", "fastapi", "django")
UVICORN = ["uvicorn", "--log-level", "warning", "--host", "127.0.0.1", "--port", "PORT", "fastapi_app:app", "--loop"]
GUNICORN = ["gunicorn", "--no-control-socket", "--bind", "127.0.0.1:PORT"]
GTHREAD = [*GUNICORN, "--worker-class", "gthread", "--threads", "64"]
# Each server by the framework and what is particular to it; the plain names serve in one process with many threads.
SERVERS = {
    "flask": [*GTHREAD, "flask_app:app"],
    "fastapi": [*UVICORN, "asyncio"],
    "django": [*GTHREAD, "django_app:application"],
    "flask-sync": [*GUNICORN, "--workers", "4", "flask_app:app"],
    "flask-gthread": [*GTHREAD, "--workers", "2", "--preload", "flask_app:app"],
    "fastapi-uvloop": [*UVICORN, "uvloop"],
    "fastapi-hypercorn": ["hypercorn", "--log-level", "warning", "--bind", "127.0.0.1:PORT", "fastapi_app:app"],
}
# Those that tests start a server of their own for.
STARTED = tuple(SERVERS) if os.environ.get("PGMONKEY_EVERY_SERVER") else FRAMEWORKS
POOL = {"min_size": 1, "max_size": 24, "timeout": 10}
SCHEMA = """
    CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE sleepy (a float8);
    CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_sleep(NEW.a); RETURN NEW; END $$;
    CREATE TRIGGER sleep BEFORE INSERT ON sleepy FOR EACH ROW EXECUTE FUNCTION sleep();
    CREATE TABLE late (a int);
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'refused at COMMIT' USING ERRCODE = '40001'; END $$;
    CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION refuse();
    CREATE TABLE doomed (a int);
    CREATE FUNCTION doom() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER doom AFTER INSERT ON doomed DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION doom();
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Started:
    """A server that was started with one of the contract applications, and may be up soon."""

    def __init__(self, name: str, folder: Path, config: dict[str, Any], **environ: str) -> None:
        self.name = name
        self.port = free_port()
        self.log = folder / "log"
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", *(argument.replace("PORT", str(self.port)) for argument in SERVERS[name])]
        environ = {**os.environ, "CONTRACT_CONFIG": str(folder / "config.yaml"), "PYTHONPATH": str(APPS), **environ}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, env=environ, cwd=folder, stdout=log, stderr=subprocess.STDOUT, preexec_fn=die_with_parent
            )

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        """Wait until the server answers, and give a client of it; stop it afterwards."""
        # uvicorn ends a connection after an unhandled exception, which a client that keeps it may not see yet.
        headers = {"Connection": "close"}
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30, headers=headers) as client:
                self._wait(client)
                yield client
        finally:
            self.process.terminate()
            self.process.wait(20)

    def _wait(self, client: httpx.Client) -> None:
        deadline = time.monotonic() + 120
        while True:
            try:
                client.get("/nothing")
                return
            except httpx.TransportError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)


class App:
    """A running application: its client, and a connection that sees what it did."""

    def __init__(self, started: Started, client: httpx.Client, observer: psycopg.Connection[Any]) -> None:
        self.name = started.name
        self.framework = started.name.partition("-")[0]
        self.several = "--workers" in SERVERS[started.name]
        """Whether it is several processes, each with pools of its own."""
        self.port = started.port
        self.process = started.process
        self.log = started.log
        self.client = client
        self.observer = observer
        self.proxy: FaultProxy | None = None
        """What stands between the application and the server, for those that have it."""

    def get(self, path: str, **params: Any) -> httpx.Response:
        return self.client.get(path, params=params)

    def post(self, path: str, json: Any = None, **params: Any) -> httpx.Response:
        return self.client.post(path, params=params, json=json)

    def rows(self) -> list[int]:
        return [row[0] for row in self.observer.execute("SELECT a FROM t ORDER BY a").fetchall()]

    def stats(self) -> dict[str, int]:
        stats: dict[str, int] = self.get("/stats").json()
        return stats

    def wait_until_all_is_given_back(self) -> None:
        """Wait until the pool has all its connections: Django gives back when the client has its answer already."""
        deadline = time.monotonic() + 5
        while (stats := self.stats())["pool_available"] != stats["pool_size"]:
            assert time.monotonic() < deadline, stats
            time.sleep(0.01)

    def release_frame(self) -> None:
        """Wait until no backend of the application is in a transaction or at work."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND state <> 'idle'"
        )
        deadline = time.monotonic() + 5
        while (row := self.observer.execute(query).fetchone()) != (0,):
            assert time.monotonic() < deadline, row
            time.sleep(0.01)


@contextmanager
def running(
    name: str, server: Server, dbname: str, pool: dict[str, Any], proxy: FaultProxy | None = None, **environ: str
) -> Iterator[App]:
    """Serve a contract application by the server *name* over a new database *dbname*, by way of *proxy*."""
    server.create_database(dbname)
    config = {**server.config(dbname), "pool_settings": dict(pool), "async_pool_settings": dict(pool)}
    if proxy is not None:
        config["connection_settings"] |= {"host": "127.0.0.1", "port": proxy.port}
    with psycopg.connect(server.dsn(dbname), autocommit=True) as observer:
        observer.execute(SCHEMA)
        with tempfile.TemporaryDirectory(prefix="contract-") as folder:
            started = Started(name, Path(folder), config, **environ)
            with started.client() as client:
                app = App(started, client, observer)
                app.proxy = proxy
                yield app
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(dbname)))


def _serve(name: str, server: Server) -> Iterator[App]:
    with running(name, server, f"contract_{name.replace('-', '_')}_{os.getpid()}", POOL) as app:
        yield app


def _fresh(app: App) -> App:
    app.release_frame()
    app.observer.execute("TRUNCATE t, late, doomed")
    return app


@pytest.fixture(scope="session", params=FRAMEWORKS)
def served(request: pytest.FixtureRequest, server: Server) -> Iterator[App]:
    yield from _serve(request.param, server)


@pytest.fixture
def app(served: App) -> App:
    """The application of each framework in turn, with empty tables."""
    return _fresh(served)


@pytest.fixture(scope="session", params=[name for name in SERVERS if name not in FRAMEWORKS])
def served_otherwise(request: pytest.FixtureRequest, server: Server) -> Iterator[App]:
    yield from _serve(request.param, server)


@pytest.fixture
def app_elsewhere(served_otherwise: App) -> App:
    """The applications on other servers, with several processes and on other event loops."""
    return _fresh(served_otherwise)


@pytest.fixture(scope="session", params=STARTED)
def small_app(request: pytest.FixtureRequest, server: Server) -> Iterator[App]:
    """The applications behind a proxy, with a pool of two in each process that may be waited for one second."""
    pool = {"min_size": 1, "max_size": 2, "timeout": 1}
    with (
        FaultProxy(server.host, server.port) as proxy,
        running(request.param, server, f"small_{request.param.replace('-', '_')}_{os.getpid()}", pool, proxy) as app,
    ):
        yield app
