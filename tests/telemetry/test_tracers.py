"""Other people's tracers see what we execute: the real packages, each in a process of its own, in every way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRACERS = ("opentelemetry_psycopg", "datadog", "elastic", "new_relic")
PAIRS = [
    *((program, tracer) for program in ("ways", "request_ways", "django_ways") for tracer in TRACERS),
    *(("django_ways", tracer) for tracer in ("sentry", "opentelemetry_django", "django_prometheus")),
]
# With Django's own backend they do not see everything either.
OF_DJANGO = ("debug_toolbar", "silk")
# They have to come first.
ONLY_BEFORE = ("new_relic", "opentelemetry_django", "django_prometheus")
# What these packages do not trace on psycopg itself either: ``copy()`` and ``stream()`` of cursors.
NOT_TRACED = ("stream of a cursor", "COPY", "copy_rows")
SETTINGS = """
import os
SECRET_KEY = "x"
DATABASES = {"default": {"ENGINE": "django_pgmonkey", "OPTIONS": {"config": os.environ["CONFIG_FILE"]}}}
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
USE_TZ = True
STATIC_URL = "static/"
"""

table: dict[str, dict[str, str]] = {}


@pytest.fixture(scope="module", autouse=True)
def _print_table() -> Iterator[None]:
    yield
    names = sorted({name for row in table.values() for name in row})
    print()
    for way, row in table.items():
        print(f"{way:34}", *(f"{name}: {row.get(name, '-'):9}" for name in names))


def run(program: str, tracer: str, when: str, environ: dict[str, str]) -> dict[str, list[int]]:
    command = [sys.executable, "-m", f"tests.telemetry.{program}", tracer, when]
    finished = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=100, check=False)
    assert finished.returncode == 0, finished.stderr
    found: dict[str, list[int]] = json.loads(finished.stdout.splitlines()[-1])
    for way, (spans, statements) in found.items():
        table.setdefault(way, {})[f"{tracer}, {when}"] = f"{spans}/{statements}"
    return found


@pytest.fixture
def environ(config: dict[str, Any], config_file: Path, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "traced_settings.py").write_text(SETTINGS)
    return {
        **os.environ,
        "CONFIG": json.dumps(config),
        "CONFIG_FILE": str(config_file),
        "DJANGO_SETTINGS_MODULE": "traced_settings",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH")])),
    }


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("program", "tracer"), PAIRS)
def test_there_are_as_many_spans_as_statements(program: str, tracer: str, when: str, environ: dict[str, str]) -> None:
    if when == "after" and tracer in ONLY_BEFORE:
        return
    found = run(program, tracer, when, environ)
    missed = {way: counts for way, counts in found.items() if counts[0] != counts[1] and way not in NOT_TRACED}
    assert not missed


@pytest.mark.parametrize("tracer", OF_DJANGO)
def test_what_looks_at_django_sees_what_it_sees_on_its_own_backend(tracer: str, environ: dict[str, str]) -> None:
    found, stock = (run("django_ways", tracer, when, environ) for when in ("before", "stock"))
    assert found == stock
    assert found["Django: request"][0] == found["Django: request"][1]
