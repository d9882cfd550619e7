"""Serve the three shops side by side, over one PostgreSQL that this starts: ``python -m example_apps.demo``."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

if sys.platform == "win32":
    sys.exit("The demo needs gunicorn and Unix sockets: on Windows, run it in WSL (wsl --install)")

import psycopg

from pgmonkey.embedded import Server, die_with_parent

from . import shop

DATABASE = "shop"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ROOT = Path(__file__).resolve().parent.parent


class Stop(Exception):
    """Somebody asked the demo to end."""


def commands(ports: list[int]) -> dict[str, list[str]]:
    gunicorn = [sys.executable, "-m", "gunicorn", "--worker-class", "gthread", "--threads", "16", "--no-control-socket"]
    flask, fastapi, django = (f"127.0.0.1:{port}" for port in ports)
    return {
        "Flask": [*gunicorn, "--bind", flask, "example_apps.panel.on_flask:create_app()"],
        "FastAPI": [
            *(sys.executable, "-m", "uvicorn", "--log-level", "warning"),
            "--timeout-graceful-shutdown=2",  # pages that listen keep their connections open
            *("--host", "127.0.0.1", "--port", fastapi.rpartition(":")[2], "example_apps.panel.on_fastapi:app"),
        ],
        "Django": [*gunicorn, "--bind", django, "example_apps.panel.django_wsgi"],
    }


@contextmanager
def serve(name: str, command: list[str], environ: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the demo, which stops them in order
            preexec_fn=die_with_parent,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(name: str, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name} does not answer ({error}); its log:\n{log.read_text()}") from None
            time.sleep(0.05)


def restart_when_asked(server: Server, control: socket.socket) -> None:
    """Restart *server* if a shop asks for that, by connecting to *control*; tell it how many seconds that took."""
    try:
        asking, _ = control.accept()
    except TimeoutError:
        return
    started = time.monotonic()
    server.restart()
    with asking, suppress(OSError):
        asking.sendall(f"{time.monotonic() - started:.2f}".encode())


def free_ports(first: int) -> list[int]:
    """Return three ports from *first* on; where one is taken, say so, and take another that is free."""
    ports: list[int] = []
    with ExitStack() as stack:
        for port in range(first, first + 3):
            probe = stack.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                probe.bind(("127.0.0.1", 0))
                print(f"Port {port} is taken; using {probe.getsockname()[1]} instead")
            ports.append(probe.getsockname()[1])
    return ports


def environment(server: Server) -> dict[str, str]:
    return {
        **os.environ,
        "SHOP_HOST": server.host,
        "SHOP_PORT": str(server.port),
        "SHOP_USER": server.user,
        "SHOP_PASSWORD": server.password,
        "SHOP_DATABASE": DATABASE,
        "SHOP_SECRET_KEY": secrets.token_urlsafe(),
        "PYTHONUNBUFFERED": "1",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8001, help="the first of three ports (default: 8001)")
    options = parser.parse_args()
    started = time.monotonic()
    parent = os.getppid()
    for number in SIGNALS:
        signal.signal(number, _stop)
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgmonkey-demo-")))
            server = stack.enter_context(Server())
            server.create_database(DATABASE)
            with psycopg.connect(server.dsn(DATABASE)) as connection:
                connection.execute(shop.SCHEMA)
                connection.execute(shop.SEED)
            environ = environment(server)
            ports = free_ports(options.port)
            sites = {name: f"http://127.0.0.1:{port}/" for name, port in zip(commands(ports), ports, strict=True)}
            environ["SHOP_SITES"] = " ".join(map("=".join, sites.items()))
            environ["SHOP_LIVE_URL"] = f"{sites['FastAPI']}orders/live"
            environ["SHOP_PANEL"] = "1"
            control = stack.enter_context(socket.socket(socket.AF_UNIX))
            control.bind(str(folder / "control"))
            control.listen()
            control.settimeout(0.2)
            environ["SHOP_CONTROL"] = str(folder / "control")
            running: dict[str, subprocess.Popen[bytes]] = {}
            for name, command in commands(ports).items():
                own = {**environ, "SHOP_NAME": f"{name} shop", "SHOP_URL": sites[name]}
                running[name] = stack.enter_context(serve(name, command, own, folder / f"{name}.log"))
            for name, url in sites.items():
                wait_for(name, url, running[name], folder / f"{name}.log")
            print(f"PostgreSQL {server.version}  {server.dsn(DATABASE)}")
            for name, url in sites.items():
                print(f"{name:10}  {url}")
            print(
                f"Ready in {time.monotonic() - started:.1f} s. Press Ctrl-C to stop it and delete its data.",
                flush=True,
            )
            while os.getppid() == parent:  # whoever started the demo may have been killed
                for name, process in running.items():
                    if process.poll() is not None:
                        raise SystemExit(f"{name} ended; its log:\n{(folder / f'{name}.log').read_text()}")
                restart_when_asked(server, control)
    except Stop:
        print("Stopped.")
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Stop


if __name__ == "__main__":
    sys.exit(main())
