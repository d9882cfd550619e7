"""The demo, run as a person runs it."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

SHOPS = ("Flask", "FastAPI", "Django")


@dataclass
class Demo:
    """A running demo: its process, the address of each shop and of the database."""

    process: subprocess.Popen[str]
    urls: dict[str, str]
    dsn: str
    printed: str


def three_free_ports() -> int:
    """Return the first of three ports in a row that nobody listens on, and that no client is given meanwhile."""
    while True:
        first = random.randint(20_000, 30_000)  # below the ports that systems choose from
        with ExitStack() as stack, suppress(OSError):
            for i in range(3):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", first + i))
            return first


@contextmanager
def running_demo(examples: Path, tmp: Path, port: int | None = None) -> Iterator[Demo]:
    """Start the demo; stop it with Ctrl-C."""
    environ = {**os.environ, "TMPDIR": str(tmp)}
    process = subprocess.Popen(
        [sys.executable, "-m", "example_apps.demo", "--port", str(port or three_free_ports())],
        cwd=examples,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        printed = ""
        while "Ready" not in printed:
            line = process.stdout.readline()
            assert line, f"the demo ended: {printed}"
            printed += line
        urls = {shop: re.findall(rf"^{shop} +(http\S+)", printed, re.MULTILINE)[0] for shop in SHOPS}
        yield Demo(process, urls, re.findall(r"postgresql://\S+", printed)[0], printed)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(30)
        process.stdout.close()


@pytest.fixture(scope="session")
def demo(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    # Not pytest's own folder, which only its owner may enter: as root, the server runs as somebody else.
    import tempfile

    with tempfile.TemporaryDirectory(prefix="demo-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        with running_demo(examples, Path(folder)) as running:
            yield running
