"""The Flask extension.  It keeps no application: what belongs to one lives in ``app.extensions``."""

from __future__ import annotations

from typing import Any, overload

import click
from flask import Flask, current_app
from psycopg.rows import Row, RowFactory, TupleRow

from pgmonkey import ConfigError, Database, PoolFullError, PoolTimeoutError

from ._bound import EXTENSION, BoundDatabase
from ._commands import commands
from ._requests import Requests
from ._settings import Settings, read

_RETRY_AFTER = "1"


class PGMonkey(BoundDatabase[Row]):
    """PostgreSQL in a Flask application.

    Reads from ``app.config``: ``PGMONKEY_CONFIG`` (path of a YAML file, relative to the application's root, or a
    mapping), ``PGMONKEY_RESOLVE_ENV``, ``PGMONKEY_ALLOW_SENSITIVE_DEFAULTS``, ``PGMONKEY_TRANSACTION``, and
    ``PGMONKEY_BINDS``, which names further databases: ``{"reports": "reports.yaml"}`` is ``db["reports"]``.

    With ``PGMONKEY_TRANSACTION = "request"``, the default, a request is one transaction on one connection, borrowed
    when a verb first needs it.  It is committed before the response leaves when the status is below 400, and rolled
    back otherwise; a COMMIT that fails is an exception for the application's error handlers.  With ``"statement"``
    each statement stands for itself.  Outside a request each statement stands for itself too.

    *row_factory* is psycopg's; rows are tuples by default.
    """

    @overload
    def __init__(self: PGMonkey[TupleRow], app: Flask | None = None, *, row_factory: None = None) -> None: ...

    @overload
    def __init__(self, app: Flask | None = None, *, row_factory: RowFactory[Row]) -> None: ...

    def __init__(self, app: Flask | None = None, *, row_factory: RowFactory[Any] | None = None) -> None:
        super().__init__(None)
        self._row_factory = row_factory
        self._binds: dict[str, BoundDatabase[Row]] = {}
        if app is not None:
            self.init_app(app)

    def __getitem__(self, key: str) -> BoundDatabase[Row]:
        """Return the database that PGMONKEY_BINDS names *key*."""
        return self._binds.setdefault(key, BoundDatabase(key))

    def init_app(self, app: Flask) -> None:
        """Set *app* up to use its databases; raise `pgmonkey.ConfigError` when its configuration is wrong."""
        if EXTENSION in app.extensions:
            raise RuntimeError(f"a PGMonkey is set up on {app.name!r} already; call init_app() once per application")
        try:
            settings = read(app)
            databases = {key: self._database(key, its) for key, its in settings.items()}
        except ConfigError as error:
            if click.get_current_context(silent=True) is None:
                raise
            raise click.ClickException(str(error)) from None  # which the flask command shows without a traceback
        app.extensions[EXTENSION] = databases
        app.wsgi_app = Requests(app, {key: its.scope for key, its in settings.items()})  # type: ignore[method-assign]
        handlers = app.error_handler_spec[None][None]
        for kind in (PoolTimeoutError, PoolFullError):
            if kind not in handlers:
                app.register_error_handler(kind, _busy)
        app.shell_context_processor(lambda: {"db": self})
        app.cli.add_command(commands)

    def _database(self, key: str | None, settings: Settings) -> Database[Any]:
        bound = self if key is None else self[key]
        return Database(
            settings.config,
            resolve_env=settings.resolve_env,
            allow_sensitive_defaults=settings.allow_sensitive_defaults,
            row_factory=self._row_factory,
            session_values=bound.values_now,
        )


def _busy(error: Exception) -> tuple[str, int, dict[str, str]]:
    current_app.logger.warning("%s", error)
    return "The database is busy, please try again.", 503, {"Retry-After": _RETRY_AFTER}
