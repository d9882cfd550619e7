"""Secrets are masked."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest
from psycopg import pq

from pgmonkey import PGConnectionManager, redact_config
from pgmonkey._config.blueprint import blueprint
from pgmonkey._config.keywords import KEYWORDS
from pgmonkey._config.redaction import REDACTED, is_sensitive, redact_text
from pgmonkey._config.schema import libpq_keywords


@pytest.mark.parametrize(
    "key",
    [
        *("password", "sslkey", "sslcert", "sslrootcert", "sslpassword", "passwd", "db_password", "conninfo", "dsn"),
        *("api_token", "client_secret", "credentials", "PASSWORD", "passfile_password"),
        *("scram_client_key", "scram_server_key", "oauth_client_secret", "sslkeylogfile", "passfile"),
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
        "postgresql://user:a/hunter2@host/db",
        "postgresql://user:a?hunter2@host/db",
        "postgresql://user:a b'hunter2@host/db",
        "postgresql://:hunter2@host/db",
        "postgresql+psycopg://user:hunter2@host/db",
        "postgresql://host/db?sslpassword=hunter2&scram_client_key=hunter2",
        "postgresql://host/db?p%61ssword=hunter2",
        "host=h oauth_client_secret=hunter2 sslkeylogfile=/hunter2",
        r"host=h password=a\ hunter2",
        "host=h password='hunter2 never ends",
        "could not connect with x=password=hunter2",
    ],
)
def test_passwords_inside_texts_are_masked(text: str) -> None:
    redacted = redact_text(text)
    assert "hunter2" not in redacted
    assert "ter2" not in redacted
    assert REDACTED in redacted
    assert redact_config({"urls": [text]}) == {"urls": [redacted]}


# What libpq 15 to 18 knows, and of it what nobody may see.
HIDDEN = {
    *("password", "passfile", "sslkey", "sslcert", "sslrootcert", "sslpassword", "sslkeylogfile"),
    *("scram_client_key", "scram_server_key", "oauth_client_secret"),
}


def test_each_of_libpqs_keywords_is_a_secret_or_not() -> None:
    known = libpq_keywords()
    assert {keyword for keyword in known if is_sensitive(keyword)} == HIDDEN & known
    # What libpq itself does not show in a form ("*"), or for debugging only ("D").
    hidden = {option.keyword.decode() for option in pq.Conninfo.get_defaults() if option.dispchar in (b"*", b"D")}
    assert hidden - {"replication"} <= HIDDEN
    assert set(KEYWORDS) - known <= set(NEW), "no keyword is misspelt"


NEW = {
    **dict.fromkeys(("sslcertmode", "load_balance_hosts", "gssdelegation", "require_auth"), 16),
    "sslnegotiation": 17,
    **dict.fromkeys(("servicefile", "min_protocol_version", "max_protocol_version", "sslkeylogfile"), 18),
    **dict.fromkeys(("scram_client_key", "scram_server_key"), 18),
    **dict.fromkeys(("oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope"), 18),
}


def test_a_url_that_is_an_object_is_masked() -> None:
    url = pydantic.PostgresDsn("postgresql://user:hunter2@host/db")
    assert "hunter2" not in repr(redact_config({"url": url, "urls": [url], "key": pydantic.SecretStr("hunter2")}))


@pytest.mark.parametrize("pgbouncer", [False, True])
def test_what_is_made_of_a_configuration_shows_no_value_of_it(pgbouncer: bool) -> None:
    settings = {"app.signing_key": "hunter2"}
    document: dict[str, Any] = {
        "connection_settings": {"host": "h", "password": "hunter2", "pgbouncer": pgbouncer},
        "sync_settings": settings,
        "async_settings": settings,
        "pool_settings": {"kwargs": {"sslpassword": "hunter2"}},
    }
    config = PGConnectionManager().load(document)
    for made in (config, blueprint(config, "pool"), blueprint(config, "async_pool")):
        assert "hunter2" not in repr(made)
