"""The demo ends without leaving anything behind, however it ends."""

from __future__ import annotations

import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pytest

from .conftest import running_demo, three_free_ports


def processes(folder: str) -> list[str]:
    """Return the command lines of the processes whose environment names *folder*, and of the server in it."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environ = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if folder.encode() in environ or folder in command:
            found.append(command)
    return found


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells, in /proc, what other processes were started with"
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_demo_leaves_nothing_behind(number: signal.Signals, examples: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="demo-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        # The first of its ports is taken: it says so, and takes another.
        first = three_free_ports()
        with socket.create_server(("127.0.0.1", first)), running_demo(examples, Path(folder), first) as demo:
            assert demo.printed.startswith(f"Port {first} is taken; using ")
            assert f":{first}/" not in demo.urls["Flask"]
            assert f":{first + 1}/" in demo.urls["FastAPI"]
            assert len(processes(folder)) > 4
            for url in demo.urls.values():
                assert httpx.get(url).status_code == 200
            demo.process.send_signal(number)
            demo.process.wait(20)
        deadline = time.monotonic() + 10
        while left := processes(folder):
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
        if number != signal.SIGKILL:
            assert demo.process.returncode == 0
            assert list(Path(folder).iterdir()) == []
