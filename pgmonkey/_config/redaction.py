"""Mask secrets in configurations and in texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "***REDACTED***"

_SENSITIVE = frozenset({"sslkey", "sslcert", "sslrootcert", "conninfo", "dsn"})
_SENSITIVE_PARTS = ("password", "passwd", "token", "secret", "credential")
# Up to the last '@' before the path: a password that was not percent-encoded may contain '@' and ':'.
_URL_USERINFO = re.compile(r"(?P<head>[A-Za-z][A-Za-z0-9+.-]*://)[^/\s@]*:[^/\s]*@")
_URL_SECRET = re.compile(r"(?P<head>[?&](?:ssl)?password=)[^&\s]*", re.IGNORECASE)
# libpq allows spaces around '=', and quotes with backslash escapes around the value ("Connection Strings").
_DSN_SECRET = re.compile(r"(?P<head>\b(?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)", re.IGNORECASE)


def is_sensitive(key: str) -> bool:
    """Tell whether the value under *key* must never be shown."""
    lowered = key.lower()
    return lowered in _SENSITIVE or any(part in lowered for part in _SENSITIVE_PARTS)


def redact_config(config: object) -> Any:
    """Return a deep copy of *config* that is safe to log.

    Masked are ``sslkey``, ``sslcert``, ``sslrootcert``, ``conninfo``, ``dsn``, every key that contains ``password``,
    ``passwd``, ``token``, ``secret`` or ``credential``, and passwords inside URLs and connection strings anywhere.
    Empty strings and None are left as they are, and so is a reference such as ``from_env: NAME``.
    """
    if isinstance(config, Mapping):
        return {key: _redact_value(key, value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [redact_config(item) for item in config]
    return redact_text(config) if isinstance(config, str) else config


def redact_text(text: str) -> str:
    """Return *text* with the passwords inside URLs and connection strings masked."""
    text = _URL_USERINFO.sub(rf"\g<head>{REDACTED}@", text)
    text = _URL_SECRET.sub(rf"\g<head>{REDACTED}", text)
    return _DSN_SECRET.sub(rf"\g<head>{REDACTED}", text)


def _redact_value(key: object, value: object) -> object:
    # An empty value stays, to show that it is empty; a reference is the name of a secret, not the secret.
    if isinstance(key, str) and is_sensitive(key) and value is not None and value != "" and not _is_reference(value):
        return REDACTED
    return redact_config(value)


def _is_reference(value: object) -> bool:
    return isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in ("from_env", "from_file")
