"""``pgmonkey pgconfig check`` and ``show``, which do not connect."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from .commands import SECRET, failed, pgmonkey

BROKEN = """\
connection_type: pool
connection_settings:
  hots: ''
  host: 127.0.0.1
  port: 99999
  prot: '${P}'
  user: '${USER'
  sslpassword: '${X:-y}'
pool_settings:
  max_size: 3
  min_size: 5
  max_szie: 2
  timeout: none
sync_settings:
  work-mem: 3
synk_settings: {}
mine: 1
"""
SAID = [
    "error: config.yaml:3: connection_settings.hots: unknown key ignored; did you mean 'host'?",
    "error: config.yaml:5: connection_settings.port: '99999' is not a port (1 to 65535)",
    "error: config.yaml:6: connection_settings.prot: unknown key ignored; did you mean 'port'?",
    "error: config.yaml:7: connection_settings.user: '${' without a closing '}'",
    "error: config.yaml:8: connection_settings.sslpassword: a default is not allowed for a sensitive key",
    "error: config.yaml:11: pool_settings.min_size: min_size (5) is larger than max_size (3)",
    "error: config.yaml:12: pool_settings.max_szie: unknown key ignored; did you mean 'max_size'?",
    "error: config.yaml:13: pool_settings.timeout: 'none' is not a number of seconds",
    "error: config.yaml:15: sync_settings.work-mem: ",
    "error: config.yaml:16: synk_settings: unknown section; did you mean 'sync_settings'?",
    "warning: config.yaml:17: mine: unknown section ignored",
    "config.yaml: 10 errors, 1 warning; see docs/configuration.md",
]


def test_check_finds_all_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(BROKEN)
    finished = pgmonkey("pgconfig", "check", folder=tmp_path)
    assert (finished.returncode, finished.stderr) == (1, "")
    lines = finished.stdout.splitlines()
    assert len(lines) == len(SAID), finished.stdout
    for line, expected in zip(lines, SAID, strict=True):
        assert line.startswith(expected.partition("; see")[0])
    # The same in the old wrapper, one line further down.
    (tmp_path / "config.yaml").write_text("postgresql:\n" + re.sub("^", "  ", BROKEN, flags=re.MULTILINE))
    wrapped = pgmonkey("pgconfig", "check", folder=tmp_path)
    assert (wrapped.returncode, wrapped.stderr) == (1, "")
    further = [re.sub(r"(?<=yaml:)\d+", lambda number: str(int(number[0]) + 1), line) for line in lines[:10]]
    assert wrapped.stdout.splitlines()[:10] == further
    assert "warning: config.yaml: the top-level 'postgresql:' is deprecated" in wrapped.stdout


CONTRADICTORY = """\
connection_settings:
  conninfo: postgresql://me@db.example.org/shop
  dbname: other
  password: %s
  sslrootcert: ca.pem
  sslcert: me.pem
sync_settings:
  statement_timeout: 30
async_pool_settings:
  max_idle: 7200
"""


def test_check_warns_of_what_is_probably_not_meant(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONTRADICTORY % SECRET)
    path.chmod(0o644)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "config.yaml"], check=True)
    finished = pgmonkey("pgconfig", "check", folder=tmp_path)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert SECRET not in finished.stdout
    for said in (
        ":1: connection_settings.host: sslmode 'prefer', the default, allows a remote connection to be read",
        ":3: connection_settings.dbname: overrides conninfo",
        ":4: connection_settings.password: contains a secret and is world-readable",
        ":4: connection_settings.password: contains a secret and is tracked by git",
        ":5: connection_settings.sslrootcert: with sslmode 'prefer' no certificate is verified",
        ":6: connection_settings.sslcert: a client certificate needs both sslcert and sslkey",
        ":8: sync_settings.statement_timeout: 30 means milliseconds; for seconds write '30s'",
        ":10: async_pool_settings.max_idle: has no effect above max_lifetime (3600 s)",
    ):
        assert f"warning: config.yaml{said}" in finished.stdout
    assert finished.stdout.count("warning: ") == 8
    assert pgmonkey("pgconfig", "check", "--strict", folder=tmp_path).returncode == 1


@pytest.mark.parametrize(
    "text",
    [
        "connection_settings: {host: /run/postgresql, user: me}",
        "connection_settings: {host: 'localhost,127.0.0.1,::1', port: '5432,5433,5434'}",
        "connection_settings: {host: db.example.org, sslmode: verify-full, sslrootcert: system}",
        "connection_settings: {host: '${H}', port: '${P:-x}', password: {from_file: /nowhere}}",
        "connection_settings: {}\npool_settings: {min_size: 2, max_size: '${N}'}",
        "connection_settings: {conninfo: '${DATABASE_URL}'}",
        "connection_settings: {service: shop}",
    ],
)
def test_check_has_nothing_to_say_of_what_is_right(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    finished = pgmonkey("pgconfig", "check", "--strict", folder=tmp_path)
    assert (finished.returncode, finished.stdout) == (0, "config.yaml: no mistakes\n")


def test_check_with_references_resolved_checks_their_values(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("connection_settings:\n  port: '${P:-x}'\n  user: '${NONE_OF_THIS}'\n")
    finished = pgmonkey("pgconfig", "check", "--resolve-env", folder=tmp_path)
    assert finished.returncode == 1
    assert "error: config.yaml:2: connection_settings.port: " in finished.stdout
    assert "config.yaml:3: connection_settings.user: environment variable NONE_OF_THIS is not set" in finished.stdout


def test_check_looks_at_every_profile_and_show_at_one(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "connection_settings:\n  host: 127.0.0.1\nprofiles:\n  reports:\n    connection_settings:\n      hots: x\n"
        "  test:\n    pool_settings:\n      max_size: 0\n"
    )
    finished = pgmonkey("pgconfig", "check", folder=tmp_path)
    assert finished.returncode == 1
    assert "error: config.yaml:6: profiles.reports.connection_settings.hots: unknown key" in finished.stdout
    assert "error: config.yaml:9: profiles.test.pool_settings.max_size: 0 is not" in finished.stdout
    assert finished.stdout.count("error: ") == 2
    one = pgmonkey("pgconfig", "check", "--profile", "reports", folder=tmp_path)
    assert one.stdout.count("error: ") == 1
    (tmp_path / "other.yaml").write_text("profiles: {reports: {connection_settings: {dbname: r}}}")
    given = ["--connconfig", "other.yaml", "--profile", "reports"]
    assert "dbname: r " in pgmonkey("pgconfig", "show", *given, folder=tmp_path).stdout
    assert pgmonkey("pgconfig", "check", *given[:2], folder=tmp_path).returncode == 0


def test_schema_is_that_of_the_library() -> None:
    from pgmonkey._config.json_schema import json_schema

    finished = pgmonkey("pgconfig", "schema")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert json.loads(finished.stdout) == json_schema()


def test_test_refuses_a_misspelt_key_before_it_connects(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("connection_settings:\n  hots: db\n  prot: 1\n")
    failed(
        pgmonkey("pgconfig", "test", folder=tmp_path),
        "config.yaml:2: connection_settings.hots: unknown key ignored; did you mean 'host'? (and 1 more: pgmonkey",
    )


def test_show_tells_where_each_value_comes_from(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text(SECRET)
    (tmp_path / "config.yaml").write_text(
        "connection_type: pool\nconnection_settings:\n  conninfo: postgresql://u@h/shop?pool_max_size=7&command_timeout=5\n"
        "  host: '${H:-db}'\n  port: '${P}'\n  password: {from_file: pw}\nsync_settings:\n  TimeZone: UTC\n"
    )
    environ = {"P": "6543", "H": "", "PGSSLMODE": "require", "PGSSLKEY": SECRET}
    finished = pgmonkey("pgconfig", "show", "--resolve-env", folder=tmp_path, env=environ)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert SECRET not in finished.stdout
    rows = [tuple(line.split(None, 2)) for line in finished.stdout.splitlines() if line.count("  ") > 1]
    for row in (
        ("connection_type:", "pool", "config.yaml:1"),
        ("user:", "u", "config.yaml:3"),
        ("dbname:", "shop", "config.yaml:3"),
        ("host:", "db", "config.yaml:4, default of H"),
        ("port:", "6543", "config.yaml:5, variable P"),
        ("password:", "***REDACTED***", "config.yaml:6, file pw"),
        ("command_timeout:", "5.0", "config.yaml:3"),
        ("sslmode:", "require", "variable PGSSLMODE"),
        ("sslkey:", "***REDACTED***", "variable PGSSLKEY"),
        ("connect_timeout:", "10", "pgmonkey's default"),
        ("timezone:", "UTC", "config.yaml:8"),
        ("max_size:", "7", "config.yaml:3"),
        ("timeout:", "30.0", "default"),
    ):
        assert row in rows, finished.stdout


def test_show_of_a_url_shows_no_password() -> None:
    finished = pgmonkey("pgconfig", "show", "--connconfig", f"postgresql://u:{SECRET}@h:1/d?pool_max_size=3")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert SECRET not in finished.stdout
    assert "the URL" in finished.stdout


def test_nothing_of_a_wrong_url_is_shown(tmp_path: Path) -> None:
    url = f"postgresql://u:{SECRET}@h:1/d?sslmod=require"
    for command in ("check", "show", "test", "dsn", "env", "psql", "generate-code"):
        finished = pgmonkey("pgconfig", command, "--connconfig", url)
        assert finished.returncode == 1
        assert "did you mean 'sslmode'" in finished.stdout + finished.stderr
        assert SECRET not in finished.stdout + finished.stderr


def test_check_does_not_run_what_the_repository_names(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    hook.chmod(0o755)
    subprocess.run(["git", "-C", str(tmp_path), "config", "core.fsmonitor", str(hook)], check=True)
    (tmp_path / "config.yaml").write_text("connection_settings: {password: x}")
    assert pgmonkey("pgconfig", "check", folder=tmp_path, env={"HOME": os.devnull}).returncode == 0
    assert not (tmp_path / "ran").exists()
