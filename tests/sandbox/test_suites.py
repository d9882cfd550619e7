"""A suite of 200 tests gives the same in sandboxes as with a database each, in any order and side by side.

Asked for with ``--sandbox``, as it takes its time: ``nox -s sandbox``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from ..contract.conftest import APPS, SCHEMA

if TYPE_CHECKING:
    from pgmonkey.embedded import Server

PROJECT = Path(__file__).parent / "project"
seconds: dict[tuple[str, int], dict[str, float]] = {}


@pytest.fixture(scope="module", autouse=True)
def figures() -> Iterator[None]:
    yield
    print("\n\nseconds for 200 tests       workers  sandbox  clone  truncate")
    for (server, workers), by_way in seconds.items():
        cells = "".join(
            f"{by_way[way]:9.1f}" if way in by_way else "        -" for way in ("sandbox", "clone", "truncate")
        )
        print(f"{server:<28}{workers:>7}{cells}")


def run(tmp_path: Path, server: str, way: str, workers: int) -> dict[str, Any]:
    """Run the suite; return what each test has found."""
    found = tmp_path / way
    found.mkdir()
    (tmp_path / "schema.sql").write_text(SCHEMA)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    shutil.copytree(PROJECT, tmp_path / "project", dirs_exist_ok=True)
    told = {
        "WAY": way,
        "SERVER": server,
        "APPS": APPS,
        "SCHEMA": tmp_path / "schema.sql",
        "FOUND": found,
        "SEED": workers,
    }
    plugins = ["-p", "pgmonkey.testing.plugin", "-p", "xdist.plugin", "-p", "no:cacheprovider"]
    environ = {**os.environ, **{f"SUITE_{name}": str(value) for name, value in told.items()}}
    environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    started = time.perf_counter()
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, f"-n{workers}", str(tmp_path / "project")],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
    )
    seconds.setdefault((server, workers), {})[way] = time.perf_counter() - started
    assert finished.returncode == 0, finished.stdout[-5000:] + finished.stderr[-2000:]
    assert re.search(r"\b200 passed", finished.stdout)
    return {file.stem: json.loads(file.read_text()) for file in found.iterdir()}


def databases(server: Server) -> set[str]:
    with psycopg.connect(server.dsn()) as connection:
        names = {row[0] for row in connection.execute("SELECT datname FROM pg_database").fetchall()}
    return {name for name in names if not name.startswith("pgmonkey_template_")}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("application", ["flask", "fastapi", "gunicorn", "uvicorn"])
def test_the_same_as_with_other_ways(application: str, workers: int, tmp_path: Path, server: Server) -> None:
    before = databases(server)
    found = run(tmp_path, application, "sandbox", workers)
    assert len(found) == 200
    ways = ["clone", "truncate"] if application in ("flask", "fastapi") else ["truncate"]
    for way in ways:
        assert run(tmp_path, application, way, workers) == found, way
    assert databases(server) == before
