"""The README's configuration and table, which the other pages build on."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from .. import programs

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """Return the README's section *title*."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.fixture
def folder(environ: dict[str, str], tmp_path: Path) -> Path:
    """A folder with the README's ``config.yaml``, for a database with its table."""
    (tmp_path / "config.yaml").write_text(blocks(section("Install"), "yaml")[0])
    (code,) = blocks(section("Install"), "python")
    assert run(tmp_path, environ, code) == ""
    return tmp_path


@pytest.fixture
def environ(config: dict[str, Any]) -> dict[str, str]:
    settings = config["connection_settings"]
    names = {"PGUSER": "user", "PGPASSWORD": "password", "PGHOST": "host", "PGPORT": "port", "PGDATABASE": "dbname"}
    return {**os.environ, **{variable: str(settings[key]) for variable, key in names.items()}}


def run(folder: Path, environ: dict[str, str], code: str) -> str:
    (folder / "program.py").write_text(code)
    finished = programs.run(code=code, file="program.py", folder=folder, environ=environ)
    assert (finished.returncode, finished.stderr) == (0, ""), finished.stderr
    return finished.stdout
