"""Make the connections of a pool, with today's credentials, within a deadline."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from time import monotonic
from typing import Any, cast
from weakref import WeakMethod

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from ._blueprint import Blueprint
from ._colour_async import Lock, ask
from ._guard_async import AsyncGuard, OnError
from ._lending import Pooled, lendable
from ._limits import connecting_until
from ._watcher_async import Watcher
from .errors import ConfigError

logger = logging.getLogger("pgmonkey")

_CHANCE = 0.75

AsyncPooledConnection = Pooled[AsyncConnection[Any], Watcher]


class AsyncConnector:
    """Connects as the blueprint says; *on_error* is told, if it still exists, of every error of a connection."""

    def __init__(self, plan: Blueprint, on_error: OnError) -> None:
        self._plan = plan
        self._on_error = WeakMethod(on_error)
        connection_class: Any = plan.settings.connection_class or AsyncConnection
        self._class = lendable(connection_class, AsyncGuard)
        self._credentials = plan.credentials
        self.checks = plan.settings.check_on_checkout or plan.settings.check is not None
        """Whether the server is asked before a connection is lent."""

    async def connect(self, deadline: float | None) -> AsyncPooledConnection:
        """Return a new connection; raise what psycopg raises when there is none by the *deadline*."""
        # Somebody in a hurry still gives a connection a chance, or a pool on a slow network would never have one.
        token = connecting_until.set(None if deadline is None else max(deadline, monotonic() + _CHANCE))
        try:
            connection = await self._connect()
        except BaseException as error:
            if not isinstance(error, psycopg.Error):
                # Cancelled half-way: these frames hold the connection in the making, for whose next word the server
                # would wait a minute (authentication_timeout), holding up whoever drops a database.
                traceback.clear_frames(error.__traceback__)
            raise
        finally:
            connecting_until.reset(token)
        connection.lock = Lock()
        watcher = cast(Any, connection).own_watcher()
        pooled = AsyncPooledConnection(connection, watcher, self._plan.settings.max_lifetime)
        connection.__dict__.update(on_error=self._on_error, command_timeout=self._plan.command_timeout)
        if self._plan.transaction_settings:
            connection.__dict__["transaction_settings"] = self._plan.transaction_settings
        try:
            await self._configure(connection)
            connection._get_tx_start_command()  # which is kept, for all whom it is lent to
        except BaseException:
            pooled.close()
            raise
        return pooled

    async def check(self, pooled: AsyncPooledConnection, deadline: float) -> None:
        """Ask the server whether it is there, if the settings want it; raise what psycopg raises when it is not."""
        settings = self._plan.settings
        if not self.checks:
            return
        state = pooled.connection.__dict__
        state["command_timeout"] = max(0.0, deadline - monotonic())
        try:
            if settings.check_on_checkout:
                await pooled.connection.execute("SELECT 1")
            if settings.check is not None:
                await settings.check(pooled.connection)
        finally:
            state["command_timeout"] = self._plan.command_timeout

    async def _connect(self) -> AsyncConnection[Any]:
        credentials = self._current_credentials()
        while True:
            given = {key: await ask(value) if callable(value) else value for key, value in credentials.items()}
            try:
                # The pooled object is always in autocommit; what is lent over it has the mode that was asked for.
                arguments = {**self._plan.connect, **given, "autocommit": True}
                connection: AsyncConnection[Any] = await self._class.connect(**arguments)
            except psycopg.OperationalError:
                # They may have changed since they were read.
                previous, credentials = credentials, self._current_credentials()
                if credentials == previous:
                    raise
            else:
                self._credentials = credentials
                return connection

    def _current_credentials(self) -> Mapping[str, Any]:
        """Return what the references of the configuration point to now, or else what was good the last time."""
        if self._plan.refresh is None:
            return self._credentials
        try:
            return self._plan.refresh()
        except ConfigError as error:
            logger.warning("%s: going on with the credentials that were good the last time", error)
            return self._credentials

    async def _configure(self, connection: AsyncConnection[Any]) -> None:
        if self._plan.settings.configure is not None:
            await self._plan.settings.configure(connection)
            if connection.pgconn.transaction_status != TransactionStatus.IDLE:
                raise psycopg.ProgrammingError("the 'configure' function left a transaction open")
