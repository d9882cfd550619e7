"""A hundred tests of Django's live server find what its migrations made, in whichever way; and the time that it takes.

Asked for with ``--sandbox``: ``nox -s sandbox``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from ..conftest import ROOT
from ..docs.conftest import blocks

if TYPE_CHECKING:
    from pathlib import Path

    from pgmonkey.embedded import Server

APPS = ["auth", "contenttypes", "sessions", "staticfiles"]
TESTS = """
import json
from urllib.request import urlopen

import pytest
from django.test import LiveServerTestCase
from visits.models import Visit

def make(number):
    def test(self):
        for i in range(3):
            with urlopen(f"{self.live_server_url}/visit/{number}-{i}") as response:
                found = json.load(response)["visits"]
        assert found == ["first", *(f"{number}-{i}" for i in range(3))]
        assert Visit.objects.count() == 4
    return test

# Without it, the rows of the migrations are gone after the first test.
how = {"serialized_rollback": True} if FIXTURE is None else {"_fixture_teardown": lambda self: None}
tests = {f"test_{number}": make(number) for number in range(100)}
Live = type("Live", (LiveServerTestCase,), {"__module__": __name__, **how, **tests})
if FIXTURE is not None:
    Live = pytest.mark.usefixtures(FIXTURE)(Live)
del LiveServerTestCase
"""
WAYS = {"sandbox": "rolled_back", "clone": "own_database", "truncate": None}
"""The fixture for each way; without one, it is Django's own."""


def project(folder: Path, way: str) -> None:
    """Make the project of the page on testing, with Django's own applications in it."""
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8").partition("\n## Django\n")[2]
    page = page.partition("\n## ")[0]
    own_database = blocks(page, "python")[-1]
    for name, code in re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
    for part in ("visits", "visits/migrations"):
        (folder / part / "__init__.py").touch()
    with open(folder / "settings.py", "a") as settings:
        settings.write(f"INSTALLED_APPS += {[f'django.contrib.{name}' for name in APPS]!r}\n")
    (folder / "test_visits.py").write_text(f"FIXTURE = {WAYS[way]!r}\n" + TESTS)
    with open(folder / "conftest.py", "a") as fixtures:
        fixtures.write(own_database)
    if way == "truncate":
        (folder / "conftest.py").unlink()


@pytest.mark.parametrize("workers", [0, 2])
def test_live_servers(tmp_path: Path, server: Server, workers: int) -> None:
    seconds = {}
    for way in WAYS:
        (tmp_path / way).mkdir()
        project(tmp_path / way, way)
        names = {"PGHOST": server.host, "PGPORT": server.port, "PGUSER": server.user, "PGPASSWORD": server.password}
        environ = {name: str(value) for name, value in names.items()}
        plugins = ("-p", "no:cacheprovider", "-p", "pgmonkey.testing.plugin")
        started = time.perf_counter()
        finished = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *plugins, f"-n{workers}", "--dist=load"],
            cwd=tmp_path / way,
            env={**os.environ, **environ, "PGDATABASE": "live"},
            capture_output=True,
            text=True,
        )
        seconds[way] = round(time.perf_counter() - started, 1)
        assert finished.returncode == 0, finished.stdout[-5000:] + finished.stderr[-2000:]
        assert re.search(r"\b100 passed", finished.stdout)
    print(f"\n\nseconds for 100 tests of Django's live server, {workers} workers: {seconds}")
