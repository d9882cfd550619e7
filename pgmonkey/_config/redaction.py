"""What must never be shown: which keys hold secrets, and copies of configurations and texts without them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "***REDACTED***"

_SENSITIVE = frozenset({"sslkey", "sslcert", "sslrootcert", "conninfo", "dsn"})
_SENSITIVE_PARTS = ("password", "passwd", "token", "secret", "credential")
_URL_USERINFO = re.compile(r"(?P<head>[A-Za-z][A-Za-z0-9+.-]*://)[^/\s@]*:[^/\s]*@")
_URL_SECRET = re.compile(r"(?P<head>[?&](?:ssl)?password=)[^&\s]*", re.IGNORECASE)
_DSN_SECRET = re.compile(r"(?P<head>\b(?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)", re.IGNORECASE)


def is_sensitive(key: str) -> bool:
    """Tell whether the value under *key* must never be shown."""
    lowered = key.lower()
    return lowered in _SENSITIVE or any(part in lowered for part in _SENSITIVE_PARTS)


def redact_config(config: Any) -> Any:
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


def _redact_value(key: Any, value: Any) -> Any:
    if not isinstance(key, str) or not is_sensitive(key) or value is None or value == "":
        return redact_config(value)
    return redact_config(value) if is_reference(value) else REDACTED


def is_reference(value: Any) -> bool:
    """Tell whether *value* is a ``from_env`` or ``from_file`` reference, which is no secret itself."""
    return isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in ("from_env", "from_file")
