"""Small applications of other people's packages, in processes of their own, over a database of their own.

The applications are in apps/, which is not type-checked: the packages are installed for ``nox -s ecosystem`` alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import pytest

from pgmonkey.embedded import die_with_parent

from ..contract.conftest import free_port

if TYPE_CHECKING:
    from typing_extensions import LiteralString

APPS = Path(__file__).parent / "apps"
GUNICORN = ("gunicorn", "--no-control-socket", "--bind", "127.0.0.1:PORT", "--worker-class", "gthread", "--threads=16")
UVICORN = ("uvicorn", "--log-level=warning", "--host=127.0.0.1", "--port=PORT")


class Programs:
    """What a test runs with the modules of apps/ on the path and the configuration's path in CONFIG."""

    def __init__(self, folder: Path, config_file: Path, observer: psycopg.Connection[Any]) -> None:
        self.folder = folder
        self.observer = observer
        path = os.pathsep.join(filter(None, [str(APPS), os.environ.get("PYTHONPATH")]))
        self.environ = {**os.environ, "CONFIG": str(config_file), "PYTHONPATH": path}
        self.log = folder / "log"
        self._stack = ExitStack()

    def run(self, *arguments: str) -> str:
        """Run ``python`` with *arguments* to its end and return what it prints."""
        finished = subprocess.run(
            [sys.executable, *arguments], env=self.environ, cwd=self.folder, capture_output=True, text=True, timeout=300
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    def manage(self, application: str, *arguments: str) -> str:
        """Run a command of a Django application, such as ``migrate``."""
        code = f"import sys, {application}; from django.core.management import execute_from_command_line as run"
        return self.run("-c", f"{code}; run(['manage.py', *sys.argv[1:]])", *arguments)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start ``python`` with *arguments*; it is stopped after the test."""
        with open(self.log, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=self.environ,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
        self._stack.callback(process.wait, 20)
        self._stack.callback(process.terminate)
        return process

    def serve(self, *command: str) -> httpx.Client:
        """Start a server, such as ``*GUNICORN, "some_app:application"``, and return a client once it answers."""
        port = free_port()
        process = self.start("-m", *(argument.replace("PORT", str(port)) for argument in command))
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, headers={"Connection": "close"})
        self._stack.enter_context(client)
        deadline = time.monotonic() + 120
        while True:
            try:
                client.get("/")
                return client
            except httpx.TransportError:
                assert process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)

    def rows(self, query: LiteralString, *parameters: Any) -> list[tuple[Any, ...]]:
        """Return what is stored."""
        return self.observer.execute(query, parameters or None).fetchall()

    def wait_for(self, query: LiteralString, wanted: Sequence[tuple[Any, ...]], seconds: float = 20) -> None:
        """Wait until *query* returns the rows *wanted*."""
        deadline = time.monotonic() + seconds
        while (rows := self.rows(query)) != wanted:
            assert time.monotonic() < deadline, (rows, self.log.read_text() if self.log.exists() else "")
            time.sleep(0.05)

    def wait_until_idle(self) -> None:
        """Wait until no backend of the programs is in a transaction or at work."""
        query = (
            "SELECT pid, state, query FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND state <> 'idle'"
        )
        self.wait_for(query, [], seconds=5)

    def wait_until_whole(self, stats: Callable[[], dict[str, int]]) -> None:
        """Wait until the pool that *stats* asks has all its connections, and nobody has one in a transaction.

        A pool that was never needed is not open, and has no statistics.
        """
        deadline = time.monotonic() + 5
        while (seen := stats()).get("pool_available") != seen.get("pool_size"):
            assert time.monotonic() < deadline, seen
            time.sleep(0.02)
        self.wait_until_idle()

    def wait_until_server_is_whole(self, client: httpx.Client) -> None:
        """Wait until all is given back to the pool of a Django application."""
        self.wait_until_whole(lambda: client.get("/stats").json())

    def close(self) -> None:
        """Stop what was started."""
        self._stack.close()


@pytest.fixture
def programs(tmp_path: Path, config_file: Path, observer: psycopg.Connection[Any]) -> Iterator[Programs]:
    programs = Programs(tmp_path, config_file, observer)
    try:
        yield programs
    finally:
        programs.close()
