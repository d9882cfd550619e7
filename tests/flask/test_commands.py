"""``flask pgmonkey ping``, ``stats`` and ``check``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask

from flask_pgmonkey import PGMonkey


@pytest.fixture
def app(config: dict[str, Any]) -> Flask:
    app = Flask("shop")
    app.config.update(PGMONKEY_CONFIG=config, PGMONKEY_BINDS={"reports": config})
    PGMonkey(app)
    return app


@pytest.fixture
def allowed(observer: psycopg.Connection[Any]) -> int:
    row = observer.execute("SHOW max_connections").fetchone()
    assert row is not None
    return int(row[0]) - 3


def run(app: Flask, *arguments: str) -> tuple[int, str]:
    result = app.test_cli_runner().invoke(args=["pgmonkey", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def test_ping(app: Flask, dbname: str) -> None:
    code, output = run(app, "ping")
    assert code == 0
    line = rf"PostgreSQL \d+\.\d+.*, {dbname} as \w+, answers in \d+\.\d ms"
    assert re.fullmatch(f"default: {line}\nreports: {line}\n", output), output


def test_stats(app: Flask, allowed: int) -> None:
    code, output = run(app, "stats")
    assert code == 0
    head = rf"default: \d+ of {allowed} connections of the server are in use\n  pool_min +1\n  pool_max +4\n"
    assert re.match(head, output)
    assert "reports:" in output


def test_stats_where_the_folder_of_the_live_view_is_somebody_elses(
    app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.setenv("PGMONKEY_LIVE_DIR", str(tmp_path))
    code, output = run(app, "stats")
    assert (code, output.count("pool_max")) == (0, 2)


def test_check(app: Flask, allowed: int) -> None:
    assert run(app, "check") == (
        0,
        f"default: OK; at most 4 connections per process, the server allows {allowed}\n"
        f"reports: OK; at most 4 connections per process, the server allows {allowed}\n",
    )


def test_check_finds_a_pool_that_is_larger_than_the_server(config: dict[str, Any], allowed: int) -> None:
    config["pool_settings"]["max_size"] = 5000
    app = Flask("shop")
    app.config["PGMONKEY_CONFIG"] = config
    PGMonkey(app)
    assert run(app, "check") == (1, f"Error: default: max_size is 5000, but the server allows {allowed} connections\n")


@pytest.mark.parametrize("command", ["ping", "stats", "check"])
def test_a_server_that_refuses_is_one_line(config: dict[str, Any], command: str) -> None:
    config["connection_settings"]["password"] = "letmein"
    app = Flask("shop")
    app.config["PGMONKEY_CONFIG"] = config
    PGMonkey(app)
    code, output = run(app, command)
    assert code == 1
    assert re.fullmatch(r"Error: default: connection failed: .*password authentication failed.*\n", output)
    assert "letmein" not in output


def test_a_wrong_configuration_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "from flask import Flask\nfrom flask_pgmonkey import PGMonkey\n"
        "def create_app():\n"
        "    app = Flask(__name__)\n    app.config.from_prefixed_env()\n    PGMonkey(app)\n    return app\n"
    )
    environ = {**os.environ, "FLASK_PGMONKEY_CONFIG": "nowhere.yaml"}
    flask = [sys.executable, "-m", "flask", "--app", "shop"]
    for arguments in (["pgmonkey", "check"], ["run", "--port", "0"]):
        done = subprocess.run([*flask, *arguments], cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr == (
            f"Error: shop: PGMONKEY_CONFIG: {tmp_path}/nowhere.yaml: cannot read the configuration file: "
            "No such file or directory\n"
        )
