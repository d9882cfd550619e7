"""The database backend: Django's own for PostgreSQL, on connections borrowed from the shared pools of pgmonkey."""

from __future__ import annotations

import weakref
from functools import partial
from os import getpid
from typing import TYPE_CHECKING

from django.db.backends.base.base import NO_DB_ALIAS, BaseDatabaseWrapper

from pgmonkey import Lease

from ._settings import ConnectionParams
from ._thread_leases import ClosedError, ThreadLease, remember
from ._wrapper import PooledWrapper
from .client import DatabaseClient
from .validation import DatabaseValidation

if TYPE_CHECKING:
    from psycopg import Connection, Cursor


class DatabaseWrapper(PooledWrapper):
    """A connection of Django, borrowed when it first needs one and given back when Django closes it."""

    client_class = DatabaseClient
    validation_class = DatabaseValidation

    _open_cursors = 0
    _process = 0
    """The process that has borrowed the connection."""
    _thread_lease: weakref.ref[ThreadLease] | None = None

    # -- connections ----------------------------------------------------------------------------------------------

    def get_new_connection(self, conn_params: ConnectionParams) -> Connection[object]:
        """Borrow a connection and set it up as Django's settings say."""
        connection: Connection[object]
        # get_connection_params() was called just before, and looked at the settings.
        known = self._params
        pool = self._pool_for(known[0] if known is not None else self.settings.config(self.timezone_name))
        if self.lease is not None:  # connect() was called on an open connection
            self.lease.finish(ClosedError())
        route = self.request_transaction.route if self.request_transaction is not None else None
        # In autocommit, which Django turns off itself where it needs to.
        lease = pool.borrow(
            autocommit=True,
            context=conn_params["context"],
            label=route,
            deadline=self.deadline,
            framework="django",
        )
        connection = lease.connection
        try:
            connection.cursor_factory = conn_params["cursor_factory"]
            connection.prepare_threshold = conn_params["prepare_threshold"]
            if "isolation_level" in self.settings_dict["OPTIONS"]:
                connection.isolation_level = self.isolation_level
            # The YAML file may say otherwise, but Django's backend sends and expects UTF-8.
            if connection.pgconn.parameter_status(b"client_encoding") != b"UTF8":
                connection.execute("SET client_encoding TO 'UTF8'")
        except BaseException as error:
            lease.finish(error)
            raise
        self.lease, self._process = lease, getpid()
        self._thread_lease = remember(self, lease, self._thread_lease)
        return connection

    def init_connection_state(self) -> None:
        """Set time zone and role; close the connection when that fails, because it must not be used without them."""
        if self.lease is None:
            super().init_connection_state()
            return
        # Not the method of Django's PostgreSQL backend: it leaves connections of a pool to the pool.
        BaseDatabaseWrapper.init_connection_state(self)
        try:
            self._configure_connection(self.connection)
        except BaseException:
            self._close()
            raise

    def _configure_timezone(self, connection: Connection[object]) -> bool:
        # Django's method would ask connection.info, which is a new object each time.
        wanted: str | None = self.timezone_name
        if not wanted or connection.pgconn.parameter_status(b"TimeZone") == wanted.encode():
            return False
        return super()._configure_timezone(connection)

    def _set_autocommit(self, autocommit: bool) -> None:
        if self.lease is not None and self._process != getpid():
            self._connect_in_child()
        # Setting it takes a lock of psycopg's, and a borrowed connection is in autocommit already.
        if self.connection is None or self.connection.autocommit is not autocommit:
            super()._set_autocommit(autocommit)

    def connect(self) -> None:
        """Connect, and begin the transaction that the middleware asked for."""
        request = self.request_transaction
        if request is not None:
            if self.connection is not None:
                return  # reading in_atomic_block has connected, and begun the request's transaction
            request.reconnecting()
        self._open_cursors = 1  # while it connects, closing a cursor must not give the connection back
        try:
            super().connect()
        finally:
            self._open_cursors = 0
        if request is not None:
            request.begin()

    def _close(self) -> None:
        lease, self.lease = self.lease, None
        self._open_cursors = 0
        if lease is None:
            super()._close()
            return
        with self.wrap_database_errors:
            lease.finish(ClosedError())
        self.connection = None
        if self.alias == NO_DB_ALIAS:
            self.close_pool()

    def after_fork_in_child(self) -> None:
        """Forget the connection, which is the parent's; in a transaction it stays, and using it is a `ForkedError`."""
        # The lease knows its process: dropping it here sends nothing to the server.
        if self.lease is not None and not self._in_atomic_block:
            self.connection = self.lease = None
            self._open_cursors = 0

    def _connect_in_child(self) -> None:
        # Python was not told of the fork, as with uWSGI's.
        self.after_fork_in_child()
        self.ensure_connection()

    def close_if_health_check_failed(self) -> None:
        """Ask the server only where a connection outlives requests; otherwise the pool checks it when it lends it."""
        if self.settings_dict.get("CONN_MAX_AGE", 0) != 0:
            BaseDatabaseWrapper.close_if_health_check_failed(self)

    def create_cursor(self, name: str | None = None) -> Cursor[object]:
        """Return a cursor.

        With the release "query", closing the last cursor outside of a transaction gives the connection back.
        """
        if self.lease is not None and self._process != getpid():
            self._connect_in_child()
        cursor: Cursor[object] = super().create_cursor(name)
        if name is not None and self.lease is not None:
            cursor = self.lease.adopt(cursor)  # Django makes it by its class
        if self.settings_dict["OPTIONS"].get("release") == "query" and self.lease is not None:
            self._open_cursors += 1
            vars(cursor)["close"] = partial(self._close_cursor, cursor, self.lease)
        return cursor

    def _close_cursor(self, cursor: Cursor[object], lease: Lease) -> None:
        del vars(cursor)["close"]  # the cursor's own method again
        cursor.close()
        # A cursor of a connection that was closed in the meantime does not count.
        if lease is self.lease:
            self._open_cursors -= 1
            if self._open_cursors == 0 and self.autocommit and not self.in_atomic_block:
                self.close()

    def ensure_timezone(self) -> bool:
        """Set the time zone of the current connection; others get theirs when they are borrowed."""
        if self.connection is None:
            return False
        return self._configure_timezone(self.connection)
