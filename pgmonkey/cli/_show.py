"""``pgmonkey pgconfig show``: what is used, without secrets, and where each value comes from."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from psycopg import pq

from .._config.blueprint import blueprint, said_elsewhere
from .._config.document import Document
from .._config.keywords import SECTIONS
from .._config.redaction import redact_config
from .._config.schema import Config, check
from .._config.source import prepare, written
from ..manager import Reading
from ._given import existing, flags
from ._terminal import paint

Row = tuple[str, object, str]
"""A key, its value, and where that comes from."""

_REFERENCE = re.compile(r"\$\{(\w+)(:-)?")
# Of libpq's own defaults, those that say where to connect, and how safely.
_LIBPQS = ("host", "port", "sslmode", "channel_binding", "target_session_attrs")


def run(options: argparse.Namespace) -> int:
    """Print each section with its values."""
    shown = _Shown(written(existing(options), options.profile), flags(options))
    _print(f"connection_type: {shown.config.kind}", shown.origin("connection_type"))
    for section in [*SECTIONS][1:]:
        rows = list(shown.rows(section))
        if rows:
            print(f"{section}:")
        for key, value, origin in rows:
            value = redact_config({key: value})[key]
            _print(f"  {key}: {str(value).lower() if isinstance(value, bool) else value}", origin)
    return 0


def _print(text: str, origin: str) -> None:
    print(f"{text:<44}  {paint('grey', origin, sys.stdout)}")


class _Shown:
    def __init__(self, raw: Document, flags: Reading) -> None:
        self._resolved = flags.get("resolve_env", False)
        self._document = prepare(raw, self._resolved, flags.get("allow_sensitive_defaults", False))
        self._raw = raw.values
        self.config: Config = check(self._document)

    def origin(self, section: str, key: str = "") -> str:
        """Return where the value of *key* comes from, or that of a *section* that has no keys."""
        value: Any = self._raw.get(section)
        if key and isinstance(value, Mapping):
            value = value.get(key)
        if value is None or value == "":
            beside = self._document.values.get(section)
            from_url = isinstance(beside, Mapping) and key in beside
            return self.origin("connection_settings", "conninfo") if from_url else "default"
        if not self._document.lines:
            return "the URL"
        path = f"{section}.{key}" if key else section
        names = self._made_from(value) if self._resolved else ""
        return f"{self._document.where(path).partition(': ')[0]}{names}"

    def _made_from(self, value: object) -> str:
        """Return which variables and files a value is made from."""
        if isinstance(value, Mapping):
            return "".join(
                f", {'variable' if kind == 'from_env' else 'file'} {target}" for kind, target in value.items()
            )
        return "".join(
            f", variable {name}" if os.environ.get(name) or not default else f", default of {name}"
            for name, default in _REFERENCE.findall(str(value))
        )

    def rows(self, section: str) -> Iterator[Row]:
        """Yield what is used of a *section*."""
        if section == "connection_settings":
            yield from self._connection()
        elif section in ("sync_settings", "async_settings"):
            given = self._raw.get(section)
            names = {str(key).lower(): str(key) for key in given} if isinstance(given, Mapping) else {}
            for key, value in getattr(self.config, section).items():
                yield key, value, self.origin(section, names[key])
        else:
            for key, value in vars(getattr(self.config, section)).items():
                if value is not None and value != {}:
                    yield key, value, self.origin(section, key)

    def _connection(self) -> Iterator[Row]:
        given = self._raw.get("connection_settings")
        used = {**self.config.connect, **self.config.arguments}
        for key, value in used.items():
            beside = isinstance(given, Mapping) and given.get(key) not in (None, "")
            yield key, value, self.origin("connection_settings", key if beside else "conninfo")
        elsewhere = said_elsewhere(self.config.connect)
        ours = blueprint(self.config, self.config.kind).connect
        for option in pq.Conninfo.get_defaults():
            key = option.keyword.decode()
            variable = (option.envvar or b"").decode()
            if key in used:
                continue
            if os.environ.get(variable):
                yield key, os.environ[variable], f"variable {variable}"
            elif key in elsewhere:
                yield key, elsewhere[key], "the account's name" if key == "user" else "service file"
            elif key in ours and key != "options":
                yield key, ours[key], "pgmonkey's default"
            elif key in _LIBPQS and option.compiled:
                yield key, option.compiled.decode(), "libpq's default"
