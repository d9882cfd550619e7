"""The Flask extension.  It keeps no reference to an application: the state of each is in ``app.extensions``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import cast, overload

import click
from flask import Blueprint, Flask
from flask.typing import ResponseReturnValue
from psycopg.rows import Row, RowFactory, TupleRow

from pgmonkey import ConfigError, Database

from ._commands import commands
from ._compat import check, has_error_handler
from ._database import EXTENSION, BoundDatabase
from ._live import live_blueprint
from ._middleware import TransactionMiddleware, current_deadline, current_units
from ._sandboxes import find_sandbox
from ._settings import Settings, read, read_deadline, where
from ._unavailable import UNAVAILABLE, answer_unavailable, health_blueprint


class PGMonkey(BoundDatabase[Row]):
    """PostgreSQL in a Flask application.

    Reads from ``app.config``: ``PGMONKEY_CONFIG`` (path of a YAML file, relative to the application's root, a URL,
    or a mapping), ``PGMONKEY_RESOLVE_ENV``, ``PGMONKEY_ALLOW_SENSITIVE_DEFAULTS``, ``PGMONKEY_PROFILE`` (one of the
    file's ``profiles``), ``PGMONKEY_TRANSACTION``, and ``PGMONKEY_BINDS``, which names further databases:
    ``{"reports": "reports.yaml"}`` is ``db["reports"]``.

    With ``PGMONKEY_TRANSACTION = "request"``, the default, a request is one transaction, begun by its first query.  It
    is committed before the response leaves when the status is below 400, and rolled back otherwise; a COMMIT that fails
    is an exception for the application's error handlers.  With ``"statement"``, and outside of requests, each statement
    is its own transaction (autocommit).  *row_factory* is psycopg's; rows are tuples by default.

    ``PGMONKEY_DEADLINE`` is how many seconds a request has until its response starts, ``PGMONKEY_DEADLINE_HEADER`` the
    name of a header in which a request may give itself less: what has not ended then is cancelled, and the answer is a
    504, or what the application's handler of `pgmonkey.DeadlineExceededError` says.
    """

    @overload
    def __init__(self: PGMonkey[TupleRow], app: Flask | None = None, *, row_factory: None = None) -> None: ...

    @overload
    def __init__(self, app: Flask | None = None, *, row_factory: RowFactory[Row]) -> None: ...

    def __init__(self, app: Flask | None = None, *, row_factory: RowFactory[Row] | None = None) -> None:
        super().__init__(None)
        self._row_factory = row_factory
        self._binds: dict[str, BoundDatabase[Row]] = {}
        if app is not None:
            self.init_app(app)

    def __getitem__(self, key: str) -> BoundDatabase[Row]:
        """Return the database that PGMONKEY_BINDS names *key*."""
        # Not looked up in the settings: views are defined before init_app() reads those.
        return self._binds.setdefault(key, BoundDatabase(key))

    def init_app(self, app: Flask) -> None:
        """Set up *app* to use its databases.

        Raises `pgmonkey.ConfigError` for a wrong configuration, RuntimeError for a second call or an unknown Flask.
        """
        if EXTENSION in app.extensions:
            raise RuntimeError(f"a PGMonkey is set up on {app.name!r} already; call init_app() once per application")
        # Before anything is changed, so that a refused application stays as it was.
        check(app)
        try:
            settings = read(app)
            deadlines = read_deadline(app)
            databases = {key: self._database(app, key, own) for key, own in settings.items()}
        except ConfigError as error:
            if click.get_current_context(silent=True) is None:
                raise
            raise click.ClickException(str(error)) from None  # the flask command shows it without a traceback
        app.extensions[EXTENSION] = databases
        for database in databases.values():
            database.framework = "flask"
        if deadlines is not None:
            for database in databases.values():
                database.deadline = current_deadline
        TransactionMiddleware(app, {key: own.scope for key, own in settings.items()}, deadlines)
        if "PGMONKEY_TESTING" in os.environ:
            # Started by tests.  Before those that were registered earlier, which may use a database.
            app.before_request_funcs.setdefault(None, []).insert(0, find_sandbox)
        for kind in UNAVAILABLE:
            # An application's own handler, registered before or after, takes precedence.
            if not has_error_handler(app, kind):
                app.register_error_handler(kind, answer_unavailable)
        app.shell_context_processor(lambda: {"db": self})
        app.cli.add_command(commands)

    def health_blueprint(self) -> Blueprint:
        """Return a blueprint with two routes for an orchestrator, ``/health/live`` and ``/health/ready``.

        The first answers 200 without querying a database; the second answers 503 with Retry-After unless every database
        answers within two seconds.
        """
        return health_blueprint()

    def live_blueprint(
        self, require: Callable[[], ResponseReturnValue | None], *, url_prefix: str = "/pgmonkey"
    ) -> Blueprint:
        """Return a blueprint with a page that shows the pools of all worker processes, as ``pgmonkey top`` does.

        *require* is called before it, as `flask.Blueprint.before_request` says: it aborts, or returns a response, for
        whoever may not see it.  Pools are shown whose configuration says ``live_view: true``.
        """
        return live_blueprint(require, url_prefix)

    # -- requests ---------------------------------------------------------------------------------------------------

    def rollback_request(self) -> None:
        """Roll back the transactions of the current request, whatever its status.

        The last call of this and `keep_request` wins.  Raises RuntimeError outside a request, and after its end.
        """
        self._decide(keep=False)

    def keep_request(self) -> None:
        """Commit the transactions of the current request, even if its status is an error.

        A transaction in which a statement failed cannot be kept.  Raises the same errors as `rollback_request`.
        """
        self._decide(keep=True)

    def _decide(self, keep: bool) -> None:
        units = current_units()
        if units is None:
            raise RuntimeError("rollback_request() and keep_request() work only during a request")
        units.decide(keep)

    def _database(self, app: Flask, key: str | None, settings: Settings) -> Database[Row]:
        bound = self if key is None else self[key]
        # With None the rows are tuples, which the overloads have told type checkers already.
        row_factory = cast("RowFactory[Row]", self._row_factory)
        name = where(app, key)
        try:
            return Database(
                settings.config,
                resolve_env=settings.resolve_env,
                allow_sensitive_defaults=settings.allow_sensitive_defaults,
                profile=settings.profile,
                row_factory=row_factory,
                session_values=bound.values_of_request,
                config_name=f"{name}: configuration",
            )
        except ConfigError as error:
            told = str(error)
            raise type(error)(told if told.startswith(name) else f"{name}: {told}") from None
