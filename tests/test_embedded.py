"""The server that the project starts itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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
