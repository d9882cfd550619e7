"""Mask secrets in configurations and in texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import unquote

from .keywords import KEYWORDS

REDACTED = "***REDACTED***"

_SENSITIVE = frozenset({"conninfo", "dsn", *(name for name, keyword in KEYWORDS.items() if keyword.hidden)})
_SENSITIVE_PARTS = ("password", "passwd", "token", "secret", "credential")
# Up to the line's last '@': a password that was not percent-encoded may contain '@', ':', '/', '?' and blanks.
_URL_USERINFO = re.compile(r"(?P<head>[A-Za-z][A-Za-z0-9+.-]*://)[^:@\n]*:.*@")
_URL_PARAMETER = re.compile(r"(?P<head>[?&](?P<key>[^=&\s]+)=)[^&\n]+")
# libpq allows spaces around '=', and quotes with backslash escapes around the value ("Connection Strings").
_DSN_SECRET = re.compile(
    rf"(?P<head>\b(?:\w*(?:{'|'.join(_SENSITIVE_PARTS)})\w*|{'|'.join(sorted(_SENSITIVE))})\s*=\s*)"
    r"(?:'(?:[^'\\]|\\.)*(?:'|\Z)|(?:[^\s\\]|\\.)+)",
    re.IGNORECASE,
)


class Unpicklable:
    """What holds secrets, and so refuses to be pickled: they would be in clear wherever the bytes go."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied: its configuration holds secrets; "
            "pass the path of the configuration file on instead"
        )


def is_sensitive(key: str) -> bool:
    """Tell whether the value under *key* must never be shown."""
    lowered = key.lower()
    return lowered in _SENSITIVE or any(part in lowered for part in _SENSITIVE_PARTS)


def redact_config(config: object) -> Any:
    """Return a deep copy of *config* that is safe to log.

    Masked are ``conninfo``, ``dsn``, libpq's ``password``, ``passfile``, ``sslkey``, ``sslcert``, ``sslrootcert``,
    ``sslpassword``, ``sslkeylogfile``, ``scram_client_key``, ``scram_server_key`` and ``oauth_client_secret``, every
    key that contains ``password``, ``passwd``, ``token``, ``secret`` or ``credential``, and passwords inside URLs and
    connection strings anywhere.  Empty strings and None are left as they are, and so is a reference such as
    ``from_env: NAME``.
    """
    if isinstance(config, Mapping):
        return {
            redact_text(key) if isinstance(key, str) else key: _redact_value(key, value)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return [redact_config(item) for item in config]
    if isinstance(config, type):
        return config
    # Of pydantic's types a secret shows nothing of itself, but a URL does.
    text = getattr(config, "unicode_string", lambda: config)()
    return redact_text(text) if isinstance(text, str) else text


def redact_text(text: str) -> str:
    """Return *text* with the secrets inside URLs and connection strings masked."""
    text = _URL_USERINFO.sub(rf"\g<head>{REDACTED}@", text)
    text = _URL_PARAMETER.sub(_redact_parameter, text)
    return _DSN_SECRET.sub(rf"\g<head>{REDACTED}", text)


def _redact_parameter(match: re.Match[str]) -> str:
    return match["head"] + REDACTED if is_sensitive(unquote(match["key"])) else match[0]


def _redact_value(key: object, value: object) -> object:
    # An empty value stays, to show that it is empty; a reference is the name of a secret, not the secret.
    if isinstance(key, str) and is_sensitive(key) and value is not None and value != "" and not _is_reference(value):
        return REDACTED
    return redact_config(value)


def _is_reference(value: object) -> bool:
    return isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in ("from_env", "from_file")
