"""Each framework's contract application behind a real HTTP server, over a database of its own."""

from __future__ import annotations

import os
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

APPS = Path(__file__).parent / "apps"
FRAMEWORKS = ("flask", "fastapi", "django")
POOL = {"min_size": 1, "max_size": 24, "timeout": 10}
SCHEMA = """
    CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE late (a int);
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'refused at COMMIT' USING ERRCODE = '40001'; END $$;
    CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION refuse();
"""


class App:
    """A running application: its client, and a connection that sees what it did."""

    def __init__(self, framework: str, client: httpx.Client, observer: psycopg.Connection[Any]) -> None:
        self.framework = framework
        self.client = client
        self.observer = observer

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

    def settle(self) -> None:
        """Wait until no backend of the application is in a transaction or at work."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND state <> 'idle'"
        )
        deadline = time.monotonic() + 5
        while (row := self.observer.execute(query).fetchone()) != (0,):
            assert time.monotonic() < deadline, row
            time.sleep(0.01)


def command(framework: str, port: int) -> list[str]:
    bind = f"127.0.0.1:{port}"
    if framework == "fastapi":
        uvicorn = [sys.executable, "-m", "uvicorn", "--log-level", "warning", "--host", "127.0.0.1"]
        return [*uvicorn, "--port", str(port), "fastapi_app:app"]
    gunicorn = [sys.executable, "-m", "gunicorn", "--worker-class", "gthread", "--threads", "24"]
    gunicorn += ["--no-control-socket", "--bind", bind]
    return [*gunicorn, f"{framework}_app:{'app' if framework == 'flask' else 'application'}"]


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(framework: str, server: Server, dbname: str, pool: dict[str, Any]) -> Iterator[App]:
    """Serve the contract application of *framework* over the database *dbname*."""
    server.create_database(dbname)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="contract-") as folder:
        config = Path(folder) / "config.yaml"
        sections = {"pool_settings": dict(pool), "async_pool_settings": dict(pool)}
        config.write_text(yaml.safe_dump({**server.config(dbname), **sections}))
        with psycopg.connect(server.dsn(dbname), autocommit=True) as observer:
            observer.execute(SCHEMA)
            environ = {**os.environ, "CONTRACT_CONFIG": str(config), "PYTHONPATH": str(APPS)}
            log = Path(folder) / "log"
            with open(log, "wb") as output:
                process = subprocess.Popen(
                    command(framework, port),
                    env=environ,
                    cwd=folder,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    preexec_fn=die_with_parent,
                )
            try:
                # uvicorn ends a connection after an unhandled exception, which a client that keeps it may not see yet.
                limits = httpx.Limits(max_keepalive_connections=0)
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, limits=limits) as client:
                    wait_until_served(client, process, log)
                    yield App(framework, client, observer)
            finally:
                process.terminate()
                process.wait(20)
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(dbname)))


def wait_until_served(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            client.get("/nothing")
            return
        except httpx.TransportError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)


@pytest.fixture(scope="session", params=FRAMEWORKS)
def served(request: pytest.FixtureRequest, server: Server) -> Iterator[App]:
    with running(request.param, server, f"contract_{request.param}_{os.getpid()}", POOL) as app:
        yield app


@pytest.fixture
def app(served: App) -> App:
    """The application of each framework in turn, with empty tables."""
    served.settle()
    served.observer.execute("TRUNCATE t, late")
    return served


@pytest.fixture(params=FRAMEWORKS)
def small_app(request: pytest.FixtureRequest, server: Server) -> Iterator[App]:
    """The same with a pool of two that may be waited for half a second."""
    pool = {"min_size": 1, "max_size": 2, "timeout": 0.5}
    with running(request.param, server, f"small_{request.param}_{os.getpid()}", pool) as app:
        yield app
