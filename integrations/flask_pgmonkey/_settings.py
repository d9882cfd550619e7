"""The settings in ``app.config``, checked.  They may come from the environment: ``app.config.from_prefixed_env()``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from flask import Flask

from pgmonkey import ConfigError, Origin, RequestDeadline

Scope = Literal["request", "statement"]

_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
# How pydantic's SecretStr and PostgresDsn give their texts.
_TEXTS = ("get_secret_value", "unicode_string")
_KEYS = ("config", "resolve_env", "allow_sensitive_defaults", "profile", "transaction")
_PREFIX = "PGMONKEY_"
_NAMES = [key.upper() for key in (*_KEYS, "binds", "deadline", "deadline_header")]

logger = logging.getLogger("pgmonkey")


@dataclass(frozen=True)
class Settings:
    """How one database of an application is set up."""

    config: Origin
    resolve_env: bool
    allow_sensitive_defaults: bool
    profile: str | None
    scope: Scope


def read(app: Flask) -> dict[str | None, Settings]:
    """Return the settings of each database of *app*, by its key in PGMONKEY_BINDS; None is that of PGMONKEY_CONFIG."""
    _check_names(app)
    # All but PGMONKEY_CONFIG apply to the databases of PGMONKEY_BINDS too, unless these have a key of their own.
    common = {key: app.config.get(f"PGMONKEY_{key.upper()}") for key in _KEYS[1:]}
    config = app.config.get("PGMONKEY_CONFIG")
    binds = app.config.get("PGMONKEY_BINDS") or {}
    if not isinstance(binds, Mapping):
        raise ConfigError(
            f"{app.name}: PGMONKEY_BINDS: expected a mapping of names to configurations, got {type(binds).__name__}"
        )
    if config is None and not binds:
        raise ConfigError(
            f"{app.name}: PGMONKEY_CONFIG is not set; give the path of the YAML file, a URL, or a mapping"
        )
    settings: dict[str | None, Settings] = {}
    if config is not None:
        settings[None] = _settings(app, "PGMONKEY_CONFIG", {"config": config}, common)
    for key, value in binds.items():
        # A mapping without "config" is itself the configuration of a database.
        own = value if isinstance(value, Mapping) and "config" in value else {"config": value}
        settings[key] = _settings(app, f"PGMONKEY_BINDS[{key!r}]", own, common)
    return settings


def read_deadline(app: Flask) -> RequestDeadline | None:
    """Return how long the requests of *app* may take; None where nothing says so."""
    seconds, header = app.config.get("PGMONKEY_DEADLINE"), app.config.get("PGMONKEY_DEADLINE_HEADER")
    if seconds is None and header is None:
        return None
    return RequestDeadline(seconds, header, f"{app.name}: PGMONKEY_DEADLINE")


def where(app: Flask, key: str | None) -> str:
    """Return how messages name the database *key* of `read`."""
    return f"{app.name}: {'PGMONKEY_CONFIG' if key is None else f'PGMONKEY_BINDS[{key!r}]'}"


def _check_names(app: Flask) -> None:
    """Raise ConfigError for a setting that is misspelt; one that is like none of ours may be the application's."""
    for name in app.config:
        own = name.removeprefix(_PREFIX)
        if own != name and own not in _NAMES:
            close = get_close_matches(own, _NAMES, n=1)
            if close:
                raise ConfigError(f"{app.name}: {name}: unknown setting; did you mean {_PREFIX}{close[0]}?")
            known = ", ".join(_PREFIX + each for each in _NAMES)
            logger.warning("%s: %s: unknown setting ignored; use one of %s", app.name, name, known)


def check_scope(where: str, scope: object) -> Scope:
    """Return *scope*; raise `pgmonkey.ConfigError` when it is unknown.  *where* begins the message."""
    if scope == "request":
        return "request"
    if scope == "statement":
        return "statement"
    raise ConfigError(f"{where}: {scope!r} is neither 'request' nor 'statement'")


def _settings(app: Flask, where: str, own: Mapping[str, object], common: Mapping[str, object]) -> Settings:
    unknown = [key for key in own if key not in _KEYS]
    if unknown:
        raise ConfigError(f"{app.name}: {where}: unknown key {unknown[0]!r}; use one of {', '.join(_KEYS)}")
    config: Any = own["config"]
    if isinstance(config, (str, os.PathLike)):
        if "://" not in str(config):
            config = os.path.join(app.root_path, config)
    elif not isinstance(config, Mapping) and not any(hasattr(config, name) for name in _TEXTS):
        found = type(config).__name__  # not the value, which may be a secret
        raise ConfigError(f"{app.name}: {where}: expected the path of a YAML file, a URL, or a mapping, got {found}")

    def value(key: str) -> tuple[str, object]:
        if key in own:
            return f"{app.name}: {where}: {key}", own[key]
        return f"{app.name}: PGMONKEY_{key.upper()}", common[key]

    scope_from, scope = value("transaction")
    profile_from, profile = value("profile")
    if profile is not None and not isinstance(profile, str):
        raise ConfigError(f"{profile_from}: expected the name of a profile, got {type(profile).__name__}")
    return Settings(
        config=config,
        resolve_env=_boolean(*value("resolve_env")),
        allow_sensitive_defaults=_boolean(*value("allow_sensitive_defaults")),
        profile=profile,
        scope=check_scope(scope_from, "request" if scope is None else scope),
    )


def _boolean(where: str, value: object) -> bool:
    # from_prefixed_env() leaves what is not JSON, such as "True", a string.
    known = None if value is None else _BOOLEANS.get(str(value).lower())
    if known is None and value is not None:
        raise ConfigError(f"{where}: {value!r} is neither true nor false")
    return bool(known)
