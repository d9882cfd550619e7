"""The JSON Schema refuses what the validator refuses because of a key, a type or a range, and nothing else."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from psycopg import pq

from pgmonkey import ConfigError, load_config
from pgmonkey._config.document import read_document
from pgmonkey._config.json_schema import json_schema
from pgmonkey._config.keywords import ARGUMENTS, KEYWORDS, OURS, POOL, WORDS
from pgmonkey._config.schema import PoolSettings, libpq_keywords

from ..conftest import ON_CI, ROOT
from .test_broken import BEYOND, GOOD, KEYS, write
from .test_fuzz import configs

if importlib.util.find_spec("jsonschema") is None and not ON_CI:
    pytest.skip("jsonschema is not installed", allow_module_level=True)
jsonschema: Any = importlib.import_module("jsonschema")
VALIDATOR = jsonschema.Draft202012Validator(json_schema())

VALID = [
    GOOD,
    "connection_settings: {}\n",
    "connection_settings: {host: [a, b], port: [1, '2'], hostaddr: 127.0.0.1, keepalives: yes, sslsni: 0}\n",
    "connection_settings: {port: '5432,,5433', password: 0123456, user: 007, dbname: no, host: true, options: 1.5}\n",
    "connection_settings: {password: {from_env: A}, sslpassword: {from_file: b}, port: '${PORT}', sslmode: '${M}'}\n",
    "connection_settings: {sslcert: '', sslkey: , port: '', autocommit: '', prepare_threshold: null, sslmode: ''}\n",
    "connection_settings: {prepare_threshold: '5 ', command_timeout: 1e-3, pgbouncer: OFF, autocommit: 1}\n",
    "connection_settings: {conninfo: 'postgresql://h/d', connect_timeout: ' 10', tcp_user_timeout: 010}\n",
    GOOD + "connection_type:\npool_settings:\nsync_settings:\nprofiles:\n",
    GOOD + "connection_type: async_pool\nsync_settings: {work_mem: 1MB, a.b: 1, search_path: [a, b], jit: off, x: }\n",
    GOOD + "pool_settings: {min_size: 0, max_size: '7', timeout: .5, max_idle: '1.5e2', name: 5, kwargs: {a: 1}}\n",
    GOOD + "async_pool_settings: {clean_on_return: always, open: FALSE, max_size: 5.0, open_timeout: 0, check: }\n",
    GOOD + "profiles: {default: {pool_settings: {max_size: 3}}, reports: , test: {connection_settings: {host: a}}}\n",
    "profiles: {default: {connection_settings: {host: a}, connection_type: pool}}\n",
]
# Without a list of slips, which no schema can hold, all that is unknown is refused; pgmonkey warns of it.
UNKNOWN = [
    GOOD + "  pasword: x\n",
    GOOD + "  zzz: x\n",
    GOOD + "pool_settings: {max_sise: 3}\n",
    GOOD + "logging: {level: 1}\n",
]


def refused(values: object) -> list[str]:
    """Return the keys that the schema refuses."""
    found = [".".join(map(str, error.absolute_path)) for error in VALIDATOR.iter_errors(values)]
    return [re.sub(r"\.(\d+)", r"[\1]", path) for path in found]


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("text", VALID)
def test_both_accept(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, text)
    read = read_document(path).values
    assert refused(read) == []
    if "${" not in text and "from_" not in text:
        load_config(path)
    assert not caplog.records


@pytest.mark.parametrize("name", ["pgmonkey/cli/template.yaml", "example_apps/shop/config.yaml"])
def test_what_is_delivered_is_accepted(name: str) -> None:
    assert refused(read_document(ROOT / name).values) == []


@pytest.mark.parametrize(("text", "key"), [(row[0], row[2]) for row in KEYS])
def test_both_refuse(text: str, key: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError):
        load_config(path)
    section = key.removesuffix("...").rpartition(".")[0]
    assert {"", section, key, key.partition("[")[0]}.intersection(refused(read_document(path).values))


@pytest.mark.parametrize("text", [row[0] for row in BEYOND])
def test_what_depends_on_more_than_one_value_is_left_to_the_validator(text: str, tmp_path: Path) -> None:
    assert refused(read_document(write(tmp_path, text)).values) == []


@pytest.mark.parametrize("text", UNKNOWN)
def test_what_is_unknown_is_refused_and_warned_of(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, text)
    load_config(path)
    assert "unknown" in caplog.text
    assert refused(read_document(path).values)


# Of what cannot be told by one value alone.
ELSEWHERE = re.compile(
    r"not resolved|literally|NUL|UTF-8|larger than max_size|min_size 0 needs|conninfo: |PgBouncer|with pgbouncer"
)


class Said(logging.Handler):
    """Remembers what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=configs)
def test_both_say_the_same_of_any_structure(config: dict[str, Any]) -> None:
    config.pop("postgresql", None)
    said = Said()
    logger = logging.getLogger("pgmonkey")
    logger.addHandler(said)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder), yaml.safe_dump(config, allow_unicode=True))
            try:
                read = read_document(path).values
            except ConfigError:
                return  # an editor would not read it either
            try:
                load_config(path)
            except ConfigError as error:
                said.messages.append(str(error))
    finally:
        logger.removeHandler(said)
    told = [message.partition("config.yaml")[2] for message in said.messages]
    keys = refused(read)
    assert told or not keys
    assert keys or all(ELSEWHERE.search(message) for message in told)


def test_the_tables_name_every_key() -> None:
    assert set(POOL) == set(PoolSettings.__dataclass_fields__)
    if pq.version() < 190000:
        assert libpq_keywords() <= set(KEYWORDS)
    for table in (KEYWORDS, ARGUMENTS, OURS, POOL):
        assert all(key.about.endswith(".") for key in table.values())
    assert set(WORDS.values()) == {True, False}
