# Generated from pgmonkey/_async/connector.py by tools/twins.py: change that file, then run the tool.

"""Make the connections of a pool, with the credentials as they are now, within a deadline."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from time import monotonic
from typing import Any, TypeAlias, cast
from weakref import WeakMethod

import psycopg
from psycopg import Connection
from psycopg.pq import TransactionStatus

from .._config.blueprint import Blueprint
from .._driver.deadlines import connecting_until
from .._driver.lending import lend, lendable, prepare_to_lend
from .._pool.pooled import Pooled
from ..errors import ConfigError, ServerUnavailableError
from .guard import Guard, OnError
from .psycopg_types import AnyConnection
from .waiting import Lock, ask
from .watcher import Watcher

logger = logging.getLogger("pgmonkey")

# Seconds that a connection attempt gets at least, however little time the borrower has left.  On a slow network a pool
# would otherwise never have a connection.
_MIN_SECONDS = 0.75

PooledConnection: TypeAlias = Pooled[AnyConnection, Watcher]


class Connector:
    """Connects as the blueprint says; *on_error* is told, if its owner still exists, of each error of a connection."""

    def __init__(self, blueprint: Blueprint, on_error: OnError) -> None:
        self._blueprint = blueprint
        self._on_error = WeakMethod(on_error)
        self._class = lendable(blueprint.settings.connection_class or Connection, Guard)
        self._credentials = blueprint.credentials
        self.checks = blueprint.settings.check_on_checkout or blueprint.settings.check is not None
        """Whether the server is asked before a connection is lent."""

    def connect(self, pooled: PooledConnection, deadline: float | None) -> None:
        """Connect *pooled*; raise `ServerUnavailableError`, or ConnectionTimeout after the *deadline*."""
        token = connecting_until.set(None if deadline is None else max(deadline, monotonic() + _MIN_SECONDS))
        try:
            connection = self._connect()
        except BaseException as error:
            if not isinstance(error, psycopg.Error):
                # Cancelled half-way.  These frames hold the unfinished connection; the server would wait a minute for
                # it (authentication_timeout) and block a DROP DATABASE for as long.
                traceback.clear_frames(error.__traceback__)
            raise
        finally:
            connecting_until.reset(token)
        connection.lock = Lock()
        watcher = cast(Guard, connection).own_watcher()
        pooled.attach(connection, watcher, self._blueprint.settings.max_lifetime)
        state = connection.__dict__
        state.update(on_error=self._on_error, command_timeout=self._blueprint.command_timeout, prepared=pooled.prepared)
        if self._blueprint.transaction_settings:
            state["transaction_settings"] = self._blueprint.transaction_settings
        self.configure(pooled)

    def configure(self, pooled: PooledConnection) -> None:
        """Make a connection, which is new or was cleaned, what every borrower is to find.

        Raises what the `configure` function of the settings raises, and `psycopg.ProgrammingError` when it leaves a
        failed transaction.
        """
        connection, blueprint = pooled.connection, self._blueprint
        settings = blueprint.settings
        pooled.autocommit = blueprint.autocommit
        if settings.configure is not None:
            # The same each time: what it adds to the object, such as a handler, must not be there twice.
            if pooled.unconfigured is None:
                pooled.unconfigured = lend(connection, autocommit=blueprint.autocommit)
            connection.__dict__ = lend(pooled.unconfigured, autocommit=blueprint.autocommit).__dict__
            settings.configure(connection)
            if connection.pgconn.transaction_status == TransactionStatus.INTRANS:
                connection.commit()
            if connection.pgconn.transaction_status != TransactionStatus.IDLE:
                raise psycopg.ProgrammingError("the 'configure' function left a transaction that failed")
            pooled.autocommit = connection.autocommit
        pooled.prepared.settle(always=settings.clean_on_return == "always", pgbouncer=blueprint.pgbouncer)
        pooled.begin = prepare_to_lend(connection)

    def check(self, pooled: PooledConnection, deadline: float, *, ask: bool = False) -> None:
        """Ask the server whether it is there, as the settings say; raise what psycopg raises when it is not.

        With *ask*, it is asked whatever they say.
        """
        settings, state = self._blueprint.settings, pooled.connection.__dict__
        state["command_timeout"] = max(0.0, deadline - monotonic())
        try:
            if ask or settings.check_on_checkout:
                pooled.connection.execute("SELECT 1")
            if settings.check is not None:
                settings.check(pooled.connection)
                self._expect_idle(pooled, "check")
        finally:
            state["command_timeout"] = self._blueprint.command_timeout

    def reset(self, pooled: PooledConnection) -> None:
        """Call the `reset` function of the settings, if there is one; raise what it raises."""
        reset = self._blueprint.settings.reset
        if reset is not None:
            reset(pooled.connection)
            self._expect_idle(pooled, "reset")

    def _expect_idle(self, pooled: PooledConnection, hook: str) -> None:
        """Raise `psycopg.ProgrammingError` where the function called *hook* has left a transaction open."""
        connection = pooled.connection
        if connection.pgconn.transaction_status != TransactionStatus.IDLE:
            raise psycopg.ProgrammingError(f"the {hook!r} function left a transaction open, or the connection closed")
        if not connection.autocommit:
            connection.set_autocommit(True)  # the pool's own mode; borrowers get theirs when it is lent

    def _connect(self) -> AnyConnection:
        credentials = self._current_credentials()
        while True:
            given = {key: ask(value) if callable(value) else value for key, value in credentials.items()}
            try:
                # The pooled object is always in autocommit; what is lent over it has the mode that was asked for.
                arguments = {**self._blueprint.connect, **given, "autocommit": True}
                connection: AnyConnection = self._class.connect(**arguments)
            except psycopg.OperationalError as error:
                # The credentials may have changed since they were read.
                previous, credentials = credentials, self._current_credentials()
                if credentials == previous:
                    # Subclasses, such as ConnectionTimeout, say what they are themselves.
                    if type(error) is psycopg.OperationalError:
                        raise ServerUnavailableError(str(error)) from error
                    raise
            else:
                self._credentials = credentials
                return connection

    def _current_credentials(self) -> Mapping[str, Any]:
        """Return what the references of the configuration point to now, or the last that worked."""
        if self._blueprint.refresh is None:
            return self._credentials
        try:
            return self._blueprint.refresh()
        except ConfigError as error:
            logger.warning("%s: using the last credentials that worked", error)
            return self._credentials
