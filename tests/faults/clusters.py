"""Servers that can be crashed, frozen, followed and promoted, and PgBouncer before them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg

from pgmonkey.embedded import (
    EmbeddedError,
    Server,
    _as_account,
    _free_port,
    _make_for_account,
    _make_temporary,
    die_with_parent,
)


class Cluster(Server):
    """A server whose acknowledged commits survive a crash of it, though not one of the machine."""

    def __init__(self, *, settings: Mapping[str, str] | None = None) -> None:
        durable = {"synchronous_commit": "on", "max_wal_senders": "10", "wal_keep_size": "64MB", "hot_standby": "on"}
        super().__init__(settings={**durable, **(settings or {})})

    @property
    def data(self) -> Path:
        """The data folder."""
        assert self._temporary is not None
        return self._temporary / "data"

    def end(self, how: signal.Signals) -> None:
        """Stop the server: SIGINT is PostgreSQL's "fast" mode, SIGQUIT its "immediate" one, which is a crash."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(30)

    def begin(self) -> float:
        """Start the server again; return the time at which it accepted a connection, as `time.monotonic` tells."""
        self._launch(self.data)
        return time.monotonic()

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the server and all its processes, each of which has a session of its own."""
        assert self._process is not None
        parent = self._process.pid
        for pid in [parent, *_children(parent)]:
            with suppress(ProcessLookupError):  # a session that has just ended
                os.kill(pid, number)

    def execute(self, statement: str, dbname: str = "postgres") -> list[tuple[Any, ...]]:
        """Run *statement* as the superuser; return its rows."""
        with psycopg.connect(self.dsn(dbname), autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def terminate_backends(self, dbname: str) -> None:
        """End every session in *dbname*; return when they have ended."""
        self.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{dbname}'")

    def follow(self, primary: Cluster) -> None:
        """Become a streaming standby of *primary*, from a fresh copy of it, and its synchronous one."""
        if self._temporary is None:
            self._temporary = _make_temporary()
            self._bin = primary._bin
            self.port = _free_port()
        shutil.rmtree(self.data, ignore_errors=True)
        _make_for_account(self.data)
        self.password = primary.password
        address = f"host={primary.host} port={primary.port} user={primary.user} password={primary.password}"
        run = subprocess.run(
            [self._bin / "pg_basebackup", "-D", self.data, "-X", "stream", "-R", "-c", "fast", "-d", address],
            capture_output=True,
            text=True,
            **_as_account(),
        )
        if run.returncode:
            raise EmbeddedError(run.stderr)
        self.data.chmod(0o700)
        self.begin()
        primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.execute("SELECT pg_reload_conf()")
        deadline = time.monotonic() + 20
        while primary.execute("SELECT state, sync_state FROM pg_stat_replication") != [("streaming", "sync")]:
            assert time.monotonic() < deadline, primary.execute("SELECT * FROM pg_stat_replication")
            time.sleep(0.02)

    def promote(self) -> float:
        """Become the primary; return the time at which that was asked for."""
        asked = time.monotonic()
        assert self.execute("SELECT pg_promote(true, 20)") == [(True,)]
        return asked


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class PgBouncer:
    """PgBouncer in transaction mode before a server: ``with PgBouncer(server, pool_size=4) as bouncer``."""

    def __init__(self, server: Server, **settings: object) -> None:
        self.port = _free_port()
        self._server = server
        self._settings = settings
        self._process: subprocess.Popen[Any] | None = None

    def __enter__(self) -> PgBouncer:
        self._folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
        settings: dict[str, object] = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": self._folder / "users.txt",
            "pool_mode": "transaction",
            "max_client_conn": 500,
            **self._settings,
        }
        server = self._server
        (self._folder / "users.txt").write_text(f'"{server.user}" "{server.password}"\n')
        (self._folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={server.host} port={server.port}\n[pgbouncer]\n"
            + "".join(f"{key} = {value}\n" for key, value in settings.items())
        )
        account = _as_account()
        for path in [self._folder, *self._folder.iterdir()]:
            os.chown(path, account.get("user", -1), account.get("group", -1))
        self._log = open(self._folder / "log", "wb")
        self._process = subprocess.Popen(
            [shutil.which("pgbouncer") or "pgbouncer", str(self._folder / "pgbouncer.ini")],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
            **_as_account(),
        )
        self._wait()
        return self

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + 10
        while True:
            try:
                psycopg.connect(self._server.dsn().replace(f":{self._server.port}/", f":{self.port}/")).close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < deadline, (self._folder / "log").read_text()
                time.sleep(0.02)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)
