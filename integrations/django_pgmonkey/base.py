"""The database backend: Django's own for PostgreSQL, on connections borrowed from the shared core."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.postgresql import base as postgresql
from django.db.transaction import Atomic
from psycopg import IsolationLevel
from psycopg.errors import InFailedSqlTransaction
from psycopg.pq import TransactionStatus

from pgmonkey import ConfigError, ConnectionHandle, Lease, PGConnectionManager, load_config

_OPTIONS = ("config", "resolve_env", "allow_sensitive_defaults")
_NOT_LIBPQ = ("pool", "assume_role", "isolation_level", "server_side_binding", "prepare_threshold", "cursor_factory")
# Django's name of a setting, and libpq's keyword for it.
_SETTINGS = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}


class _Pools:
    """The pool of each alias, for the settings that the alias has now: test databases change them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._managers: dict[str, PGConnectionManager] = {}
        self._handles: dict[str, tuple[dict[str, Any], ConnectionHandle]] = {}

    def get(self, alias: str, config: dict[str, Any]) -> ConnectionHandle:
        known = self._handles.get(alias)
        if known is not None and known[0] == config and known[1].usable_here:
            return known[1]
        with self._lock:
            manager = self._managers.setdefault(alias, PGConnectionManager())
            # Another thread may have done it by now, and its pool is not to be closed.
            if known is not None and self._handles.get(alias) is known:
                del self._handles[alias]
                manager.clear_cache()
        handle = manager.get_database_connection_from_dict(config, "pool")
        self._handles[alias] = (config, handle)
        return handle

    def close(self, alias: str) -> None:
        with self._lock:
            self._handles.pop(alias, None)
            if alias in self._managers:
                self._managers[alias].clear_cache()


_pools = _Pools()


class _Loan:
    """Gives a connection back when the thread that borrowed it ends without closing it.

    Django closes connections at the end of a request only, and its wrappers are in reference cycles.
    """

    def __init__(self, wrapper: DatabaseWrapper, lease: Lease) -> None:
        self._wrapper = weakref.ref(wrapper)
        self._lease = lease

    def __del__(self) -> None:
        wrapper = self._wrapper()
        if self._lease.active and (wrapper is None or not wrapper.allow_thread_sharing):
            self._lease.finish(_Closed())
            if wrapper is not None:
                wrapper.connection = None

    @property
    def active(self) -> bool:
        return self._lease.active


class _OfThread(threading.local):
    """The loans that a thread has; they go when it does."""

    def __init__(self) -> None:
        self._loans: list[_Loan] = []

    def add(self, loan: _Loan) -> None:
        self._loans = [*(other for other in self._loans if other.active), loan]


_of_thread = _OfThread()


class _Closed(Exception):
    """Why a connection that Django closes is rolled back: what was to be committed is by then."""


class DatabaseWrapper(postgresql.DatabaseWrapper):
    """A connection of Django, borrowed when it first needs one and given back when Django closes it."""

    _request: _RequestTransaction | None = None

    def __init__(self, settings_dict: dict[str, Any], alias: str = "default") -> None:
        super().__init__(settings_dict, alias)
        self._lease: Lease | None = None
        self._yaml = self._load(settings_dict["OPTIONS"])
        if settings_dict["NAME"] == "":
            # Test databases are named after it.
            settings_dict["NAME"] = self._yaml["connection_settings"].get("dbname", "")

    @staticmethod
    def _load(options: dict[str, Any]) -> dict[str, Any]:
        if "config" not in options:
            return {"connection_settings": {}}
        try:
            return load_config(
                options["config"],
                resolve_env=options.get("resolve_env", False),
                allow_sensitive_defaults=options.get("allow_sensitive_defaults", False),
            )
        except ConfigError as error:
            raise ImproperlyConfigured(str(error)) from error

    # -- the pool -------------------------------------------------------------------------------------------------

    @property
    def pool(self) -> ConnectionHandle | None:
        """The pool for this alias's settings, None for the alias-less connection that makes test databases."""
        if self.alias == NO_DB_ALIAS:
            return None
        if self.settings_dict.get("CONN_MAX_AGE", 0) != 0:
            raise ImproperlyConfigured(f"DATABASES[{self.alias!r}]: with a pool, CONN_MAX_AGE must be 0")
        return _pools.get(self.alias, self._config())

    def close_pool(self) -> None:
        """Close this alias's pool; whoever else in the process uses the same configuration keeps it."""
        _pools.close(self.alias)

    def _config(self) -> dict[str, Any]:
        pool = self.settings_dict["OPTIONS"].get("pool")
        config = {**self._yaml, "connection_settings": self._connection_settings()}
        if isinstance(pool, dict):
            config["pool_settings"] = {**(config.get("pool_settings") or {}), **pool}
        return config

    def _connection_settings(self) -> dict[str, Any]:
        settings = dict(self._yaml["connection_settings"])
        for key, value in self.settings_dict["OPTIONS"].items():
            if key not in (*_OPTIONS, *_NOT_LIBPQ):
                settings[key] = value
        for name, keyword in _SETTINGS.items():
            if self.settings_dict[name]:
                settings[keyword] = self.settings_dict[name]
        return settings

    def get_connection_params(self) -> dict[str, Any]:
        """Return what psycopg's ``connect()`` gets: the YAML's settings, overridden by Django's."""
        params: dict[str, Any] = super().get_connection_params()
        for name in _OPTIONS:
            params.pop(name, None)
        return {**self._yaml["connection_settings"], **params}

    # -- connections ----------------------------------------------------------------------------------------------

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Borrow a connection and give it the properties that Django's settings ask for."""
        pool = self.pool
        if pool is None:
            return super().get_new_connection(conn_params)
        self._set_isolation_level()
        lease = pool.borrow(autocommit=True, context=conn_params["context"])
        connection = lease.connection
        try:
            connection.cursor_factory = conn_params["cursor_factory"]
            connection.prepare_threshold = conn_params["prepare_threshold"]
            if "isolation_level" in self.settings_dict["OPTIONS"]:
                connection.isolation_level = self.isolation_level
            if connection.info.encoding != "utf-8":
                connection.execute("SET client_encoding TO 'UTF8'")
            self._configure_connection(connection)  # type: ignore[attr-defined]
        except BaseException as error:
            lease.finish(error)
            raise
        self._lease = lease
        _of_thread.add(_Loan(self, lease))
        return connection

    def _set_isolation_level(self) -> None:
        level = self.settings_dict["OPTIONS"].get("isolation_level", IsolationLevel.READ_COMMITTED)
        try:
            self.isolation_level = IsolationLevel(level)
        except ValueError:
            raise ImproperlyConfigured(
                f"DATABASES[{self.alias!r}]: isolation_level: {level!r} is not a psycopg.IsolationLevel"
            ) from None

    def ensure_connection(self) -> None:
        """Connect unless connected."""
        if self._request is None or self.connection is not None:
            super().ensure_connection()
            return
        self._request.connecting = True
        try:
            super().ensure_connection()
        finally:
            self._request.connecting = False

    def connect(self) -> None:
        """Connect, and begin the transaction that the middleware asked for."""
        super().connect()
        if self._request is not None:
            self._request.begin()

    def _commit(self) -> None:
        # PostgreSQL answers the COMMIT of a failed transaction with ROLLBACK, and psycopg says nothing of it.
        if self.connection is not None and self.connection.pgconn.transaction_status == TransactionStatus.INERROR:
            with self.wrap_database_errors:
                raise InFailedSqlTransaction(
                    "nothing was committed: a statement of this transaction failed and its error was ignored"
                )
        super()._commit()  # type: ignore[misc]

    def _close(self) -> None:
        lease, self._lease = self._lease, None
        if lease is None:
            super()._close()  # type: ignore[misc]
            return
        with self.wrap_database_errors:
            lease.finish(_Closed())
        self.connection = None

    def ensure_timezone(self) -> bool:
        """Set the time zone of the current connection; the pool's others get theirs when they are borrowed."""
        if self.connection is None:
            return False
        changed: bool = self._configure_timezone(self.connection)  # type: ignore[attr-defined]
        return changed

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

    def begin_request(self) -> None:
        """Make what follows one transaction, which begins when the connection is first needed."""
        self._request = _RequestTransaction(self)
        if self.connection is not None:
            self._request.begin()

    def end_request(self, *, commit: bool) -> None:
        """Commit or roll back what `begin_request` began."""
        request, self._request = self._request, None
        if request is not None:
            request.end(commit)


class _RequestTransaction:
    """What the middleware asked for: an atomic block that begins when the connection is first needed."""

    def __init__(self, wrapper: DatabaseWrapper) -> None:
        self._wrapper = wrapper
        self._atomic: Atomic | None = None
        self.connecting = False

    def prepare(self) -> None:
        """Connect, and so begin, unless that is under way or done: an inner atomic block must find this one open."""
        if self._atomic is None and not self.connecting:
            self._wrapper.ensure_connection()

    def begin(self) -> None:
        if self._atomic is None:
            self._atomic = Atomic(self._wrapper.alias, savepoint=True, durable=False)
            self._atomic.__enter__()

    def end(self, commit: bool) -> None:
        if self._atomic is not None:
            if not commit:
                self._wrapper.set_rollback(True)
            self._atomic.__exit__(None, None, None)
