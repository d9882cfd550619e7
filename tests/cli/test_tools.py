"""``pgmonkey pgconfig dsn``, ``env`` and ``psql``, and what ``test`` does while the server is away."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from ..conftest import ON_CI
from .commands import SECRET, failed, pgmonkey

ODD = {
    "host": "h1,::1,/run/pg sql",
    "port": "1,2,3",
    "user": "a:b@c/d",
    "password": SECRET + "%/@: 'x\"",
    "dbname": "d b?&=",
    "options": "-c a=b\\ c",
    "keepalives_idle": "7",
    "sslrootcert": "/ca dir/root.pem",
}


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"connection_settings": ODD}))
    return tmp_path


def test_dsn_is_what_libpq_reads_back(odd: Path) -> None:
    printed = pgmonkey("pgconfig", "dsn", "--with-password", folder=odd)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert conninfo_to_dict(printed.stdout.strip()) == ODD
    without = pgmonkey("pgconfig", "dsn", folder=odd).stdout
    assert conninfo_to_dict(without.strip()) == {key: value for key, value in ODD.items() if key != "password"}
    assert SECRET not in without
    assert pgmonkey("pgconfig", "dsn", "--driver", "psycopg", folder=odd).stdout.startswith("postgresql+psycopg://")


def test_options_with_a_secret_are_printed_when_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"connection_settings: {{host: h, options: -c app.token={SECRET}}}\n")
    for command in ("dsn", "env"):
        assert SECRET not in pgmonkey("pgconfig", command, folder=tmp_path).stdout
        assert SECRET in pgmonkey("pgconfig", command, "--with-password", folder=tmp_path).stdout


@pytest.mark.parametrize("command", ["dsn", "env", "psql"])
def test_an_unresolved_reference_is_no_use_to_other_tools(command: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("connection_settings: {host: h, user: '${PGM_WHO:-me}'}\n")
    refused = pgmonkey("pgconfig", command, folder=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "config.yaml: user is a reference; pass --resolve-env to resolve it" in refused.stderr
    if command != "psql":
        assert "me" in pgmonkey("pgconfig", command, "--resolve-env", folder=tmp_path).stdout


def test_env_is_what_a_shell_reads_back(odd: Path) -> None:
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    printed = pgmonkey("pgconfig", "env", "--with-password", folder=odd)
    (odd / "env.sh").write_text(printed.stdout)
    command = ["sh", "-c", '. ./env.sh; exec "$@"', "sh", sys.executable, "-c", program]
    seen = json.loads(subprocess.run(command, cwd=odd, capture_output=True, text=True, check=True).stdout)
    expected = {"PGUSER": "user", "PGPASSWORD": "password", "PGHOST": "host", "PGSSLROOTCERT": "sslrootcert"}
    assert {name: seen[name] for name in expected} == {name: ODD[key] for name, key in expected.items()}
    assert SECRET not in pgmonkey("pgconfig", "env", folder=odd).stdout
    given = pgmonkey("pgconfig", "env", "--", sys.executable, "-c", program, folder=odd)
    seen = json.loads(given.stdout)
    assert {name: seen[name] for name in expected} == {name: ODD[key] for name, key in expected.items()}
    assert conninfo_to_dict(seen["DATABASE_URL"]) == ODD
    failed(pgmonkey("pgconfig", "env", "--", "no-such-program", folder=odd), "no program 'no-such-program' on the PATH")


def test_psql_gets_no_secret_as_an_argument(odd: Path) -> None:
    program = odd / "psql"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"; echo "$PGPASSWORD" > password\n')
    program.chmod(0o755)
    environ = {"PATH": f"{odd}:{os.environ['PATH']}"}
    finished = pgmonkey("pgconfig", "psql", "--", "-c", "SELECT 1", folder=odd, env=environ)
    assert finished.stdout.splitlines() == ["--dbname", "keepalives_idle=7", "-c", "SELECT 1"]
    assert (odd / "password").read_text() == ODD["password"] + "\n"
    failed(pgmonkey("pgconfig", "psql", folder=odd, env={"PATH": "/nowhere"}), "PostgreSQL's client programs")


def test_json(config_file: Path, dbname: str) -> None:
    finished = pgmonkey("pgconfig", "test", "--connconfig", config_file, "--connection-type", "all", "--json")
    assert (finished.returncode, finished.stderr) == (0, "")
    report = json.loads(finished.stdout)
    assert report["configuration"] == str(config_file)
    kinds = [(each["kind"], each["pool_max"], each["held"]) for each in report["connections"]]
    assert kinds == [("normal", 1, 1), ("pool", 4, 2), ("async", 1, 1), ("async_pool", 4, 2)]
    for each in report["connections"]:
        assert (each["dbname"], each["user"], each["tls"]) == (dbname, "postgres", None)
        assert each["round_trip_ms"] > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"password": SECRET}, "check user and password"),
        ({"dbname": "nowhere_at_all"}, "create it with createdb"),
        ({"port": 1}, "in a container, 127.0.0.1 is the container itself"),
        ({"sslmode": "require"}, "or use sslmode 'prefer'"),
        ({"host": "no-such-host.invalid"}, "check the spelling of host"),
    ],
)
def test_a_failure_names_the_next_step(
    change: dict[str, Any], said: str, config: dict[str, Any], tmp_path: Path
) -> None:
    config["connection_settings"].update(change)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    failed(pgmonkey("pgconfig", "test", folder=tmp_path), said, "see docs/errors.md#serverunavailableerror")
    finished = pgmonkey("pgconfig", "test", "--json", folder=tmp_path)
    assert (finished.returncode, finished.stderr) == (1, "")
    assert said in json.loads(finished.stdout)["next_step"]
    assert SECRET not in finished.stdout


def test_wait_is_for_a_server_that_comes(config: dict[str, Any], tmp_path: Path) -> None:
    settings = config["connection_settings"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # Bound and not listening: refused until the relay is there.
        path = tmp_path / "config.yaml"
        own = {**settings, "port": listener.getsockname()[1]}
        path.write_text(yaml.safe_dump({"connection_settings": own}))
        relay = threading.Timer(2, _relay, [listener, settings["port"]])
        relay.daemon = True
        relay.start()
        finished = pgmonkey("pgconfig", "test", "--wait", "60", folder=tmp_path)
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr.startswith("waiting for at most 60 s: ")
        assert finished.stderr.count("\n") == 1
        assert "connected to" in finished.stdout
        relay.join(20)


def _relay(listener: socket.socket, port: int) -> None:
    """Let one connection through."""
    listener.listen()
    inner, _ = listener.accept()
    outer = socket.create_connection(("127.0.0.1", port))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        while block := source.recv(65536):
            sink.sendall(block)
        sink.shutdown(socket.SHUT_WR)

    back = threading.Thread(target=pump, args=[outer, inner], daemon=True)
    back.start()
    with inner, outer:
        pump(inner, outer)
        back.join(10)


def test_waiting_does_not_help_against_a_wrong_password(config: dict[str, Any], tmp_path: Path) -> None:
    config["connection_settings"]["password"] = SECRET
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    # Far above the time limit of the test: it would be exceeded.
    failed(pgmonkey("pgconfig", "test", "--wait", "3600", folder=tmp_path), "password authentication failed")


def test_psql_connects(config_file: Path, dbname: str, observer: psycopg.Connection[Any]) -> None:
    if shutil.which("psql") is None and not ON_CI:
        pytest.skip("no psql here; Debian: apt install postgresql-client")
    words = ["--connconfig", config_file, "--", "-Atc", "SELECT current_database()"]
    finished = pgmonkey("pgconfig", "psql", *words)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, f"{dbname}\n", "")
