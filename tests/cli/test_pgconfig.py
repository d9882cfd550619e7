"""The command line ``pgmonkey pgconfig``."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg import sql

from .. import programs
from ..conftest import REFUSED
from .commands import SECRET, failed, pgmonkey


def test_the_installed_command_is_the_module() -> None:
    command = Path(sys.executable).with_name("pgmonkey")
    for help_of in ([], ["pgconfig"], ["pgconfig", "test"]):
        installed = subprocess.run([command, *help_of, "--help"], capture_output=True, text=True)
        assert installed.returncode == 0
        module = [sys.executable, "-W", "error", "-m", "pgmonkey", *help_of, "--help"]
        assert installed.stdout == subprocess.run(module, capture_output=True, text=True).stdout


@pytest.mark.parametrize("option", ["--connconfig", "--filepath"])
def test_create_writes_a_private_file_that_loads(option: str, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "config.yaml"
    finished = pgmonkey("pgconfig", "create", "--full", option, path)
    assert finished.returncode == 0
    assert str(path) in finished.stdout
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    config = yaml.safe_load(path.read_text())
    assert config["connection_type"] == "normal"
    assert config["sync_settings"] == config["async_settings"]
    assert config["pool_settings"] == config["async_pool_settings"]
    loaded = programs.run(code=f"import pgmonkey; pgmonkey.load_config({str(path)!r})", folder=tmp_path)
    assert (loaded.returncode, loaded.stderr) == (0, "")


def test_create_leaves_an_existing_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("precious")
    failed(pgmonkey("pgconfig", "create", "--filepath", path), str(path), "exists already")
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "abc"], "--port: 'abc' is not a port (1 to 65535)"),
        (["--max-size", "\u0663"], "connections: not a whole number of at least 1 (--max-size)"),
        (["--url", "--host", "h"], "--host has no effect with --url; leave out one of them"),
        (["--full", "--dbname", "d"], "--dbname has no effect with --full; leave out one of them"),
        (["--host", f"postgresql://u:{SECRET}@h/d"], "--host: a URL or connection string was given; write --url"),
        (["--user", "${X}"], "--user: write '${X}' into the file"),
    ],
)
def test_create_writes_nothing_that_is_wrong(arguments: list[str], said: str, tmp_path: Path) -> None:
    failed(pgmonkey("pgconfig", "create", *arguments, folder=tmp_path), said)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("kind", ["normal", "pool", "async", "async_pool"])
def test_test_connects_as_each_kind(kind: str, config_file: Path, dbname: str) -> None:
    finished = pgmonkey("pgconfig", "test", "--connconfig", config_file, "--connection-type", kind)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert f": {kind}: connected to {dbname} at 127.0.0.1" in finished.stdout
    assert finished.stdout.count("\n") == 1
    assert re.search(r"\(PostgreSQL \S+, no TLS\) in \d+ ms, round trip \d+\.\d ms", finished.stdout)


def test_test_takes_the_kind_from_the_file(config: dict[str, Any], config_file: Path) -> None:
    config_file.write_text(yaml.safe_dump({**config, "connection_type": "async_pool"}))
    assert ": async_pool: " in pgmonkey("pgconfig", "test", "--connconfig", config_file).stdout


@pytest.mark.parametrize("kind", ["normal", "pool", "async", "async_pool"])
def test_test_fails_with_the_servers_reason(kind: str, config: dict[str, Any], config_file: Path) -> None:
    config["connection_settings"]["password"] = SECRET
    config_file.write_text(yaml.safe_dump(config))
    finished = pgmonkey("pgconfig", "test", "--connconfig", config_file, "--connection-type", kind)
    failed(finished, "password authentication failed")


def test_test_fails_when_nobody_listens(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"connection_settings: {{host: 127.0.0.1, port: 1, password: {SECRET}}}")
    finished = pgmonkey("pgconfig", "test", "--connconfig", path)
    failed(finished, 'connection to server at "127.0.0.1", port 1 failed')
    assert re.search(REFUSED, finished.stderr)


@pytest.mark.parametrize("command", ["test", "generate-code"])
def test_a_wrong_file_is_one_line(command: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    failed(pgmonkey("pgconfig", command, "--connconfig", path), str(path), "No such file")
    path.write_text(f"connection_settings:\n  password: [{SECRET}]\n")
    failed(pgmonkey("pgconfig", command, "--connconfig", path), f"{path}:2: connection_settings.password")


def test_references_are_resolved_only_when_asked(config: dict[str, Any], config_file: Path) -> None:
    password = config["connection_settings"]["password"]
    config["connection_settings"]["password"] = "${PGM_PASSWORD:-" + password + "}"
    config_file.write_text(yaml.safe_dump(config))
    command = ["pgconfig", "test", "--connconfig", config_file]
    unresolved = pgmonkey(*command)
    assert unresolved.returncode == 1
    assert "--resolve-env" in unresolved.stderr
    assert unresolved.stderr.count("is taken literally") == 1
    failed(pgmonkey(*command, "--resolve-env"), "sensitive", "--allow-sensitive-defaults")
    assert pgmonkey(*command, "--resolve-env", "--allow-sensitive-defaults").returncode == 0
    failed(pgmonkey(*command, "--resolve-env", env={"PGM_PASSWORD": password}), "--allow-sensitive-defaults")
    config["connection_settings"]["password"] = "${PGM_PASSWORD}"
    config_file.write_text(yaml.safe_dump(config))
    assert pgmonkey(*command, "--resolve-env", env={"PGM_PASSWORD": password}).returncode == 0


def test_the_deprecated_wrapper_warns_in_one_line(config: dict[str, Any], config_file: Path) -> None:
    config_file.write_text(yaml.safe_dump({"postgresql": config}))
    arguments = ["pgconfig", "test", "--connconfig", config_file]
    finished = programs.run(module="pgmonkey", arguments=arguments, folder=Path("/"), flags=())
    assert finished.returncode == 0
    assert finished.stderr.startswith("pgmonkey: warning: ")
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("library", ["pgmonkey", "psycopg"])
@pytest.mark.parametrize("kind", ["normal", "pool", "async", "async_pool"])
def test_generated_code_is_nothing_but_code_and_runs(
    kind: str, library: str, wrapped: bool, config: dict[str, Any], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    settings = config["connection_settings"]
    secret.write_text(settings["password"] + "\n")
    settings["password"] = {"from_file": str(secret)}
    settings["host"] = "${PGM_HOST:-127.0.0.1}"
    settings["user"] = {"from_env": "PGM_USER"}
    config["sync_settings"] = config["async_settings"] = {"search_path": '"a b", public'}
    for section in ("pool_settings", "async_pool_settings"):
        config[section]["check_on_checkout"] = True
    path = tmp_path / "it's config.yaml"
    path.write_text(yaml.safe_dump({"postgresql": config} if wrapped else config))
    environ = {**os.environ, "PGM_USER": "postgres"}
    arguments = ["--connconfig", str(path), "--connection-type", kind, "--library", library, "--resolve-env"]
    command = ["pgconfig", "generate-code", *arguments]
    printed = programs.run(module="pgmonkey", arguments=command, folder=tmp_path, environ=environ, flags=())
    assert printed.returncode == 0, printed.stderr
    assert secret.read_text().strip() not in printed.stdout
    assert ("pgmonkey" in printed.stdout) == (library == "pgmonkey")
    flags = () if wrapped else ("-W", "error")
    finished = programs.run(code=printed.stdout, folder=tmp_path, environ=environ, flags=flags)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "PostgreSQL" in finished.stdout


@pytest.mark.parametrize("library", ["pgmonkey", "psycopg"])
@pytest.mark.parametrize("given", ["URL", "reference", "in the file"])
def test_generated_code_for_a_url_reads_it_when_it_runs(
    library: str, given: str, config: dict[str, Any], tmp_path: Path
) -> None:
    own = config["connection_settings"]
    url = "postgresql+psycopg://{user}:{password}@{host}:{port}/{dbname}?pool_max_size=2".format(**own)
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump({"connection_settings": {"conninfo": url if "file" in given else "${DATABASE_URL}"}})
    )
    environ = {**os.environ, "DATABASE_URL": url}
    arguments = ["--connconfig", url if given == "URL" else path, "--connection-type", "pool", "--library", library]
    command = ["pgconfig", "generate-code", *arguments, *(["--resolve-env"] if given == "reference" else [])]
    printed = programs.run(module="pgmonkey", arguments=command, folder=tmp_path, environ=environ)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert own["password"] not in printed.stdout
    finished = programs.run(code=printed.stdout, folder=tmp_path, environ=environ)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "PostgreSQL" in finished.stdout


@pytest.mark.parametrize(
    "conninfo",
    [
        "postgresql://${PGM_USER}:${PGM_SECRET}@${PGM_HOST:-127.0.0.1}:${PGM_PORT}/postgres?pool_max_size=2",
        "host=${PGM_HOST:-127.0.0.1} port=${PGM_PORT} user='${PGM_USER}' password='${PGM_SECRET}' dbname=postgres",
        "host=127.0.0.1 port=${PGM_PORT} user=${PGM_USER} password='${PGM_START}$${ ${PGM_END:-z}' dbname=postgres",
    ],
)
def test_generated_code_for_a_connection_string_of_several_references(
    conninfo: str, config: dict[str, Any], observer: psycopg.Connection[Any], tmp_path: Path
) -> None:
    own, role, secret = config["connection_settings"], f"odd_{observer.info.dbname}", "a@ü/ %3A$${'\\ "
    if "END" in conninfo:
        secret = "a@${ z"
    role_and_secret = (sql.Identifier(role), sql.Literal(secret))
    observer.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(*role_and_secret))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"connection_settings": {"conninfo": conninfo}}))
    environ = {"PGM_USER": role, "PGM_SECRET": secret, "PGM_PORT": str(own["port"]), "PGM_HOST": "", "PGM_START": "a@"}
    environ = {**os.environ, **environ}
    try:
        arguments = ["--connconfig", path, "--library", "psycopg", "--resolve-env", "--allow-sensitive-defaults"]
        command = ["pgconfig", "generate-code", *arguments]
        printed = programs.run(module="pgmonkey", arguments=command, folder=tmp_path, environ=environ)
        assert (printed.returncode, printed.stderr) == (0, "")
        assert secret not in printed.stdout
        finished = programs.run(code=printed.stdout, folder=tmp_path, environ=environ)
        assert (finished.returncode, finished.stderr) == (0, "")
        assert "PostgreSQL" in finished.stdout
    finally:
        observer.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_generated_code_does_not_guess_where_a_password_is(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("connection_settings: {conninfo: '${PGM_PLACE} ${PGM_USER}'}")
    environ = {"PGM_PLACE": "host=127.0.0.1", "PGM_USER": f"user=u password={SECRET}"}
    command = ["pgconfig", "generate-code", "--connconfig", path, "--library", "psycopg", "--resolve-env"]
    failed(pgmonkey(*command, env=environ), "'password' in 'conninfo' to be a reference of its own")


def test_a_url_is_a_configuration_and_never_shown(config: dict[str, Any]) -> None:
    own = config["connection_settings"]
    url = "postgres://{user}:{password}@{host}:{port}/{dbname}".format(**own)
    finished = pgmonkey("pgconfig", "test", "--connconfig", url, "--connection-type", "pool")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith("URL: pool: connected to")
    assert own["password"] not in finished.stdout
    failed(pgmonkey("pgconfig", "test", "--connconfig", f"postgresql://u:{SECRET}@127.0.0.1:1/d"), "port 1 failed")
    failed(pgmonkey("pgconfig", "test", "--connconfig", f"postgresql://u:@{SECRET}@127.0.0.1:1/d"), "more than one '@'")
    failed(pgmonkey("pgconfig", "create", "--connconfig", f"postgresql://u:{SECRET}@h/d"), "give a path")


def test_generated_code_holds_no_literal_secret(config_file: Path, config: dict[str, Any]) -> None:
    finished = pgmonkey("pgconfig", "generate-code", "--connconfig", config_file, "--library", "psycopg")
    assert config["connection_settings"]["password"] not in finished.stdout
    ran = programs.run(code=finished.stdout, folder=Path("/"))
    assert "PostgreSQL" in ran.stdout, json.dumps(ran.stderr)


@pytest.mark.parametrize("kind", ["normal", "async_pool"])
@pytest.mark.parametrize(
    "parameters",
    [
        *({"options": f"-c app.token={SECRET}"}, {"app.api_token": SECRET}, {"app.key": "${PGM_KEY}"}),
        {"app.key": {"from_env": "PGM_KEY"}},
    ],
)
def test_generated_code_holds_no_secret_parameter(
    kind: str, parameters: dict[str, Any], config: dict[str, Any], tmp_path: Path
) -> None:
    config["connection_settings"] |= {key: value for key, value in parameters.items() if key == "options"}
    config["sync_settings"] = config["async_settings"] = {
        "app.plain": "seen",
        **{key: value for key, value in parameters.items() if key != "options"},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    given = ["--library", "psycopg", "--resolve-env", "--connection-type", kind, "--connconfig", path]
    printed = pgmonkey("pgconfig", "generate-code", *given, env={"PGM_KEY": SECRET})
    assert (printed.returncode, printed.stderr) == (0, "")
    assert SECRET not in printed.stdout
    assert "# PGOPTIONS, which libpq reads, is to hold the options and parameters" in printed.stdout
    code = printed.stdout.replace("SELECT version();", "SHOW app.plain")
    ran = programs.run(code=code, folder=tmp_path, environ={**os.environ, "PGOPTIONS": "-c app.plain=PostgreSQL"})
    assert "PostgreSQL" in ran.stdout, json.dumps(ran.stderr)


@pytest.mark.parametrize("library", ["pgmonkey", "psycopg"])
def test_a_profile_is_chosen(library: str, config: dict[str, Any], tmp_path: Path) -> None:
    own = config["connection_settings"]
    secret = own.pop("password")
    reports = {"connection_settings": {"password": secret, "application_name": "reports"}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**config, "profiles": {"a'b": reports}}))
    arguments = ["--connconfig", path, "--profile", "a'b"]
    tested = pgmonkey("pgconfig", "test", *arguments)
    assert (tested.returncode, tested.stderr) == (0, "")
    printed = pgmonkey("pgconfig", "generate-code", *arguments, "--library", library)
    assert secret not in printed.stdout
    code = printed.stdout.replace("SELECT version();", "SELECT 'PostgreSQL ' || current_setting('application_name');")
    ran = programs.run(code=code, folder=tmp_path)
    assert "PostgreSQL reports" in ran.stdout, json.dumps(ran.stderr)
    failed(pgmonkey("pgconfig", "test", "--connconfig", path, "--profile", "a'c"), "profiles: there is no profile")
