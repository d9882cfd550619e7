"""Places in the program, which errors and log records name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import programs
from ..configs import pools

RELEASE = """
import json, os, sys
import psycopg
from pgmonkey import Database, PoolTimeoutError
os.rmdir(os.getcwd())
database = Database(json.loads(sys.argv[1]))
def refused():
    with database.transaction():
        database.execute("SELECT no_such_column")
try:
    refused()
except psycopg.errors.UndefinedColumn:
    print("told")
with database.connection():
    try:
        database.fetch_one("SELECT 1")
    except PoolTimeoutError as error:
        print(error)
"""


def test_errors_are_told_where_the_working_directory_is_gone(config: dict[str, Any], tmp_path: Path) -> None:
    release = tmp_path / "release"
    release.mkdir()
    given = json.dumps(pools(config, max_size=1, timeout=0.5))
    ran = programs.run(code=RELEASE, file="/opt/shop.py", arguments=[given], folder=release)
    assert (ran.returncode, ran.stderr) == (0, "")
    told, busy = ran.stdout.splitlines()
    assert told == "told"
    assert "at /opt/shop.py:14" in busy


def test_places_below_the_working_directory_are_relative(config: dict[str, Any], tmp_path: Path) -> None:
    given = json.dumps(pools(config, max_size=1, timeout=0.5))
    for file, shown in (("below/shop.py", "at below/shop.py:14"), ("/opt/shop.py", "at /opt/shop.py:14")):
        code = RELEASE.replace("os.rmdir(os.getcwd())", "")
        ran = programs.run(code=code, file=file, arguments=[given], folder=tmp_path)
        assert shown in ran.stdout, ran.stderr
