"""The Flask extension.  It keeps no application: what belongs to one lives in ``app.extensions``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from flask import Flask, Response, current_app, g, has_app_context, has_request_context
from psycopg import Connection
from psycopg.rows import RowFactory

from pgmonkey import ConfigError, Database, PoolFullError, PoolTimeoutError, UnitOfWork

_EXTENSION = "pgmonkey"
_UNIT = "_pgmonkey_unit"
_RETRY_AFTER = "1"


class PGMonkey:
    """PostgreSQL in a Flask application.

    Reads from ``app.config``: ``PGMONKEY_CONFIG`` (path of a YAML file, relative to the application's root, or a
    mapping), ``PGMONKEY_RESOLVE_ENV``, ``PGMONKEY_ALLOW_SENSITIVE_DEFAULTS`` and ``PGMONKEY_TRANSACTION``.

    With ``PGMONKEY_TRANSACTION = "request"``, the default, a request is one transaction on one connection, borrowed
    when a verb first needs it.  It is committed before the response leaves when the status is below 400, and rolled
    back otherwise; a COMMIT that fails is an exception for the application's error handlers.  With ``"statement"``
    each statement stands for itself.  Outside a request each statement stands for itself too.

    *row_factory* is psycopg's; rows are tuples by default.
    """

    def __init__(self, app: Flask | None = None, *, row_factory: RowFactory[Any] | None = None) -> None:
        self._row_factory = row_factory
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Set *app* up to use this database; raise `pgmonkey.ConfigError` when its configuration is wrong."""
        if _EXTENSION in app.extensions:
            raise RuntimeError(f"a PGMonkey is set up on {app.name!r} already; call init_app() once per application")
        config = app.config.get("PGMONKEY_CONFIG")
        if config is None:
            raise ConfigError(f"{app.name}: PGMONKEY_CONFIG is not set; give the path of the YAML file, or a mapping")
        if not isinstance(config, Mapping):
            config = os.path.join(app.root_path, config)
        scope = app.config.setdefault("PGMONKEY_TRANSACTION", "request")
        if scope not in ("request", "statement"):
            raise ConfigError(f"{app.name}: PGMONKEY_TRANSACTION: {scope!r} is neither 'request' nor 'statement'")
        database = Database(
            config,
            resolve_env=app.config.get("PGMONKEY_RESOLVE_ENV", False),
            allow_sensitive_defaults=app.config.get("PGMONKEY_ALLOW_SENSITIVE_DEFAULTS", False),
            row_factory=self._row_factory,
        )
        app.extensions[_EXTENSION] = database
        if scope == "request":
            app.before_request_funcs.setdefault(None, []).insert(0, self._begin)
            # Flask calls these in reverse order of registration: the one that is registered first commits last, after
            # every other function of the application has had its say about the response.
            app.after_request_funcs.setdefault(None, []).insert(0, self._end)
            app.teardown_appcontext(self._clean_up)
        app.register_error_handler(PoolTimeoutError, _busy)
        app.register_error_handler(PoolFullError, _busy)
        app.shell_context_processor(lambda: {"db": self})

    @property
    def database(self) -> Database:
        """The database of the current application; raises RuntimeError outside one."""
        if not has_app_context():
            raise RuntimeError("there is no current Flask application; use 'with app.app_context():'")
        try:
            database: Database = current_app.extensions[_EXTENSION]
        except KeyError:
            raise RuntimeError(
                f"no PGMonkey is set up on {current_app.name!r}; call db.init_app(app), "
                "and see that one instance is used everywhere"
            ) from None
        return database

    # -- the request ----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        setattr(g, _UNIT, self.database.begin())

    def _end(self, response: Response) -> Response:
        unit: UnitOfWork | None = g.get(_UNIT)
        if unit is None:
            return response
        try:
            unit.finish(_Refused(response.status_code) if response.status_code >= 400 else None)
        except Exception as error:
            # Flask itself shows errors of this late hour to the handlers of status 500 only.
            return current_app.make_response(current_app.handle_user_exception(error))
        return response

    def _clean_up(self, error: BaseException | None) -> None:
        unit: UnitOfWork | None = g.pop(_UNIT, None)
        if unit is not None:
            unit.finish(error or _Refused(None))

    @property
    def connection(self) -> Connection[Any]:
        """The connection of the current request, borrowed at the first use; the end of the request gives it back."""
        unit = self.database.current_unit()
        if unit is None:
            where = "this request" if has_request_context() else "here: there is no request"
            raise RuntimeError(f"there is no transaction {where}; use 'with db.transaction() as connection:'")
        return unit.connection()

    # -- the verbs ------------------------------------------------------------------------------------------------

    def fetch_one(self, query: Any, params: Any = None) -> Any:
        """Return the first row of *query*, or None when there is none."""
        return self.database.fetch_one(query, params)

    def fetch_all(self, query: Any, params: Any = None) -> list[Any]:
        """Return all rows of *query*."""
        return self.database.fetch_all(query, params)

    def fetch_value(self, query: Any, params: Any = None) -> Any:
        """Return the first column of the first row of *query*, or None when there is no row."""
        return self.database.fetch_value(query, params)

    def execute(self, query: Any, params: Any = None) -> int:
        """Run *query*; return the number of rows affected, -1 where the statement has none."""
        return self.database.execute(query, params)

    def execute_many(self, query: Any, params_seq: Iterable[Any]) -> int:
        """Run *query* for each of *params_seq* in one transaction; return the number of rows affected in all."""
        return self.database.execute_many(query, params_seq)

    def stream(self, query: Any, params: Any = None, *, size: int = 1000) -> Iterator[Any]:
        """Yield the rows of *query* on a connection of their own, also after the view has returned."""
        return self.database.stream(query, params, size=size)

    def transaction(self, **options: Any) -> AbstractContextManager[Connection[Any]]:
        """Run a block in a transaction; in a request, in a savepoint.  See `pgmonkey.Database.transaction`."""
        return self.database.transaction(**options)

    def ping(self) -> float:
        """Ask the server for a sign of life; return the seconds it took."""
        return self.database.ping()

    def stats(self) -> dict[str, int]:
        """Return the pool's counters, named as in psycopg_pool."""
        return self.database.stats()


class _Refused(Exception):
    """Why a unit of work is rolled back that no exception ended."""


def _busy(error: Exception) -> tuple[str, int, dict[str, str]]:
    current_app.logger.warning("%s", error)
    return "The database is busy, please try again.", 503, {"Retry-After": _RETRY_AFTER}
