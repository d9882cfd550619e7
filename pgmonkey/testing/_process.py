"""The process in which the sandboxes of a test process have their servers.

It is another process because libpq may wait for a server, as when it cancels, without letting other threads of Python
run: a server in one of them would never answer.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

import psycopg

_START_WITHIN = 90.0
_lock = threading.Lock()
_running: _Process | None = None


def python_for(module: str) -> list[str]:
    """Return the command that calls ``main`` of *module*, which it finds where this process does."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main()"
    return [sys.executable, "-c", code]


# -- in the test process ----------------------------------------------------------------------------------------------


class Remote:
    """A server of a sandbox, as its test process sees it.  Raises `psycopg.OperationalError` where it cannot start."""

    def __init__(self, dsn: str, databases: Mapping[str, str], patience: float) -> None:
        process = _process()
        self._lock = threading.Lock()
        self._lines = _Lines(socket.create_connection(("127.0.0.1", process.port), _START_WITHIN))
        started = self.ask(secret=process.secret, dsn=dsn, databases=dict(databases), patience=patience)
        self.port: int = started["port"]
        self.secret: str = started["secret"]

    def ask(self, command: str = "open", **arguments: Any) -> Any:
        """Have something done there; return the answer."""
        with self._lock:
            self._lines.write([command, arguments])
            answer = self._lines.read()
        if answer is None:
            raise psycopg.OperationalError("the server of the sandbox has ended")
        if "error" in answer:
            raise psycopg.OperationalError(answer["error"])
        return answer["value"]

    def close(self) -> str:
        """Roll everything back; return what has gone wrong, if anything has."""
        try:
            lost: str = self.ask("close")
        finally:
            self._lines.close()
        return lost


class _Process:
    def __init__(self) -> None:
        self.pid = os.getpid()
        """The process that has started it."""
        self.secret = secrets.token_urlsafe(24)
        self._child = subprocess.Popen(
            python_for(__name__),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the tests only, which then end it
        )
        self._stdin, self._stdout = _given(self._child.stdin), _given(self._child.stdout)
        self._stdin.write(f"{self.secret}\n")
        self._stdin.flush()
        told = self._stdout.readline()
        if not told:
            raise psycopg.OperationalError("the process for the servers of sandboxes did not start")
        self.port = int(told)
        atexit.register(self._end)

    def _end(self) -> None:
        if self.pid == os.getpid():
            self._stdin.close()
            self._stdout.close()
            self._child.wait(30)


def _given(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None  # noqa: S101
    return pipe


def _process() -> _Process:
    global _running
    with _lock:
        if _running is None or _running.pid != os.getpid():
            _running = _Process()
        return _running


class _Lines:
    """JSON, a line each."""

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(None)
        self._socket = connected
        self._file = connected.makefile("rwb")

    def write(self, value: object) -> None:
        self._file.write(json.dumps(value).encode() + b"\n")
        self._file.flush()

    def read(self) -> Any:
        with suppress(OSError):
            line = self._file.readline()
            return json.loads(line) if line else None

    def close(self) -> None:
        self._file.close()
        self._socket.close()


# -- in the other process ---------------------------------------------------------------------------------------------


def _serve(lines: _Lines, secret: str) -> None:
    """Serve one sandbox, until it is closed or its test process is gone."""
    from ._proxy import Proxy

    proxy: Proxy | None = None
    try:
        while (asked := lines.read()) is not None:
            command, arguments = asked
            try:
                if proxy is None:
                    if not secrets.compare_digest(arguments.pop("secret"), secret):
                        return
                    proxy = Proxy(**arguments)
                    value: object = {"port": proxy.port, "secret": proxy.secret}
                else:
                    value = getattr(proxy, command)(**arguments)
            except psycopg.Error as error:
                lines.write({"error": str(error)})
            else:
                lines.write({"value": value})
    except OSError:
        pass  # the test process is gone
    finally:
        if proxy is not None:
            proxy.close()
        with suppress(OSError):
            lines.close()


def main() -> None:
    """Serve sandboxes until the standard input ends."""
    secret = sys.stdin.readline().strip()
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            lines = _Lines(listener.accept()[0])
            threading.Thread(target=_serve, args=(lines, secret), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()  # until the test process ends, however it does; the server rolls back what is left
    os._exit(0)
