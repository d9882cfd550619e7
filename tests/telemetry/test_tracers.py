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
TRACERS = ("opentelemetry_psycopg", "datadog", "elastic")
PAIRS = [*((program, tracer) for program in ("ways", "django_ways") for tracer in TRACERS), ("django_ways", "sentry")]
# What these packages do not trace on psycopg itself either: ``copy()`` and ``stream()`` of cursors.
NOT_TRACED = ("stream of a cursor", "COPY")
SETTINGS = """
import os
SECRET_KEY = "x"
DATABASES = {"default": {"ENGINE": "django_pgmonkey", "OPTIONS": {"config": os.environ["CONFIG_FILE"]}}}
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
USE_TZ = True
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


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("program", "tracer"), PAIRS)
def test_there_are_as_many_spans_as_statements(
    program: str, tracer: str, when: str, config: dict[str, Any], config_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "traced_settings.py").write_text(SETTINGS)
    environ = {
        **os.environ,
        "CONFIG": json.dumps(config),
        "CONFIG_FILE": str(config_file),
        "DJANGO_SETTINGS_MODULE": "traced_settings",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    found = run(program, tracer, when, environ)
    missed = {way: counts for way, counts in found.items() if counts[0] != counts[1] and way not in NOT_TRACED}
    assert not missed
