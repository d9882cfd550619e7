"""References to the environment and to files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pgmonkey import ConfigError, EnvInterpolationError, PGConnectionManager, load_config


def load(folder: Path, text: str, **options: Any) -> dict[str, Any]:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    settings: dict[str, Any] = load_config(path, resolve_env=True, **options)["connection_settings"]
    return settings


def test_variables_and_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGM_USER", "ann")
    monkeypatch.delenv("PGM_HOST", raising=False)
    text = "connection_settings: {user: 'x-${PGM_USER}-${PGM_USER}', host: '${PGM_HOST:-local:-host}'}"
    assert load(tmp_path, text) == {"user": "x-ann-ann", "host": "local:-host"}


def test_an_empty_variable_has_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGM_EMPTY", "")
    text = "connection_settings: {host: '${PGM_EMPTY:-default}', password: '${PGM_EMPTY}', dbname: 'x${PGM_EMPTY:-}'}"
    assert load(tmp_path, text) == {"host": "default", "password": "", "dbname": "x"}
    text = "connection_settings: {}\npool_settings: {max_size: '${PGM_EMPTY:-10}'}"
    (tmp_path / "pool.yaml").write_text(text)
    assert load_config(tmp_path / "pool.yaml", resolve_env=True)["pool_settings"] == {"max_size": "10"}


@pytest.mark.parametrize(
    "settings",
    [
        *("{dbname: '${PGM_EMPTY}'}", "{dbname: 'app_${PGM_EMPTY}'}", "{host: {from_env: PGM_EMPTY}}"),
        *("{host: ['${PGM_EMPTY}', b]}", "{conninfo: '${PGM_EMPTY}'}", "{conninfo: 'host=h dbname=${PGM_EMPTY}'}"),
        *("{conninfo: 'postgresql://u:${PGM_EMPTY}@h/${PGM_EMPTY}'}", "{conninfo: 'postgresql://u@${PGM_EMPTY}/d'}"),
    ],
)
def test_a_variable_that_is_set_to_nothing_names_no_database(
    settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGM_EMPTY", "")
    with pytest.raises(EnvInterpolationError, match=r":1: connection_settings\..*PGM_EMPTY is empty.*; set it"):
        load(tmp_path, f"connection_settings: {settings}")


@pytest.mark.parametrize("key", ["dbname", "host", "port", "user", "service", "conninfo"])
def test_an_empty_secret_file_names_no_database(key: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    expected = (
        rf":1: connection_settings\.{key}: the secret file 'empty' is empty \(from_file\); write the value into it"
    )
    with pytest.raises(EnvInterpolationError, match=expected):
        load(tmp_path, f"connection_settings: {{{key}: {{from_file: empty}}}}")


def test_a_secret_file_may_be_a_path() -> None:
    with pytest.raises(EnvInterpolationError, match="cannot read the secret file '/no/such'"):
        load_config({"connection_settings": {"password": {"from_file": Path("/no/such")}}}, resolve_env=True)


def test_one_advice_for_a_missing_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGM_X", raising=False)
    with pytest.raises(EnvInterpolationError, match=r"PGM_X is not set; set it$"):
        load(tmp_path, "connection_settings: {password: '${PGM_X}'}")
    with pytest.raises(
        EnvInterpolationError, match=r"PGM_X is not set; set it, or give a default: \${PGM_X:-default}$"
    ):
        load(tmp_path, "connection_settings: {host: '${PGM_X}'}")
    verdicts = []
    for value in (None, "set"):
        if value:
            monkeypatch.setenv("PGM_X", value)
        with pytest.raises(EnvInterpolationError) as error:
            load(tmp_path, "connection_settings: {password: '${PGM_X:-dev}'}")
        verdicts.append(str(error.value))
    assert verdicts[0] == verdicts[1]


@pytest.mark.parametrize("secret", ["S3cr@t", "a/b", "a%41b", "a#?b", "a b'c\\", "a:b", "&=+", "${HOME}", "é", ""])
@pytest.mark.parametrize(
    "conninfo",
    [
        "postgresql://u:${PGM_SECRET}@${PGM_HOST}:${PGM_PORT}/d?application_name=x",
        "postgresql+psycopg://u:${PGM_SECRET}@${PGM_HOST}:${PGM_PORT}/d?${PGM_MORE}",
        "postgresql://${PGM_HOST}:${PGM_PORT}/d?user=u&password=${PGM_SECRET}&${PGM_MORE}",
        "password=${PGM_SECRET} user=u host=${PGM_HOST} port=${PGM_PORT} dbname=d ${PGM_WORD}",
        "user=u host='${PGM_HOST}' port='${PGM_PORT}' password = '${PGM_SECRET}' dbname=d ${PGM_WORD}",
    ],
)
def test_what_a_reference_puts_into_a_connection_string_is_one_value(
    conninfo: str, secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"PGM_SECRET": secret, "PGM_HOST": "h-1.example,[::1]", "PGM_PORT": "1", "PGM_MORE": "application_name=x"}
    for name, value in {**values, "PGM_WORD": "application_name=x"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "config.yaml").write_text(f'connection_settings:\n  conninfo: "{conninfo}"\n')
    connect = PGConnectionManager().load(tmp_path / "config.yaml", resolve_env=True).connect
    hosts = connect["host"].replace("[", "").replace("]", "")
    assert (hosts, connect.get("password", "")) == ("h-1.example,::1", secret)
    assert (connect["user"], connect["dbname"], connect["application_name"]) == ("u", "d", "x")


def test_a_whole_url_from_a_variable_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGM_URL", "postgres://u:p%40x@h:5/d?pool_max_size=3&command_timeout=2&sslmode=require")
    path = tmp_path / "config.yaml"
    path.write_text("connection_settings: {conninfo: '${PGM_URL}'}\npool_settings: {min_size: 1}")
    config = PGConnectionManager().load(path, resolve_env=True)
    expected = {"user": "u", "password": "p@x", "host": "h", "port": "5", "dbname": "d", "sslmode": "require"}
    assert config.connect == expected
    assert config.arguments == {"command_timeout": 2}
    assert (config.pool_settings.max_size, config.pool_settings.min_size, config.async_pool_settings.max_size) == (
        3,
        1,
        3,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pa$${ss", "pa${ss"),
        ("pa$${HOME}ss", "pa${HOME}ss"),
        ("$$x$", "$$x$"),
        ("$$$${", "$${"),
        ("$$${PGM_A}", "$one"),
        ("$${${PGM_A}}", "${one}"),
    ],
)
def test_two_dollars_stand_for_one(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PGM_A", "one")
    assert load(tmp_path, f"connection_settings: {{password: '{text}'}}") == {"password": expected}
    assert not caplog.records


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("connection_settings.pgbouncer", "true", True),
        ("connection_settings.autocommit", "OFF", False),
        ("connection_settings.prepare_threshold", "0", 0),
        ("connection_settings.command_timeout", "2.5", 2.5),
        ("connection_settings.keepalives", "no", "0"),
        ("pool_settings.check_on_checkout", "yes", True),
        ("pool_settings.close_returns", "0", False),
        ("pool_settings.clean_on_return", "always", "always"),
        ("pool_settings.open", "1", True),
        ("pool_settings.max_size", "7", 7),
    ],
)
def test_every_setting_can_come_from_the_environment(
    key: str, text: str, expected: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGM_A", text)
    section, name = key.split(".")
    values: dict[str, dict[str, str]] = {"connection_settings": {}, section: {name: "${PGM_A}"}}
    config = PGConnectionManager().load(values, resolve_env=True)
    assert {**config.connect, **config.arguments, **vars(config.pool_settings)}[name] == expected


def test_what_is_not_utf_8_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environb, b"PGM_A", b"m\xfcller")
    for value in ("'${PGM_A}'", "{from_env: PGM_A}"):
        with pytest.raises(EnvInterpolationError, match="PGM_A is not UTF-8"):
            load(tmp_path, f"connection_settings: {{password: {value}}}")
    with pytest.raises(ConfigError, match=r"connection_settings.password: the value holds .* UTF-8"):
        load_config({"connection_settings": {"password": os.environ["PGM_A"]}})


def test_from_file_starts_at_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_bytes(b"\xef\xbb\xbfhunter2\n")
    monkeypatch.chdir("/")
    assert load(tmp_path, "connection_settings: {password: {from_file: secret}}") == {"password": "hunter2"}


def test_a_value_is_not_resolved_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGM_A", "${PGM_B}")
    assert load(tmp_path, "connection_settings: {password: '${PGM_A}'}") == {"password": "${PGM_B}"}


def test_references_inside_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGM_A", "one")
    assert load(tmp_path, "connection_settings: {host: ['${PGM_A}', two]}") == {"host": ["one", "two"]}


@pytest.mark.parametrize(
    ("content", "expected"), [("s\n", "s"), ("s\r\n", "s"), ("s", "s"), ("s\n\n", "s\n"), (" s \n", " s "), ("", "")]
)
def test_from_file_trims_the_newline_at_the_end(content: str, expected: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(content.encode())
    text = f"connection_settings: {{password: {{from_file: {secret}}}}}"
    assert load(tmp_path, text) == {"password": expected}


def test_sensitive_defaults_can_be_allowed(tmp_path: Path) -> None:
    text = "connection_settings: {password: '${PGM_UNSET:-dev}'}"
    assert load(tmp_path, text, allow_sensitive_defaults=True) == {"password": "dev"}
