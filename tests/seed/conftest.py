"""The seed's recipes, run as they stand in a folder with a ``config.yaml``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from .. import programs

RECIPES = Path(__file__).parent / "recipes"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder(config: dict[str, Any], tmp_path: Path, observer: psycopg.Connection[Any]) -> Path:
    """A folder with a ``config.yaml`` for a database that has the tables of the recipes."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    observer.execute("CREATE TABLE users (id int, name text)")
    observer.execute("INSERT INTO users VALUES (1, 'Ann'), (2, 'Bob')")
    observer.execute("CREATE TABLE orders (id int, total int)")
    observer.execute("INSERT INTO orders VALUES (7, 42)")
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    """Run a recipe, or code, or a command of ``pgmonkey``, in the folder."""

    def run(
        recipe: str = "", *, before: str = "", code: str = "", command: str = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        if recipe:
            code = (RECIPES / recipe).read_text().replace("/path/to/config.yaml", str(folder / "config.yaml")) + code
        # FastAPI itself deprecates the on_event() of the seed's recipe.
        quiet = "import warnings\nwarnings.filterwarnings('ignore', r'\\s*on_event is deprecated')\n"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        environ |= env or {}
        if before:  # which is not before anything in a process that has imported pgmonkey
            command_line = [sys.executable, "-W", "error", "-c", before + code]
            return subprocess.run(command_line, cwd=folder, env=environ, capture_output=True, text=True, timeout=60)
        if code:
            return programs.run(code=quiet + code, folder=folder, environ=environ)
        module, *arguments = command.split()
        return programs.run(module=module, arguments=arguments, folder=folder, environ=environ)

    return run


@pytest.fixture
def environment(config: dict[str, Any]) -> dict[str, str]:
    """The environment variables of the seed's recipes, for the test's database."""
    settings = config["connection_settings"]
    names = {"PGUSER": "user", "PGPASSWORD": "password", "PGHOST": "host", "PGPORT": "port", "PGDATABASE": "dbname"}
    return {variable: str(settings[key]) for variable, key in names.items()}
