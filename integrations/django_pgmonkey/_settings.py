"""What ``DATABASES[alias]`` says, made into the core's configuration."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import psycopg.pq
from django.core.exceptions import ImproperlyConfigured

from pgmonkey import ConfigError, load_config

_OURS = ("config", "resolve_env", "allow_sensitive_defaults", "release")
_DJANGOS = ("pool", "assume_role", "isolation_level", "server_side_binding", "prepare_threshold", "cursor_factory")
# Django's name of a setting, and libpq's keyword for it.
_SETTINGS = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
_EMPTY: dict[str, Any] = {"connection_settings": {}}


@lru_cache
def _reader(path: str, allow_sensitive_defaults: bool, keyword: str) -> Callable[[], str]:
    """Return a function that reads *keyword* from the file; always the same one, as the pool is found by it."""

    def read() -> str:
        config = load_config(path, resolve_env=True, allow_sensitive_defaults=allow_sensitive_defaults)
        return str(config["connection_settings"][keyword])

    return read


class Settings:
    """The settings of one alias: a YAML file, and what Django's settings put over it."""

    def __init__(self, alias: str, settings: dict[str, Any]) -> None:
        self.alias = alias
        self.settings = settings
        self.error: str | None = None
        """What is wrong with the YAML file, to be told when the database is used, or checked."""
        self.yaml = _EMPTY
        self._config: tuple[dict[str, Any], dict[str, Any]] | None = None
        try:
            self.yaml = self._load()
        except ConfigError as error:
            self.error = str(error)
        if settings["NAME"] == "":
            # Test databases are named after it.
            settings["NAME"] = self.yaml["connection_settings"].get("dbname", "")

    @property
    def options(self) -> dict[str, Any]:
        """Django's OPTIONS."""
        options: dict[str, Any] = self.settings["OPTIONS"]
        return options

    @property
    def path(self) -> str | None:
        """The path of the YAML file, None when there is none."""
        config = self.options.get("config")
        return os.fspath(config) if isinstance(config, (str, os.PathLike)) else None

    def _load(self) -> dict[str, Any]:
        options = self.options
        if "config" not in options:
            return _EMPTY
        return load_config(
            options["config"],
            resolve_env=options.get("resolve_env", False),
            allow_sensitive_defaults=options.get("allow_sensitive_defaults", False),
        )

    def require(self) -> None:
        """Raise ImproperlyConfigured when the settings cannot be used."""
        if self.error is not None:
            raise ImproperlyConfigured(self.error)
        release = self.options.get("release", "request")
        if release not in ("request", "query"):
            where = f"DATABASES[{self.alias!r}]: OPTIONS: release"
            raise ImproperlyConfigured(f"{where}: {release!r} is neither 'request' nor 'query'")

    def config(self, timezone: str) -> dict[str, Any]:
        """Return the core's configuration: the YAML's, overridden by Django's settings.

        Connections start in *timezone*, or else each borrow would have to set it.
        """
        if self._config is None or self._config[0] != self.settings:
            self._config = {key: copy.copy(value) for key, value in self.settings.items()}, self._configure(timezone)
        return self._config[1]

    def _configure(self, timezone: str) -> dict[str, Any]:
        self.require()
        config: dict[str, Any] = {
            **self.yaml,
            "connection_settings": {**self.connection_settings(), **self._credentials()},
        }
        pool = self.options.get("pool")
        own = dict(pool) if isinstance(pool, Mapping) else {}
        if self.settings.get("CONN_HEALTH_CHECKS"):
            own["check_on_checkout"] = True
        if own:
            config["pool_settings"] = {**(config.get("pool_settings") or {}), **own}
        session = config.get("sync_settings") or {}
        behind_pgbouncer = config["connection_settings"].get("pgbouncer")  # whose sessions are not ours
        if timezone and not behind_pgbouncer and not any(name.lower() == "timezone" for name in session):
            config["sync_settings"] = {**session, "TimeZone": timezone}
        return config

    def _credentials(self) -> dict[str, Callable[[], str]]:
        """Return what reads the credentials again for each connection, where they come from outside the file."""
        options = self.options
        if self.path is None or not options.get("resolve_env"):
            return {}
        names = {"user": "USER", "password": "PASSWORD"}
        return {
            keyword: _reader(self.path, options.get("allow_sensitive_defaults", False), keyword)
            for keyword, name in names.items()
            if keyword in self.yaml["connection_settings"] and not self.settings[name] and keyword not in options
        }

    def connection_settings(self) -> dict[str, Any]:
        """Return libpq's keywords."""
        settings = dict(self.yaml["connection_settings"])
        for key, value in self.options.items():
            if key not in (*_OURS, *_DJANGOS):
                settings[key] = value
        for name, keyword in _SETTINGS.items():
            if self.settings[name]:
                settings[keyword] = self.settings[name]
        return settings

    def for_psycopg(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return Django's own connection *params* over those of the YAML file."""
        return {**self.yaml["connection_settings"], **{key: params[key] for key in params if key not in _OURS}}

    def unknown_options(self) -> dict[str, str | None]:
        """Return the OPTIONS that nobody knows, each with the one that was probably meant."""
        keywords = [option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()]
        known = [*_OURS, *_DJANGOS, *keywords, "context"]
        return {
            name: next(iter(difflib.get_close_matches(name, known, 1)), None)
            for name in self.options
            if name not in known
        }
