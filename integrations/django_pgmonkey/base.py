"""The database backend: Django's own for PostgreSQL, on connections borrowed from the shared core."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import NO_DB_ALIAS, BaseDatabaseWrapper
from django.db.backends.postgresql import base as postgresql
from django.db.transaction import Atomic
from psycopg import IsolationLevel
from psycopg.errors import InFailedSqlTransaction
from psycopg.pq import TransactionStatus

from pgmonkey import ConnectionHandle, Lease

from ._loans import Closed, Loan, remember
from ._pools import pools
from ._settings import Settings
from .client import DatabaseClient
from .validation import DatabaseValidation


class DatabaseWrapper(postgresql.DatabaseWrapper):
    """A connection of Django, borrowed when it first needs one and given back when Django closes it."""

    client_class = DatabaseClient
    validation_class = DatabaseValidation

    _request: _RequestTransaction | None = None
    _open_cursors = 0
    _loan: weakref.ref[Loan] | None = None

    def __init__(self, settings_dict: dict[str, Any], alias: str = "default") -> None:
        super().__init__(settings_dict, alias)
        self._lease: Lease | None = None
        self._params: tuple[dict[str, Any], object, dict[str, Any]] | None = None
        self._settings = Settings(alias, settings_dict)

    @property
    def settings(self) -> Settings:
        """What this database is configured with; tests may have changed it since."""
        if self._settings.settings is not self.settings_dict:
            self._settings = Settings(self.alias, self.settings_dict)
        return self._settings

    # -- the pool -------------------------------------------------------------------------------------------------

    @property
    def pool(self) -> ConnectionHandle | None:
        """The pool for this alias's settings, None for the alias-less connection that makes test databases."""
        if self.alias == NO_DB_ALIAS:
            return None
        self._check_that_nothing_persists()
        return self._pool_for(self.settings.config(self.timezone_name))

    def _check_that_nothing_persists(self) -> None:
        if self.settings_dict["OPTIONS"].get("pool") and self.settings_dict.get("CONN_MAX_AGE", 0) != 0:
            raise ImproperlyConfigured("Pooling doesn't support persistent connections.")

    def _pool_for(self, config: dict[str, Any]) -> ConnectionHandle:
        handle = pools.known(self.alias, config)
        if handle is None:
            with self.wrap_database_errors:
                handle = pools.get(self.alias, config)
        return handle

    def close_pool(self) -> None:
        """Close this alias's pool; whoever else in the process uses the same configuration keeps it."""
        pools.close(self.alias)

    def get_connection_params(self) -> dict[str, Any]:
        """Return what psycopg's ``connect()`` gets: the YAML's settings, overridden by Django's."""
        its = self.settings
        config, zone, known = its.config(self.timezone_name), (self.timezone, settings.USE_TZ), self._params
        if known is None or known[0] is not config or known[1] != zone:
            its.require()
            self._set_isolation_level()
            if self.alias != NO_DB_ALIAS:
                self._check_that_nothing_persists()
            known = self._params = config, zone, its.for_psycopg(super().get_connection_params())
        return known[2].copy()

    # -- connections ----------------------------------------------------------------------------------------------

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Borrow a connection and give it the properties that Django's settings ask for."""
        if self.alias == NO_DB_ALIAS:
            return super().get_new_connection(conn_params)
        # Where Django asked for the parameters just now, the settings were looked at.
        known = self._params
        pool = self._pool_for(known[0] if known is not None else self.settings.config(self.timezone_name))
        if self._lease is not None:  # connect() was called on an open connection
            self._lease.finish(Closed())
        route = self._request.route if self._request is not None else None
        lease = pool.borrow(autocommit=True, context=conn_params["context"], label=route)
        connection = lease.connection
        try:
            connection.cursor_factory = conn_params["cursor_factory"]
            connection.prepare_threshold = conn_params["prepare_threshold"]
            if "isolation_level" in self.settings_dict["OPTIONS"]:
                connection.isolation_level = self.isolation_level
            if connection.pgconn.parameter_status(b"client_encoding") != b"UTF8":
                connection.execute("SET client_encoding TO 'UTF8'")
        except BaseException as error:
            lease.finish(error)
            raise
        self._lease = lease
        self._loan = remember(self, lease, self._loan)
        return connection

    def init_connection_state(self) -> None:
        """Set time zone and role; without them, a connection is not to be used."""
        if self._lease is None:
            super().init_connection_state()
            return
        BaseDatabaseWrapper.init_connection_state(self)
        try:
            self._configure_connection(self.connection)  # type: ignore[attr-defined]
        except BaseException:
            self._close()
            raise

    def _configure_timezone(self, connection: Any) -> bool:
        wanted: str | None = self.timezone_name
        if not wanted or connection.pgconn.parameter_status(b"TimeZone") == wanted.encode():
            return False
        changed: bool = super()._configure_timezone(connection)  # type: ignore[misc]
        return changed

    def _set_autocommit(self, autocommit: bool) -> None:
        if self.connection is None or self.connection.autocommit is not autocommit:
            super()._set_autocommit(autocommit)  # type: ignore[misc]

    def _set_isolation_level(self) -> None:
        level = self.settings_dict["OPTIONS"].get("isolation_level", IsolationLevel.READ_COMMITTED)
        try:
            self.isolation_level = level if isinstance(level, IsolationLevel) else IsolationLevel(level)
        except ValueError:
            raise ImproperlyConfigured(
                f"Invalid transaction isolation level {level} specified. Use one of the psycopg.IsolationLevel values."
            ) from None

    def connect(self) -> None:
        """Connect, and begin the transaction that the middleware asked for."""
        if self._request is not None and self.connection is not None:
            return  # Django asked whether a transaction is open, which began the request's
        self._open_cursors = 1  # until it is connected: none of the cursors on the way is the last
        try:
            super().connect()
        finally:
            self._open_cursors = 0
        if self._request is not None:
            self._request.begin()

    def _close(self) -> None:
        lease, self._lease = self._lease, None
        self._open_cursors = 0
        if lease is None:
            super()._close()  # type: ignore[misc]
            return
        with self.wrap_database_errors:
            lease.finish(Closed())
        self.connection = None

    def after_fork_in_child(self) -> None:
        """Forget the connection, which is the parent's; a transaction that was open on it cannot go on here."""
        if self._lease is not None:
            self.connection = self._lease = None
            self._open_cursors = 0
            if self._in_atomic_block:
                self.closed_in_transaction = self.needs_rollback = True

    def close_if_health_check_failed(self) -> None:
        """Ask the server only where a connection outlives requests; the pool looks at its own when it lends them."""
        if self.settings_dict.get("CONN_MAX_AGE", 0) != 0:
            BaseDatabaseWrapper.close_if_health_check_failed(self)

    def create_cursor(self, name: str | None = None) -> Any:
        """Return a cursor; with the release "query", the last to be closed outside a transaction gives back."""
        cursor: Any = super().create_cursor(name)
        if self.settings_dict["OPTIONS"].get("release") == "query" and self._lease is not None:
            self._open_cursors += 1
            cursor.close = partial(self._close_cursor, cursor, self._lease)
        return cursor

    def _close_cursor(self, cursor: Any, lease: Lease) -> None:
        del cursor.close
        cursor.close()
        if lease is self._lease:
            self._open_cursors -= 1
            if self._open_cursors == 0 and self.autocommit and not self.in_atomic_block:
                self.close()

    def ensure_timezone(self) -> bool:
        """Set the time zone of the current connection; the pool's others get theirs when they are borrowed."""
        if self.connection is None:
            return False
        return self._configure_timezone(self.connection)

    # -- the request's transaction, for the middleware ----------------------------------------------------------------

    @property
    def in_atomic_block(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether a transaction is open; begins the request's, because who asks is about to act upon the answer."""
        if self._request is not None:
            self._request.prepare()
        return self._in_atomic_block

    @in_atomic_block.setter
    def in_atomic_block(self, value: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._in_atomic_block = value

    def begin_request(self, route: Callable[[], str]) -> None:
        """Make what follows one transaction, which begins when the connection is first needed; *route* names it."""
        self._request = _RequestTransaction(self, route)
        if self.connection is not None:
            self._request.begin()

    def end_request(self, *, commit: bool) -> None:
        """Commit or roll back what `begin_request` began."""
        request, self._request = self._request, None
        if request is not None:
            request.end(commit)


class _RequestTransaction:
    """What the middleware asked for: an atomic block that begins when the connection is first needed."""

    def __init__(self, wrapper: DatabaseWrapper, route: Callable[[], str]) -> None:
        self.route = route
        self._wrapper = wrapper
        self._atomic: Atomic | None = None
        self._connecting = False

    def prepare(self) -> None:
        """Connect, and so begin, unless that is under way or done: an inner atomic block must find this one open."""
        if self._atomic is None and not self._connecting:
            self._connecting = True
            try:
                self._wrapper.ensure_connection()
            finally:
                self._connecting = False

    def begin(self) -> None:
        if self._atomic is None:
            self._atomic = Atomic(self._wrapper.alias, savepoint=True, durable=False)
            self._atomic.__enter__()

    def end(self, commit: bool) -> None:
        if self._atomic is None:
            return
        # PostgreSQL answers the COMMIT of a failed transaction with ROLLBACK, and neither psycopg nor Django say so.
        connection = self._wrapper.connection
        failed = connection is not None and connection.pgconn.transaction_status == TransactionStatus.INERROR
        if failed or not commit:
            self._wrapper.set_rollback(True)
        self._atomic.__exit__(None, None, None)
        if failed and commit:
            with self._wrapper.wrap_database_errors:
                raise InFailedSqlTransaction(
                    "nothing was committed: a statement of this transaction failed and its error was ignored"
                )
