"""Configuration files that nobody would write: each loads, or is a ConfigError of one line."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pgmonkey import ConfigError, PGConnectionManager, load_config, redact_config
from pgmonkey._config.blueprint import blueprint
from pgmonkey._config.schema import KINDS, PoolSettings, libpq_keywords

MANY = settings(
    max_examples=int(os.environ.get("PGMONKEY_PROPERTIES", "300")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
SECRET = "hunter2-never-to-be-seen"

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["${HOME}", "${", "${X:-y}", "", "1", "yes", "5432", "\0", "a,b", "postgresql://u:p@h/d"]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3), max_leaves=6
)
keywords = st.sampled_from(sorted(libpq_keywords())) | st.sampled_from(
    ["autocommit", "prepare_threshold", "command_timeout", "pgbouncer", "conninfo", "passwrod", "HOST"]
)
pool_keys = st.sampled_from([*PoolSettings.__dataclass_fields__, "min_szie"])
configs = st.fixed_dictionaries(
    {"connection_settings": st.dictionaries(keywords, values, max_size=5) | values},
    optional={
        "connection_type": st.sampled_from(KINDS) | values,
        "pool_settings": st.dictionaries(pool_keys, values, max_size=5) | values,
        "async_pool_settings": st.dictionaries(pool_keys, values, max_size=5) | values,
        "sync_settings": st.dictionaries(st.text(max_size=10), values, max_size=3) | values,
        "postgresql": values,
        "colour": values,
    },
)


def load(text: str | bytes, **options: Any) -> None:
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        try:
            loaded = load_config(path, **options)
            assert SECRET not in repr(redact_config(loaded))
            config = PGConnectionManager().load(path, **options)
            for kind in KINDS:
                assert SECRET not in repr(blueprint(config, kind))
            assert SECRET not in repr(config)
        except ConfigError as error:
            said = str(error)
        else:
            said = "fine"
        finally:
            logging.disable(logging.NOTSET)
    assert said
    assert "\n" not in said
    assert SECRET not in said


@MANY
@given(config=configs, resolve=st.booleans())
@example(config={"connection_settings": {}, "sync_settings": {"\n": None}}, resolve=False)
def test_any_structure(config: dict[str, Any], resolve: bool) -> None:
    load(yaml.safe_dump(config, allow_unicode=True), resolve_env=resolve)


@MANY
@given(config=configs, key=st.sampled_from(["password", "sslpassword", "passwd", "db_password"]))
def test_no_structure_shows_a_secret(config: dict[str, Any], key: str) -> None:
    settings = config["connection_settings"]
    config["connection_settings"] = {**(settings if isinstance(settings, dict) else {}), key: SECRET}
    load(yaml.safe_dump(config, allow_unicode=True))


GOOD = yaml.safe_dump(
    {
        "connection_type": "pool",
        "connection_settings": {"host": "h", "password": {"from_env": "HOME"}, "port": 5432},
        "pool_settings": {"min_size": 1, "max_size": 4, "timeout": 3},
        "sync_settings": {"statement_timeout": "5s"},
    }
)


@MANY
@given(start=st.integers(0, len(GOOD)), length=st.integers(0, 12), put=st.text(max_size=8) | st.just("\t"))
def test_any_slip_in_a_valid_configuration(start: int, length: int, put: str) -> None:
    load(GOOD[:start] + put + GOOD[start + length :], resolve_env=True)


@MANY
@given(text=st.binary(max_size=80))
def test_any_bytes(text: bytes) -> None:
    load(text)
