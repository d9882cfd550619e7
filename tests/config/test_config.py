"""Configuration: what loads, what is refused, and how it says so."""

from __future__ import annotations

import enum
import io
import ipaddress
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydantic
import pytest

from pgmonkey import AsyncDatabase, ConfigError, Database, EnvInterpolationError, PGConnectionManager, load_config
from pgmonkey._config.blueprint import blueprint

GOOD = "connection_settings:\n  host: db.example\n  password: hunter2\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# Name, value of connection_settings.password, and what the error must hold; all with resolve_env.
REFERENCES: list[tuple[str, Any, list[str]]] = [
    ("unclosed", "'${PGM_X'", ["closing"]),
    ("empty", "'${}'", ["not a variable reference"]),
    ("no name", "'${:-x}'", ["not a variable reference"]),
    ("bad name", "'${s3cret-B}'", ["not a variable reference", "$${"]),
    ("nested", "'${PGM_X:-${PGM_Y}}'", ["nested"]),
    ("missing", "'${PGM_X}'", ["PGM_X", "not set"]),
    ("sensitive default", "'${PGM_X:-s3cret}'", ["sensitive", "set PGM_X", "allow_sensitive_defaults"]),
    ("sensitive default, set", "'${HOME:-s3cret}'", ["sensitive", "set HOME", "allow_sensitive_defaults"]),
    ("from_env missing", "{from_env: PGM_X}", ["PGM_X", "not set"]),
    ("from_env not a name", "{from_env: 'a b'}", ["what from_env names is not the name"]),
    ("from_env not text", "{from_env: 5}", ["from_env", "int"]),
    ("from_env empty", "{from_env: ''}", ["from_env", "non-empty"]),
    ("two references", "{from_env: A, from_file: B}", ["stand alone"]),
    ("from_file missing", "{from_file: /nowhere/secret}", ["/nowhere/secret", "No such file"]),
    ("from_file directory", "{from_file: /}", ["'/'", "Is a directory"]),
    ("from_file binary", "{from_file: BINARY}", ["not UTF-8"]),
    ("from_file device", "{from_file: /dev/zero}", ["'/dev/zero'", "not a regular file"]),
    ("from_file FIFO", "{from_file: FIFO}", ["not a regular file"]),
    ("from_file large", "{from_file: LARGE}", ["larger than 64 KiB"]),
    ("from_file NUL", '{from_file: "a\\0b"}', ["not a valid path"]),
]


@pytest.mark.parametrize(("value", "parts"), [row[1:] for row in REFERENCES], ids=[row[0] for row in REFERENCES])
def test_a_malformed_reference_gets_one_clear_error(value: str, parts: list[str], tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large").write_bytes(b"x" * 70_000)
    os.mkfifo(tmp_path / "fifo")
    for name in ("binary", "large", "fifo"):
        value = value.replace(name.upper(), str(tmp_path / name))
    path = write(tmp_path, f"connection_settings:\n  password: {value}\n")
    with pytest.raises(EnvInterpolationError) as caught:
        load_config(path, resolve_env=True)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: connection_settings.password: ")
    assert "s3cret" not in message
    for part in parts:
        assert part in message
    assert caught.value.__cause__ is None


def test_an_unreadable_secret_file_is_named(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0)
    config = {"connection_settings": {"password": {"from_file": str(secret)}}}
    effective = os.geteuid()
    if effective == 0:
        os.seteuid(65534)  # root may read every file
    try:
        with pytest.raises(EnvInterpolationError, match=r"secret.*Permission denied"):
            PGConnectionManager().load(config, resolve_env=True)
    finally:
        os.seteuid(effective)


@pytest.mark.parametrize("name", ["missing.yaml", "", "a\0b"])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    path = str(tmp_path / name)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/urandom", "FIFO"])
def test_a_file_that_never_ends_is_refused(path: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "FIFO")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_config(tmp_path / path)
    (tmp_path / "large.yaml").write_text("#" * 70_000)
    with pytest.raises(ConfigError, match="larger than 64 KiB"):
        load_config(tmp_path / "large.yaml")


def test_carriage_returns_and_a_byte_order_mark_load(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_config(path) == {"connection_settings": {"host": "db.example", "password": "hunter2"}}


def test_anchors_and_merge_keys_load(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "pool_settings: &p {max_size: 3}\nasync_pool_settings:\n  <<: *p\n  timeout: 2\n")
    assert load_config(path)["async_pool_settings"] == {"max_size": 3, "timeout": 2}


def test_a_section_for_others_may_stand_beside_the_deprecated_wrapper(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, "postgresql:\n  connection_settings: {host: a}\nlogging: {level: 1}\n")
    with pytest.warns(DeprecationWarning, match="'postgresql:' is deprecated"):
        assert PGConnectionManager().load(path).connect == {"host": "a"}
    assert [record.getMessage() for record in caplog.records] == [f"{path}:3: logging: unknown section ignored"]


def test_the_deprecated_wrapper_loads_with_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path, "postgresql:\n  connection_settings:\n    host: a\n    prot: 1\n")
    with pytest.warns(DeprecationWarning, match="'postgresql:' is deprecated"):
        assert load_config(path) == {"connection_settings": {"host": "a", "prot": 1}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("connection_settings: {pasword: x}", ":1: connection_settings.pasword: .* did you mean 'password'"),
        ("connection_settings: {target_sesion_attrs: any}", "did you mean 'target_session_attrs'"),
        ("connection_settings: {}\npool_settings:\n  max_sise: 3", ":3: pool_settings.max_sise: .*'max_size'"),
        ("connection_settings: {zzz: 1}", ":1: connection_settings.zzz: unknown key ignored$"),
        ("connection_settings: {}\nlogging: {level: 1}", ":2: logging: unknown section ignored$"),
        ("connection_settings: {}\napp_settings: {a: 1}", "app_settings: unknown section ignored; did you mean"),
    ],
)
def test_an_unknown_key_warns_with_its_place(
    text: str, expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_config(write(tmp_path, text))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.name == "pgmonkey"
    import re

    assert re.search(expected, record.getMessage())


def test_a_literal_reference_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_config(write(tmp_path, "connection_settings: {host: '${PGHOST:-localhost}', port: '${PGPORT}'}"))
    assert all("resolve_env=True" in record.getMessage() for record in caplog.records)
    assert len(caplog.records) == 2


# Values of keywords for which libpq has no default and which are not any text.
VALUES = {
    "sslmode": "require",
    "port": "5433",
    "gsslib": "gssapi",
    "sslcertmode": "allow",
    **dict.fromkeys(("min_protocol_version", "max_protocol_version"), "3.2"),
    "ssl_max_protocol_version": "TLSv1.3",
}


def test_every_libpq_keyword_is_accepted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from psycopg import pq

    for option in pq.Conninfo.get_defaults():
        keyword = option.keyword.decode()
        value = VALUES.get(keyword, (option.val or b"1").decode())
        write(tmp_path, f"connection_settings:\n  {keyword}: '{value}'\n")
        config = PGConnectionManager().load(tmp_path / "config.yaml")
        assert config.connect == {keyword: value}
    assert not caplog.records


def test_every_psycopg_pool_parameter_is_accepted(caplog: pytest.LogCaptureFixture) -> None:
    import inspect

    from psycopg_pool import ConnectionPool

    from pgmonkey._config.schema import PoolSettings

    parameters = set(inspect.signature(ConnectionPool.__init__).parameters) - {"self", "conninfo"}
    assert parameters - set(PoolSettings.__dataclass_fields__) == set()


# Key, and what stands behind it in the file without quotes.
WRITTEN = [
    *(("password", text) for text in ("0123456", "0x1F", "1_000", "12:30:45", "1.10", "1.0e+5", "yes", "Off", "true")),
    *(("password", text) for text in ("2026-01-01", "2026-02-30", "=", "+5", "0o17", ".5", "1e3", "0b11", "False")),
    *(("password", text) for text in ("9" * 5000, "1.00000000000000000001", "-0", "1.0", "5432", ".inf", ".NaN")),
    *(("dbname", "no"), ("dbname", "007"), ("user", "on"), ("user", "0b11"), ("host", "true"), ("port", "05432")),
    *(
        ("password", "<<"),
        ("application_name", "1.20"),
        ("options", "false"),
        ("sslcert", "1:1"),
        ("tcp_user_timeout", "010"),
    ),
]


@pytest.mark.parametrize(("key", "text"), WRITTEN, ids=[f"{key} {text[:12]}" for key, text in WRITTEN])
def test_a_text_without_quotes_is_what_is_written(key: str, text: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"connection_settings:\n  {key}: {text}\nsync_settings: {{a.b: {text}}}\n")
    config = PGConnectionManager().load(path)
    assert config.connect == {key: text}
    assert config.sync_settings == {"a.b": text}
    # Also when a program passes on what it has read.
    assert PGConnectionManager().load(load_config(path)).connect == {key: text}


def test_numbers_and_booleans_are_still_values(tmp_path: Path) -> None:
    text = "pool_settings: {max_size: 007, timeout: 1.5, check_on_checkout: on, close_returns: 'False', min_size: 2}\n"
    path = write(tmp_path, "connection_settings: {keepalives: yes, sslsni: off, pgbouncer: 'no', port: 5432}\n" + text)
    config = PGConnectionManager().load(path)
    assert config.connect == {"keepalives": "1", "sslsni": "0", "port": "5432"}
    assert config.arguments == {"pgbouncer": False}
    pool = config.pool_settings
    assert (pool.max_size, pool.timeout, pool.check_on_checkout, pool.close_returns) == (7, 1.5, True, False)
    loaded = load_config(path)
    assert loaded["connection_settings"] == {"keepalives": True, "sslsni": False, "pgbouncer": False, "port": 5432}
    assert loaded["pool_settings"]["check_on_checkout"] is True
    assert loaded["pool_settings"]["min_size"] == 2


def test_numbers_may_have_blanks_around_them_as_for_libpq() -> None:
    settings = {"port": "5432 ", "connect_timeout": " 3", "host": "a,b"}
    config = PGConnectionManager().load({"connection_settings": settings})
    assert config.connect == {"port": "5432", "connect_timeout": "3", "host": "a,b"}


def test_objects_that_stand_for_texts_are_taken() -> None:
    settings = {
        "host": [ipaddress.ip_address("127.0.0.1"), Path("/tmp")],
        "sslrootcert": Path("/etc/ca.pem"),
        "password": pydantic.SecretStr("hunter2"),
        "passfile": Path("/tmp/none"),
    }
    config = PGConnectionManager().load({"connection_settings": settings})
    assert config.connect == {
        "host": "127.0.0.1,/tmp",
        "sslrootcert": "/etc/ca.pem",
        "password": "hunter2",
        "passfile": "/tmp/none",
    }
    with pytest.raises(ConfigError, match=r"connection_settings.dbname: expected text or a number, found \w*PosixPath"):
        load_config({"connection_settings": {"dbname": Path("shop")}})


def test_a_member_of_an_enumeration_stands_for_its_value() -> None:
    class Name(str, enum.Enum):
        SHOP = "shop"
        REQUIRE = "require"
        POOL = "pool"

    class Number(enum.IntEnum):
        PORT = 6432

    settings = {"dbname": Name.SHOP, "sslmode": Name.REQUIRE, "port": Number.PORT}
    values = {"connection_type": Name.POOL, "connection_settings": settings, "sync_settings": {"app.a": Name.SHOP}}
    config = PGConnectionManager().load(values)
    assert config.connect == {"dbname": "shop", "sslmode": "require", "port": "6432"}
    assert (config.kind, config.sync_settings) == ("pool", {"app.a": "shop"})


def test_lists_of_hosts_are_joined() -> None:
    settings = {"host": ["a", "b"], "port": [5432, 5433], "keepalives": True}
    config = PGConnectionManager().load({"connection_settings": settings})
    assert config.connect == {"host": "a,b", "port": "5432,5433", "keepalives": "1"}


def test_a_connection_string_is_taken_apart_and_overridden() -> None:
    settings = {"conninfo": "postgresql://u:p@h:5/d", "dbname": "other"}
    config = PGConnectionManager().load({"connection_settings": settings})
    assert config.connect == {"user": "u", "password": "p", "host": "h", "port": "5", "dbname": "other"}


def test_a_mapping_is_loaded_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST_OF_DB", "db.example")
    mapping = {"connection_settings": {"host": "${HOST_OF_DB}"}}
    assert load_config(mapping, resolve_env=True)["connection_settings"] == {"host": "db.example"}
    assert mapping == {"connection_settings": {"host": "${HOST_OF_DB}"}}
    with pytest.raises(ConfigError, match="configuration: connection_settings"):
        load_config({"connection_settings": [1]})


def test_equal_configurations_have_equal_digests() -> None:
    load = PGConnectionManager().load
    one = load({"connection_settings": {"host": "a", "port": 5432}})
    other = load({"connection_settings": {"port": "5432", "host": "a", "sslcert": ""}})
    different = load({"connection_settings": {"host": "a", "port": 5433}})
    assert one.digest == other.digest != different.digest


@pytest.mark.parametrize(
    "given",
    [
        "postgres://user:hun/ter2@x@host/db",
        "postgresql://user:hun@ter2@host/db",
        "postgresql://host/db?pasword=hunter2",
        "mysql://user:hunter2@host/db",
        "jdbc:postgresql://user:hunter2@host/db",
        "postgresql:/user:hunter2@host/db",
        "//user:hunter2@host/db",
        "host=db password=a hunter2",
        "host=db password=hunter2",
        "host=db password='hunter2 \0'",
    ],
)
def test_a_connection_string_that_is_refused_is_not_shown(given: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(given)
    assert "hun" not in str(error.value)
    assert "ter2" not in str(error.value)
    assert error.value.__cause__ is None


def test_secrets_are_in_no_repr(tmp_path: Path) -> None:
    config = PGConnectionManager().load({"connection_settings": {"password": "hunter2"}})
    assert "hunter2" not in repr(config)


def test_what_holds_secrets_cannot_be_pickled(config: dict[str, Any]) -> None:
    manager = PGConnectionManager()
    loaded = manager.load({"connection_settings": {"password": "hunter2"}})
    handle = manager.get_database_connection_from_dict(config, "pool")
    for value in (Database(config), AsyncDatabase(config), manager, loaded, blueprint(loaded, "pool"), handle):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            written = io.BytesIO()
            with pytest.raises(TypeError, match=r"cannot be pickled|cannot pickle"):
                pickle.dump(value, written, protocol)
            for secret in (b"hunter2", config["connection_settings"]["password"].encode()):
                assert secret not in written.getvalue()


def test_nothing_in_a_file_executes(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    path = write(tmp_path, f"connection_settings: !!python/object/apply:os.system ['touch {marker}']\n")
    code = f"import pgmonkey; pgmonkey.load_config({str(path)!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert not marker.exists()


def test_an_empty_path_is_told() -> None:
    for use in (Database, AsyncDatabase, load_config):
        with pytest.raises(ConfigError, match="the path of the configuration file is empty"):
            use("")
