"""From ``DATABASES[alias]`` and its YAML file to a configuration of pgmonkey."""

from __future__ import annotations

import copy
import difflib
import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import psycopg.pq
from django.core.exceptions import ImproperlyConfigured
from psycopg.conninfo import conninfo_to_dict

from pgmonkey import ConfigError, load_config

Config = dict[str, Any]
"""A configuration of pgmonkey, as `pgmonkey.load_config` returns it."""
DatabaseSettings = dict[str, Any]
"""``DATABASES[alias]``, or its OPTIONS."""
ConnectionParams = dict[str, Any]
"""Keyword arguments of psycopg's ``connect()``."""

# Options of pgmonkey, and of Django's own backend; all others are keywords of libpq.
_OURS = ("config", "resolve_env", "allow_sensitive_defaults", "profile", "release")
_DJANGOS = ("pool", "assume_role", "isolation_level", "server_side_binding", "prepare_threshold", "cursor_factory")
# Django's names of settings, and libpq's keywords for them.
_SETTINGS = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
_EMPTY: Config = {"connection_settings": {}}
# Keys of connection_settings that only pgmonkey knows.
_ONLY_OURS = ("command_timeout", "pgbouncer", "conninfo")


def _dbname(conninfo: str) -> str:
    """Return the database that libpq would connect to with *conninfo*; empty where that is for its service to say."""
    given = conninfo_to_dict(conninfo)
    if not conninfo or "service" in given:
        return str(given.get("dbname", ""))
    return str(given.get("dbname") or os.environ.get("PGDATABASE") or given.get("user") or "")


def for_libpq(settings: ConnectionParams) -> ConnectionParams:
    """Return *settings* as psycopg and psql take them: no lists, no URL, no keys of pgmonkey."""
    result: ConnectionParams = {**conninfo_to_dict(settings.get("conninfo") or "")}
    for key, value in settings.items():
        if key in _ONLY_OURS:
            continue
        if isinstance(value, list):
            value = ",".join(map(str, value))
        elif hasattr(value, "get_secret_value"):  # pydantic's SecretStr
            value = value.get_secret_value()
        elif isinstance(value, bool) and key != "autocommit":
            value = int(value)  # libpq's switches are 0 and 1
        result[key] = value
    return result


def literal(value: Any) -> Any:
    """Return a configuration, or a part of it, so written that with ``resolve_env=True`` each ``${`` in it stays.

    Settings of Django hold no references, and those of the YAML file were resolved when it was read, if at all.
    """
    if isinstance(value, Mapping):
        return {key: literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [literal(item) for item in value]
    return re.sub(r"\$+(?=\{)", r"\g<0>\g<0>", value) if isinstance(value, str) else value


@lru_cache
def _reader(path: str, allow_sensitive_defaults: bool, profile: str | None, keyword: str) -> Callable[[], str]:
    """Return a function that reads *keyword* from the file.

    For equal arguments it is the same function: pools are found by their configuration, of which it is a part.
    """

    def read() -> str:
        config = load_config(path, resolve_env=True, allow_sensitive_defaults=allow_sensitive_defaults, profile=profile)
        return str(for_libpq(config["connection_settings"])[keyword])

    return read


class Settings:
    """The settings of one alias: those of the YAML file, overridden by Django's."""

    def __init__(self, alias: str, settings: DatabaseSettings) -> None:
        self.alias = alias
        self.settings = settings
        self.error: str | None = None
        """What is wrong with the YAML file; raised when the database is used or checked."""
        self.yaml = _EMPTY
        self._config: tuple[DatabaseSettings, Config] | None = None
        try:
            self.yaml = self._load()
        except ConfigError as error:
            self.error = str(error)
        own = self.yaml["connection_settings"]
        if settings["NAME"] == "":
            # Django derives the names of test databases from it.
            settings["NAME"] = own.get("dbname") or _dbname(own.get("conninfo") or "")
        if settings["NAME"] == "" and own.get("service"):
            settings["OPTIONS"].setdefault("service", own["service"])  # where Django looks for it

    @property
    def options(self) -> DatabaseSettings:
        """The OPTIONS in ``DATABASES[alias]``."""
        options: DatabaseSettings = self.settings["OPTIONS"]
        return options

    @property
    def path(self) -> str | None:
        """The path of the YAML file; None when ``config`` is a mapping, a URL or missing."""
        config = self.options.get("config")
        return os.fspath(config) if isinstance(config, (str, os.PathLike)) and "://" not in str(config) else None

    def _load(self) -> Config:
        options = self.options
        if "config" not in options:
            return _EMPTY
        return load_config(
            options["config"],
            resolve_env=options.get("resolve_env", False),
            allow_sensitive_defaults=options.get("allow_sensitive_defaults", False),
            profile=options.get("profile"),
        )

    def require(self) -> None:
        """Raise ImproperlyConfigured when the settings cannot be used."""
        if self.error is not None:
            raise ImproperlyConfigured(self.error)
        release = self.options.get("release", "request")
        if release not in ("request", "query"):
            where = f"DATABASES[{self.alias!r}]: OPTIONS: release"
            raise ImproperlyConfigured(f"{where}: {release!r} is neither 'request' nor 'query'")

    def config(self, timezone: str) -> Config:
        """Return the configuration of the YAML file, overridden by Django's settings.

        Connections start in *timezone*; otherwise it would have to be set for each borrow.
        """
        if self._config is None or self._config[0] != self.settings:
            # Tests change the settings in place, OPTIONS and TEST too: compare with copies of both levels.
            self._config = {key: copy.copy(value) for key, value in self.settings.items()}, self._configure(timezone)
        return self._config[1]

    def _configure(self, timezone: str) -> Config:
        self.require()
        config: Config = {
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
        # PgBouncer shares its sessions with other clients, so settings of a session must not be changed.
        behind_pgbouncer = config["connection_settings"].get("pgbouncer")
        if timezone and not behind_pgbouncer and not any(name.lower() == "timezone" for name in session):
            config["sync_settings"] = {**session, "TimeZone": timezone}
        return config

    def _credentials(self) -> dict[str, Callable[[], str]]:
        """Return functions that read user and password anew for each connection.

        Only where they come from the environment or another file (``resolve_env``), which may change them.
        """
        options = self.options
        if self.path is None or not options.get("resolve_env"):
            return {}
        names = {"user": "USER", "password": "PASSWORD"}
        own = for_libpq(self.yaml["connection_settings"])
        return {
            keyword: _reader(self.path, options.get("allow_sensitive_defaults", False), options.get("profile"), keyword)
            for keyword, name in names.items()
            if keyword in own and not self.settings[name] and keyword not in options
        }

    def connection_settings(self) -> ConnectionParams:
        """Return the libpq keywords, with the credentials as they are now."""
        settings = dict(self.yaml["connection_settings"])
        for key, value in self.options.items():
            if key not in (*_OURS, *_DJANGOS):
                settings[key] = value
        for name, keyword in _SETTINGS.items():
            if self.settings[name]:
                settings[keyword] = self.settings[name]
        if self.settings["NAME"] is None:
            # How Django asks for a database that is always there, to make and drop test databases from.
            settings.pop("service", None)
            settings["dbname"] = "postgres"
        return settings

    def for_psycopg(self, params: ConnectionParams) -> ConnectionParams:
        """Return the connection settings of the YAML file, overridden by *params*, which are Django's."""
        return for_libpq(
            {**self.yaml["connection_settings"], **{key: params[key] for key in params if key not in _OURS}}
        )

    def unknown_options(self) -> dict[str, str | None]:
        """Return the unknown OPTIONS, each with the known one that was probably meant."""
        keywords = [option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()]
        known = [*_OURS, *_DJANGOS, *keywords, "context"]
        return {
            name: next(iter(difflib.get_close_matches(name, known, 1)), None)
            for name in self.options
            if name not in known
        }
