"""A real PostgreSQL for every test: one server a run, one database a test."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from hypothesis import settings
from psycopg import sql

import pgmonkey
from pgmonkey.embedded import Server

from .django import projects

ROOT = Path(__file__).resolve().parent.parent
ON_CI = bool(os.environ.get("CI"))
# libpq's words for a port that nobody listens on. The others are those of a busy machine: psycopg polls before the
# kernel has heard of the refusal, and libpq takes the connection for made and then for ended.
REFUSED = "Connection refused|server closed the connection unexpectedly"
# Every test runs on the newest Python, and on the oldest one with the oldest dependencies.  On those between run the
# folders and files in which the interpreter itself is what can differ: what reads frames or garbage, or is interrupted
# at its bytecodes (their number and order); how threads wait, tasks are cancelled, loops and processes end; what calls
# cost.  SQL, rows, plans, configurations, commands and frameworks depend on it no more than is tested at both ends.
ON_EVERY_PYTHON = {
    *("cancellation", "pool", "processes"),
    *("test_cost.py", "test_ends.py", "test_event_loop.py", "test_leaks.py", "test_manager.py", "test_open_blocks.py"),
    "test_upkeep.py",
}
_SERVERS = "(?:flask|fastapi|django)(?:-sync|-gthread|-uvloop|-hypercorn)?"
# How programs are drawn: the same in each run, so that a change is not refused for another's fault; or new ones.
settings.register_profile("same", derandomize=True)
settings.register_profile("new", derandomize=False)
_numbers = itertools.count(1)
_server: Server | None = None


class GivenServer(Server):
    """The server that PGMONKEY_TEST_DSN names; it is neither started nor stopped."""

    def start(self) -> None:
        with psycopg.connect(os.environ["PGMONKEY_TEST_DSN"]) as connection:
            info = connection.info
            self.host, self.port, self.user, self.password = info.host, info.port, info.user, info.password
            self.version = info.parameter_status("server_version") or ""

    def stop(self) -> None:
        """Leave it running."""


def hash_password_once(server: Server) -> None:
    """Have logins hash the password once, not 4096 times: the tests make ten thousand connections, at 4 ms each."""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", server.password.encode(), salt, iterations := 1)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    key = hmac.digest(salted, b"Server Key", "sha256")
    salt, stored, key = (base64.b64encode(each) for each in (salt, stored, key))
    secret = f"SCRAM-SHA-256${iterations}:{salt.decode()}${stored.decode()}:{key.decode()}"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER ROLE CURRENT_USER PASSWORD {}").format(secret))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-python", action="store_true", help="leave out what need not run on every Python")
    parser.addoption("--browser", action="store_true", help="collect the tests that look at the shops in a browser too")
    parser.addoption("--ecosystem", action="store_true", help="collect the tests with other people's packages too")
    parser.addoption("--sandbox", action="store_true", help="collect the large suites in sandboxes too")
    parser.addoption("--telemetry", action="store_true", help="collect the tests with tracers and exporters too")
    parser.addoption("--tutorials", action="store_true", help="collect the tests that follow the tutorials too")
    faults = parser.getgroup("faults")
    faults.addoption("--faults", action="store_true", help="collect the fault suite too, which takes its time")
    faults.addoption("--short", action="store_true", help="keep the outages, the failovers and the soak short")
    faults.addoption("--write-figures", action="store_true", help="write the figures into docs/reliability.md")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the suites that are to be asked for, and with ``--every-python`` what need not run on each."""
    name, folder = collection_path.name, collection_path.parent
    if collection_path == ROOT / "tests" / "sandbox" / "project":
        return True  # which is run by a pytest of its own
    if folder == ROOT / "tests" and name in ("browser", "ecosystem", "faults", "sandbox", "telemetry"):
        return None if config.getoption(f"--{name}") else True
    if name == "test_tutorials.py":
        return None if config.getoption("--tutorials") else True
    if config.getoption("--every-python") and name.startswith("test_"):
        return None if ON_EVERY_PYTHON & {name, folder.name} else True
    return None


def pytest_configure(config: pytest.Config) -> None:
    global _server
    if os.environ.get("PGMONKEY_TEST_INSTALLED") and Path(pgmonkey.__file__).is_relative_to(ROOT / "pgmonkey"):
        raise pytest.UsageError(f"the source tree is tested instead of the wheel: {pgmonkey.__file__}")
    # With xdist, the controller has the server, and its workers are given it.
    if not config.option.collectonly:
        _server = GivenServer() if os.environ.get("PGMONKEY_TEST_DSN") else Server()
        _server.start()
        if not isinstance(_server, GivenServer):
            hash_password_once(_server)
        os.environ["PGMONKEY_TEST_DSN"] = _server.dsn()


def pytest_unconfigure() -> None:
    if _server is not None:
        _server.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the contract suite found: promise by server, passed of all."""
    counts: dict[str, dict[int, list[int]]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            name = re.search(r"/contract/.*::test_((?:p\d+_)+).*\[(?:\w+-)?(" + _SERVERS + r")\b", report.nodeid)
            if name is None or (outcome == "passed" and report.when != "call"):
                continue
            for promise in re.findall(r"\d+", name[1]):
                count = counts.setdefault(name[2], {}).setdefault(int(promise), [0, 0])
                count[0] += outcome == "passed"
                count[1] += 1
    if not counts:
        return
    terminalreporter.section("contract: tests passed by promise and server")
    promises = sorted({promise for row in counts.values() for promise in row})
    terminalreporter.write_line(" " * 18 + "".join(f"P{promise:<7}" for promise in promises))
    for server, row in sorted(counts.items()):
        cells = ("{}/{}".format(*row[promise]) if promise in row else "-" for promise in promises)
        terminalreporter.write_line(f"{server:<18}" + "".join(f"{cell:<8}" for cell in cells))


def pytest_report_header() -> list[str]:
    version = _server.version if _server is not None else "not started"
    implementation = psycopg.pq.__impl__
    return [
        f"PostgreSQL {version}; psycopg {psycopg.__version__} ({implementation}), libpq {psycopg.pq.version()}",
        f"pgmonkey from {Path(pgmonkey.__file__).parent}",
    ]


@pytest.fixture(scope="session")
def server() -> Server:
    assert _server is not None
    return _server


@pytest.fixture(scope="session")
def administrator(server: Server) -> Iterator[psycopg.Connection[Any]]:
    """The connection that makes and drops databases: one for all, because a new one costs as much as a database."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        yield connection


@pytest.fixture
def new_database(administrator: psycopg.Connection[Any]) -> Iterator[Callable[[], str]]:
    """A function that makes a fresh database and returns its name."""
    made: list[str] = []

    def make() -> str:
        name = f"test_{os.getpid()}_{next(_numbers)}"
        administrator.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        made.append(name)
        return name

    yield make
    for name in made:
        administrator.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def dbname(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture
def config(server: Server, dbname: str) -> dict[str, Any]:
    """A configuration for a fresh database."""
    pool = {"min_size": 1, "max_size": 4, "timeout": 10}
    return {**server.config(dbname), "pool_settings": dict(pool), "async_pool_settings": dict(pool)}


@pytest.fixture
def config_file(config: dict[str, Any], tmp_path: Path) -> Path:
    """The same configuration as a file."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.fixture
def observer(server: Server, dbname: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of psycopg's own to the test's database, to see what others left there."""
    with psycopg.connect(server.dsn(dbname), autocommit=True) as connection:
        yield connection


@pytest.fixture
def backends(observer: psycopg.Connection[Any]) -> Callable[[], list[tuple[int, str]]]:
    """A function that returns the (pid, state) of every backend in the test's database but the observer's."""

    def look() -> list[tuple[int, str]]:
        return observer.execute(
            "SELECT pid, state FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        ).fetchall()

    return look


@pytest.fixture
def project(config: dict[str, Any], tmp_path: Path) -> Path:
    """A folder with a Django project in it."""
    projects.make(tmp_path, config)
    return tmp_path


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example apps in it and nothing else, so that they import the installed packages."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(ROOT / "example_apps", folder / "example_apps", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(autouse=True)
def _clean_cache() -> Iterator[None]:
    """End each test with nothing in the process's cache."""
    yield
    from pgmonkey._pool.cache import cache

    for entry in list(cache._open):
        if (handle := entry.handle()) is not None:
            handle.terminate()
        cache._forget(entry)
