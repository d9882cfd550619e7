"""Secrets are masked."""

from __future__ import annotations

from typing import Any

import pytest

from pgmonkey import redact_config
from pgmonkey._config.redaction import REDACTED, redact_text


@pytest.mark.parametrize(
    "key",
    [
        *("password", "sslkey", "sslcert", "sslrootcert", "sslpassword", "passwd", "db_password", "conninfo", "dsn"),
        *("api_token", "client_secret", "credentials", "PASSWORD", "passfile_password"),
    ],
)
def test_sensitive_keys_are_masked(key: str) -> None:
    config: dict[str, Any] = {
        "connection_settings": {key: "hunter2", "host": "h"},
        "list": [{key: "hunter2"}],
        key: ["hunter2"],
    }
    redacted = redact_config(config)
    assert "hunter2" not in repr(redacted)
    assert redacted["connection_settings"] == {key: REDACTED, "host": "h"}
    assert config["connection_settings"][key] == "hunter2", "the original is left alone"


def test_empty_values_and_references_are_left() -> None:
    config = {"password": "", "sslkey": None, "sslpassword": {"from_env": "X"}}
    assert redact_config(config) == config


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://user:hunter2@host/db",
        "postgresql://host/db?user=u&password=hunter2",
        "host=h password=hunter2 dbname=d",
        "host=h password='hunter2 with space' dbname=d",
        "sslpassword = hunter2",
        "postgresql://user:hun@ter2@host/db",
    ],
)
def test_passwords_inside_texts_are_masked(text: str) -> None:
    redacted = redact_text(text)
    assert "hunter2" not in redacted
    assert "ter2" not in redacted
    assert REDACTED in redacted
    assert redact_config({"urls": [text]}) == {"urls": [redacted]}
