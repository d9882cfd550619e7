"""The server that tests use: the one that ``PGMONKEY_TEST_DSN`` names, or one that is kept for the project.

The kept one has its cluster in the folder for temporary files, so that templates live from one run to the next, and is
shared by all processes that test the project at a time: a process of its own starts it, and stops it when the last of
them has ended.  They hold a shared lock on a file, which the system releases however they end.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from ..embedded import EmbeddedError, Server, find_binaries
from ._process import python_for

if TYPE_CHECKING:
    from typing_extensions import Self

VARIABLE = "PGMONKEY_TEST_DSN"
# Seconds that the server stays when the last process has ended: the next run may come at once.
_STAYS = 2.0
_START_WITHIN = 90.0


class TestServer:
    """A server for tests, on which databases can be made; used in a block, or closed in the end."""

    __test__ = False  # for pytest, which collects classes of this name

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._administrator = self.connect()
        self.version: int = self._administrator.info.server_version
        """As libpq tells it, such as 170002."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def administrator(self) -> psycopg.Connection[Any]:
        """The connection that makes and drops databases: one for all, as each new one takes as long as a clone."""
        if self._administrator.closed:
            self._administrator = self.connect()
        return self._administrator

    def dsn(self, dbname: str | None = None) -> str:
        """Return the URL of a database; of the one for maintenance by default."""
        parts = conninfo_to_dict(self._dsn)
        if dbname is not None:
            parts["dbname"] = dbname
        return _url(parts)

    def config(self, dbname: str) -> dict[str, Any]:
        """Return a configuration of pgmonkey for a database."""
        return {"connection_settings": {**conninfo_to_dict(self._dsn), "dbname": dbname}}

    def connect(self, dbname: str | None = None) -> psycopg.Connection[Any]:
        """Return a connection of psycopg's own, in autocommit."""
        return psycopg.connect(self.dsn(dbname), autocommit=True)

    def drop(self, dbname: str) -> None:
        """Drop a database, and end the sessions in it."""
        self.administrator.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(dbname)))

    def close(self) -> None:
        """Close its own connection."""
        self._administrator.close()


def _url(parts: dict[str, Any]) -> str:
    from urllib.parse import quote, urlencode

    rest = {key: str(value) for key, value in parts.items() if value is not None}
    user, password, dbname = rest.pop("user", ""), rest.pop("password", None), rest.pop("dbname", "")
    host, port = rest.pop("host", ""), rest.pop("port", "")
    login = quote(user, safe="") + ("" if password is None else f":{quote(password, safe='')}")
    place = (f"[{host}]" if ":" in host else quote(host, safe="")) + (f":{port}" if port else "")
    query = f"?{urlencode(rest, quote_via=quote)}" if rest else ""
    return f"postgresql://{login}{'@' if login else ''}{place}/{quote(dbname, safe='')}{query}"


@contextmanager
def test_server(project: Path) -> Iterator[TestServer]:
    """Return the server for the tests of the *project* in that folder."""
    given = os.environ.get(VARIABLE)
    if given:
        with TestServer(given) as server:
            yield server
        return
    # Not in the project: as root, the server runs under another account, which may not read there.
    digest = hashlib.sha256(f"{project}\0{find_binaries()}\0{os.getuid()}".encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"pgmonkey-testing-{digest}"
    folder.mkdir(mode=0o711, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise EmbeddedError(f"{folder} belongs to another user; remove it, or name a server in {VARIABLE}")
    with open(folder / "users", "a") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        with TestServer(_started(folder)) as server:
            yield server


def _started(folder: Path) -> str:
    """Return the address of the server in *folder*, which is started where it does not run."""
    with open(folder / "starting", "a") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        running = _running(folder)
        if running is not None:
            return running
        (folder / "address").unlink(missing_ok=True)
        with open(folder / "keeper.log", "wb", opener=_private) as log:
            command = [*python_for(__name__), str(folder)]
            # In a session of its own, so that Ctrl-C in the terminal does not end it before the tests.
            keeper = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
            )
        deadline = time.monotonic() + _START_WITHIN
        while time.monotonic() < deadline and keeper.poll() is None:
            running = _running(folder)
            if running is not None:
                keeper.returncode = 0  # it outlives this process, so it is not to be waited for
                return running
            time.sleep(0.02)
        raise EmbeddedError(f"the test server did not start:\n{(folder / 'keeper.log').read_text(errors='replace')}")


def _running(folder: Path) -> str | None:
    with suppress(OSError, ValueError, psycopg.OperationalError):
        address: str = json.loads((folder / "address").read_text())
        psycopg.connect(address, connect_timeout=5).close()
        return address
    return None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _keep(folder: Path) -> None:
    """Run the server in *folder* until no process has a shared lock on the file of its users."""
    try:
        server = Server(folder)
        server.start()
    except EmbeddedError:
        # With fsync off, a crash of the machine leaves what does not start; there is nothing in it that matters.
        shutil.rmtree(folder / "data", ignore_errors=True)
        server = Server(folder)
        server.start()
    with server:
        temporary = folder / "address.new"
        with open(temporary, "w", opener=_private) as file:
            json.dump(server.dsn(), file)
        temporary.rename(folder / "address")
        while True:
            with open(folder / "users", "a") as users, open(folder / "starting", "a") as starting:
                _wait_for_the_last(users)
                time.sleep(_STAYS)
                # Whoever comes now waits until it has stopped, and then starts another one.
                fcntl.flock(starting, fcntl.LOCK_EX)
                with suppress(BlockingIOError):
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    (folder / "address").unlink(missing_ok=True)
                    server.stop()
                    return


def _wait_for_the_last(users: IO[str]) -> None:
    fcntl.flock(users, fcntl.LOCK_EX)
    fcntl.flock(users, fcntl.LOCK_UN)


def main() -> None:
    """Keep the server in the folder that is the last argument."""
    _keep(Path(sys.argv[-1]))


def worker_number() -> str:
    """Return what tells this process from others that test at the same time, for the names of databases."""
    return re.sub(r"\W", "", os.environ.get("PYTEST_XDIST_WORKER", "")) + str(os.getpid())
