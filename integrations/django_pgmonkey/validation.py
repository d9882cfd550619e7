"""System checks of a database: ``manage.py check --database default``."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import yaml
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.validation import BaseDatabaseValidation
from django.db.utils import Error

if TYPE_CHECKING:
    from ._wrapper import PooledWrapper

_SECRETS = ("password", "sslpassword", "conninfo")
# Without the connections that the server keeps for superusers.
_ALLOWED = "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"


class DatabaseValidation(BaseDatabaseValidation):
    """Checks the settings, the YAML file and the server."""

    @property
    def _wrapper(self) -> PooledWrapper:
        return cast("PooledWrapper", self.connection)

    def check(self, **kwargs: object) -> list[checks.CheckMessage]:
        """Return the errors and warnings.  The server is asked only when the settings have no errors."""
        found = [*super().check(**kwargs), *self._settings()]
        if not any(message.level >= checks.ERROR for message in found):
            found += [*self._secrets(), *self._server()]
        return found

    def _error(self, number: int, text: str, hint: str | None = None) -> checks.CheckMessage:
        return checks.Error(f"DATABASES[{self.connection.alias!r}]: {text}", hint=hint, id=f"pgmonkey.E{number:03}")

    def _warning(self, number: int, text: str, hint: str | None = None) -> checks.CheckMessage:
        return checks.Warning(f"DATABASES[{self.connection.alias!r}]: {text}", hint=hint, id=f"pgmonkey.W{number:03}")

    def _settings(self) -> Iterator[checks.CheckMessage]:
        settings = self._wrapper.settings
        if settings.settings.get("CONN_MAX_AGE", 0) != 0:
            hint = "Remove it: the pool keeps connections open between requests."
            yield self._error(1, "CONN_MAX_AGE must be 0", hint)
        if settings.options.get("pool", True) is False:
            hint = "Remove it, or use Django's own backend."
            yield self._warning(3, "OPTIONS: pool is False, but there is always a pool", hint)
        for name, meant in settings.unknown_options().items():
            yield self._error(2, f"OPTIONS: unknown key {name!r}", meant and f"Did you mean {meant!r}?")
        try:
            settings.require()
        except ImproperlyConfigured as error:
            yield self._error(3, str(error).removeprefix(f"DATABASES[{self.connection.alias!r}]: "))

    def _secrets(self) -> Iterator[checks.CheckMessage]:
        path = self._wrapper.settings.path
        if path is None:
            return
        # Not load_config(), which resolves the references: only a password that is in the file counts.
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
        variants = [values, *filter(None, (values.get("profiles") or {}).values())]
        settings = [item for each in variants for item in (each.get("connection_settings") or {}).items()]
        named = [value["from_file"] for _, value in settings if isinstance(value, dict) and "from_file" in value]
        files = [os.path.join(os.path.dirname(path), file) for file in named]
        if any(
            key in _SECRETS and isinstance(value, (str, int, float)) and "${" not in str(value)
            for key, value in settings
        ):
            files.append(path)
        for file in files:
            if os.stat(file).st_mode & stat.S_IROTH:
                hint = f"chmod o= {file}"
                yield self._warning(2, f"{file} contains a password and is world-readable", hint)

    def _server(self) -> Iterator[checks.CheckMessage]:
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(_ALLOWED)
                (allowed,) = cursor.fetchone()
        except (Error, ImproperlyConfigured) as error:
            yield self._error(4, " ".join(str(error).split()))
            return
        pool = self._wrapper.pool
        # The number of worker processes, as gunicorn and most platforms read it.
        concurrency = os.environ.get("WEB_CONCURRENCY", "")
        workers = int(concurrency) if concurrency.isdecimal() else 1
        wanted = workers * (pool.stats()["pool_max"] if pool is not None else 1)
        if wanted > allowed:
            text = f"{workers} processes may want {wanted} connections, but the server allows {allowed}"
            hint = "Make max_size in pool_settings smaller, or max_connections of the server larger."
            yield self._warning(1, text, hint)
