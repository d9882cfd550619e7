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
from psycopg.cursor import Cursor
from psycopg.errors import ConnectionTimeout
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from .._config.blueprint import Blueprint
from .._driver.deadlines import SILENT, Deadline, by_its_key
from .._driver.lending import lend, lendable, prepare_to_lend
from .._driver.names import look_up
from .._driver.prepared import Prepared
from .._driver.tracers import Tracer, is_wrapped
from .._pool.pooled import Pooled
from ..errors import CommandTimeoutError, ConfigError, ServerUnavailableError
from .guard import Guard, OnError
from .psycopg_types import AnyConnection
from .waiting import Lock, ask, connect_within, wait_for
from .watcher import Watcher

logger = logging.getLogger("pgmonkey")

# Linux gives no process a larger number; other systems have smaller ones.
_LARGEST_PID = 2**22
# Seconds for finding out about a pooler, and how often both clients ask.
_PATIENCE, _ROUNDS = 1.0, 4

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
        self.shared: bool | None = None
        """Whether a pooler gives a session to one client after the other; None when there seems to be no pooler."""
        self._asked = False

    def connect(self, pooled: PooledConnection, deadline: Deadline | None) -> None:
        """Connect *pooled*; raise `ServerUnavailableError`, or ConnectionTimeout after the *deadline*."""
        try:
            connection = self._connect(deadline)
        except BaseException as error:
            if not isinstance(error, psycopg.Error):
                # Cancelled half-way.  These frames hold the unfinished connection; the server would wait a minute for
                # it (authentication_timeout) and block a DROP DATABASE for as long.
                traceback.clear_frames(error.__traceback__)
            raise
        connection.lock = Lock()
        watcher = cast(Guard, connection).own_watcher()
        pooled.attach(connection, watcher, self._blueprint.settings.max_lifetime)
        state = connection.__dict__
        state.update(on_error=self._on_error, command_timeout=self._blueprint.command_timeout, prepared=pooled.prepared)
        if self._blueprint.transaction_settings:
            state["transaction_settings"] = self._blueprint.transaction_settings
        if self._blueprint.notice_pooler:
            self._notice_pooler(pooled, deadline)
        try:
            self.configure(pooled, deadline)
        except CommandTimeoutError:
            if deadline is None or deadline.left:
                raise
            raise deadline.late("the 'configure' function did not end") from None

    def connect_alone(self, deadline: Deadline) -> AnyConnection:
        """Return a connection that belongs to no pool, to listen on; raise as `connect`.

        Raises `psycopg.NotSupportedError` behind a pooler that gives its session to others, too.
        """
        if self._blueprint.pgbouncer:
            raise _no_session("'pgbouncer: true'")
        connection = self._connect(deadline)
        connection.lock = Lock()
        watcher = cast(Guard, connection).own_watcher()
        try:
            connection.__dict__["prepared"] = Prepared.install(connection)
            connection.__dict__["command_timeout"] = self._blueprint.command_timeout or deadline.seconds
            told = connection.pgconn.backend_pid
            if self._blueprint.notice_pooler and self._is_shared(connection, deadline, told):
                raise _no_session("a pooler, such as PgBouncer in transaction mode")
            connection.execute("SET client_encoding TO 'UTF8'")
        except BaseException:
            watcher.finish()
            raise
        return connection

    def _notice_pooler(self, pooled: PooledConnection, deadline: Deadline | None) -> None:
        """Find out whether there is a pooler that shares sessions, which would mix up prepared statements.

        A pooler makes the key for cancelling, so the process number in it is not the server's own; PgBouncer's is any
        number of 32 bits.  Where it could be the server's, as Supavisor's could, the first connection asks.
        """
        told = pooled.pgconn.backend_pid
        suspicious = not 0 < told <= _LARGEST_PID
        if self.shared is None and (suspicious or not self._asked):
            self._asked = True
            shared = self._is_shared(pooled.connection, deadline, told)
            if shared and not self.shared:
                logger.warning(
                    "%s: connected to a pooler that shares sessions between clients, such as PgBouncer in "
                    "transaction mode, so nothing is prepared: set 'pgbouncer: true' in connection_settings "
                    "(or 'pgbouncer: false' if every client may prepare statements there)",
                    self._blueprint.name,
                )
            self.shared = self.shared or shared
        if self.shared:
            pooled.prepared.prepare_nothing()

    def _is_shared(self, connection: AnyConnection, deadline: Deadline | None, told: int) -> bool | None:
        """Tell whether a second client gets the session of *connection*, or this one's changes; True if unknown.

        None where the session's process is the one that the client was *told*.
        """
        limit = Deadline(monotonic() + _PATIENCE, _PATIENCE)
        if deadline is not None and deadline.at < limit.at:
            limit = deadline
        ours: set[int] = set()
        others: set[int] = set()
        # Of its own: what has executed a statement knows no type that the program registers with psycopg afterwards.
        connection = lend(connection, autocommit=True)
        try:
            self._limit(connection, limit)
            if _backend(connection) == told:
                return None
            other = self._connect(limit)
            try:
                for _ in range(_ROUNDS):
                    self._limit(connection, limit)
                    self._limit(other, limit)
                    ours.add(_backend(connection))
                    others.add(_backend(other))
            finally:
                other.close()
        except psycopg.Error:
            if connection.closed:
                raise ServerUnavailableError(f"connected, but {SILENT} within {limit.seconds:g} s") from None
            return True
        return len(ours | others) != 2 or not ours.isdisjoint(others)

    def configure(self, pooled: PooledConnection, deadline: Deadline | None = None) -> None:
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
            if deadline is not None:
                self._limit(connection, deadline)
            settings.configure(connection)
            if connection.pgconn.transaction_status == TransactionStatus.INTRANS:
                connection.commit()
            if connection.pgconn.transaction_status != TransactionStatus.IDLE:
                raise psycopg.ProgrammingError("the 'configure' function left a transaction that failed")
            connection.__dict__["command_timeout"] = blueprint.command_timeout
            pooled.autocommit = connection.autocommit
        pooled.prepared.settle(always=settings.clean_on_return == "always", pgbouncer=blueprint.pgbouncer)
        pooled.begin = prepare_to_lend(connection)

    def check(self, pooled: PooledConnection, deadline: Deadline, *, ask: bool = False) -> None:
        """Ask the server whether it is there, as the settings say; raise what psycopg raises when it is not.

        With *ask*, it is asked whatever they say.
        """
        settings = self._blueprint.settings
        self._limit(pooled.connection, deadline)
        try:
            if ask or settings.check_on_checkout:
                pooled.connection.execute("SELECT 1")
            if settings.check is not None:
                settings.check(pooled.connection)
                self._expect_idle(pooled, "check")
        finally:
            pooled.connection.__dict__["command_timeout"] = self._blueprint.command_timeout

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

    def _limit(self, connection: AnyConnection, deadline: Deadline) -> None:
        """Have each statement end at the *deadline*, or earlier."""
        limit = self._blueprint.command_timeout
        connection.__dict__["command_timeout"] = deadline.left if limit is None else min(limit, deadline.left)

    def _connect(self, deadline: Deadline | None) -> AnyConnection:
        credentials = self._current_credentials()
        while True:
            given = {key: ask(value) if callable(value) else value for key, value in credentials.items()}
            try:
                # The pooled object is always in autocommit; what is lent over it has the mode that was asked for.
                arguments = {**self._blueprint.connect, **given, "autocommit": True}
                arguments |= _addresses(arguments, deadline)
                connection: AnyConnection = connect_within(deadline, self._class.connect, arguments)
                if is_wrapped(Connection.__dict__["connect"]):
                    connection = Tracer.take(connection, arguments.get("cursor_factory") or Cursor)
            except psycopg.OperationalError as error:
                # The credentials may have changed since they were read.
                previous, credentials = credentials, self._current_credentials()
                if credentials == previous:
                    # Subclasses, such as ConnectionTimeout, say what they are themselves.
                    if type(error) is psycopg.OperationalError:
                        raise ServerUnavailableError(str(error)) from error
                    if isinstance(error, ConnectionTimeout):
                        raise by_its_key(error, self._blueprint.connect.get("connect_timeout")) from None
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


def _no_session(what: str) -> psycopg.NotSupportedError:
    return psycopg.NotSupportedError(
        f"LISTEN needs a session of its own, and {what} shares sessions between clients: listen on a Database whose "
        "configuration connects to the server itself, or to PgBouncer in session mode with 'pgbouncer: false'"
    )


def _backend(connection: AnyConnection) -> int:
    """Return the process number of the session that a query runs in."""
    cursor = Cursor(connection, row_factory=tuple_row)
    cursor.execute("SELECT pg_backend_pid()", prepare=False)
    row = cursor.fetchone()
    return 0 if row is None else int(row[0])


def _addresses(arguments: Mapping[str, Any], deadline: Deadline | None) -> dict[str, str]:
    """Return the arguments of a connection that give the addresses of its hosts; none where there is no name."""
    search = look_up(arguments)
    if search is None:
        return {}
    wait_for(search, None if deadline is None else deadline.left)
    if not search.done() and deadline is not None:
        raise deadline.late(f"the host name {arguments.get('host')!r} was not resolved")
    found = search.result()
    if isinstance(found, psycopg.Error):
        raise psycopg.OperationalError(str(found))
    return found
