"""A reader who does what a page says: saves its files, types its commands, and compares what they print.

A code block is saved where the last line before it names a file and ends with a colon ("Save this as `app.py`:"); with
"at the end of" it is appended.  In a ``console`` block, lines that begin with ``$`` are typed and the others are what
is expected: times and versions may differ, and ``...`` is any text.  A server goes on until the next one is started, or
the page ends.  Python that has no name makes one program with the rest of its section, as does what stands between
``<!-- python`` and ``-->``, which no reader sees; SQL is executed; YAML and INI have to be what they say they are.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import psycopg
import yaml

from pgmonkey.cli._check import examine

from .. import programs
from ..contract.conftest import free_port

_BLOCKS = re.compile(r"^(?:```|<!-- )(\w+)\n(.*?)^(?:```|-->)$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`([\w./-]+\.\w+|Dockerfile)`[^`\n]*:$")
_SERVERS = ("flask run", "flask --app", "uvicorn ", "gunicorn ", "python manage.py runserver", "uwsgi ")
# What a virtual environment and the documented server are made with; the tests have both.
_THERE = ("python3 -m venv ", ". .venv/bin/activate", "python -m pgmonkey.embedded", "mkdir ", "cd ")


class Block(NamedTuple):
    """A block of code of a page: where it stands, and the file that it is to be saved in, if any."""

    language: str
    code: str
    line: int
    file: str
    append: bool


def blocks(page: str) -> Iterator[list[Block]]:
    """Yield the blocks of each section of a *page*."""
    found: list[Block] = []
    start = 0
    for match in _BLOCKS.finditer(page):
        before = page[start : match.start()]
        if "\n## " in before:
            yield found
            found = []
        last = before.rstrip().rpartition("\n\n")[2]
        file = _FILE.search(last)
        line = page.count("\n", 0, match.start()) + 1
        hidden = page[match.start()] == "<"
        name = file[1] if file and not hidden else ""
        found.append(Block(match[1], match[2], line, name, "at the end of" in last))
        start = match.end()
    yield found


class Typist:
    """Follows a page in *folder*, with the variables *environ*."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        binaries = str(Path(sys.executable).parent)
        self._folder = folder
        self._port = free_port()
        self._environ = {
            **environ,
            "PATH": f"{binaries}{os.pathsep}{environ['PATH']}",
            "FLASK_RUN_PORT": str(self._port),
            "UVICORN_PORT": str(self._port),
            "GUNICORN_CMD_ARGS": f"--bind=127.0.0.1:{self._port}",
            "PYTEST_ADDOPTS": "-p no:warnings",  # of the oldest versions, which a reader has not
        }
        self._before: list[str] = []
        self._server: subprocess.Popen[bytes] | None = None

    def follow(self, page: str) -> None:
        """Do what the *page* says."""
        page = re.sub(r"127\.0\.0\.1:(5000|8000)\b", f"127.0.0.1:{self._port}", page)
        try:
            for section in blocks(page):
                program = ""
                for block in section:
                    if block.file:
                        self._save(block)
                    elif block.language == "console":
                        self._type(block)
                    elif block.language == "python":
                        # As many empty lines as make a traceback show the line of the page.
                        program += "\n" * (block.line - program.count("\n")) + block.code
                    else:
                        self._check(block)
                if program:
                    ran = programs.run(code=program, folder=self._folder, environ=self._environ, timeout=300)
                    assert (ran.returncode, ran.stderr) == (0, ""), f"{ran.stdout}\n{ran.stderr}"
        finally:
            self._stop()

    def _save(self, block: Block) -> None:
        path = self._folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a" if block.append else "w", encoding="utf-8") as file:
            file.write(block.code)
        self._check(block)

    def _check(self, block: Block) -> None:
        if block.language == "yaml":
            for document in yaml.safe_load_all(block.code):
                if "connection_settings" in document:
                    (self._folder / "checked.yaml").write_text(block.code)
                    assert examine(str(self._folder / "checked.yaml"), False, False, None).errors == []
        elif block.language == "ini":
            configparser.ConfigParser(interpolation=None).read_string(block.code)
        elif block.language == "sql" and not block.file:
            with psycopg.connect(" ".join(f"{k}={v}" for k, v in self._where()), autocommit=True) as connection:
                connection.execute(block.code.encode())

    def _where(self) -> Iterator[tuple[str, str]]:
        for name in ("host", "port", "user", "password"):
            yield name, self._environ[f"PG{name.upper()}"]
        yield "dbname", self._environ["PGDATABASE"]

    def _type(self, block: Block) -> None:
        for command in re.findall(r"^\$ (.*\n(?:(?!\$ ).*\n)*)", block.code, re.MULTILINE):
            line, _, expected = command.partition("\n")
            line = line.partition("  # ")[0].strip()
            if line.startswith(("pip install ", "python -m pip install ")):
                for word in shlex.split(line)[2:]:
                    importlib.metadata.version(re.split(r"[\[<>=~]", word.rpartition("/")[2])[0])
            elif line.startswith(_THERE):
                continue
            elif line.startswith("export "):
                self._before.append(line)
            elif line.startswith(_SERVERS):
                self._serve(line)
            else:
                self._run(line, expected)

    def _run(self, line: str, expected: str) -> None:
        if not self._before and re.fullmatch(r"python [\w/]+\.py", line):
            path = self._folder / line.split()[1]
            ran = programs.run(code=path.read_text(), file=path.name, folder=self._folder, environ=self._environ)
        else:
            ran = subprocess.run(
                ["bash", "-ec", "\n".join([*self._before, line])],
                cwd=self._folder,
                env=self._environ,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
        assert ran.returncode == 0, f"$ {line}\n{ran.stdout}\n{ran.stderr}"
        if expected.strip():
            pattern = re.escape(expected.strip()).replace(r"\.\.\.", ".*")
            pattern = re.sub(r"\d+(\\\.\d+)+|\d+(?=\\ ms)", r"[\\d.]+", pattern)  # versions, seconds
            # Warnings of plugins that the tests have and the reader has not are on stderr.
            said = [ran.stdout.strip(), (ran.stdout + ran.stderr).strip()]
            assert any(re.fullmatch(pattern, text, re.DOTALL) for text in said), f"$ {line}\n{said[1]}\n---\n{expected}"

    def _serve(self, line: str) -> None:
        self._stop()
        if "manage.py" in line:
            line += f" --noreload {self._port}"
        self._server = subprocess.Popen(
            ["bash", "-ec", "\n".join([*self._before, f"exec {line}"])],
            cwd=self._folder,
            env=self._environ,
            stdout=(log := open(self._folder / "server.log", "wb")),  # noqa: SIM115
            stderr=subprocess.STDOUT,
        )
        log.close()
        for _ in range(3000):
            assert self._server.poll() is None, (self._folder / "server.log").read_text()
            with suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{self._port}/", timeout=30)
                break
            time.sleep(0.1)

    def _stop(self) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGTERM)
            self._server.wait(60)
            self._server = None
