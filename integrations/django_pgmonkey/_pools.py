"""The pools that are open for each alias, for the settings that it has now: test databases change them."""

from __future__ import annotations

import os
import threading
from math import inf
from typing import Any

from django.db.backends.base.base import NO_DB_ALIAS
from psycopg.errors import ConnectionTimeout
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from pgmonkey import AsyncDatabase, ConnectionHandle, Deadline, PGConnectionManager, PoolTimeoutError

from ._deadline import current_deadline, read_deadline
from ._settings import Config, literal


class Pool:
    """What ``connection.pool`` is: a handle, with the names of psycopg_pool's pool that others ask for."""

    def __init__(self, handle: ConnectionHandle, check: object) -> None:
        self._handle = handle
        self._check = check

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def stats(self) -> dict[str, int]:
        """Return the counters, under psycopg_pool's names."""
        return self._handle.stats()

    get_stats = stats


class Pools:
    """The open pools by alias, synchronous and asynchronous."""

    def __init__(self) -> None:
        self.after_fork_in_child()
        self._managers: dict[str, PGConnectionManager] = {}
        self._handles: dict[str, tuple[Config, ConnectionHandle]] = {}
        self._shown: dict[str, tuple[ConnectionHandle, Pool]] = {}
        self._async: dict[str, tuple[Config, AsyncDatabase[TupleRow]]] = {}

    def after_fork_in_child(self) -> None:
        """Make a new lock: the old one may be held by a thread that runs only in the parent."""
        self._lock = threading.Lock()

    def known(self, alias: str, config: Config) -> ConnectionHandle | None:
        """Return the pool of *alias*, if it is open for *config*."""
        known = self._handles.get(alias)
        # Identity first: every borrow asks, and comparing whole configurations takes longer.
        if known is not None and (known[0] is config or known[0] == config) and known[1].usable_here:
            return known[1]
        return None

    def get(self, alias: str, config: Config, deadline: Deadline | None) -> ConnectionHandle:
        """Open the pool of *alias* by the *deadline*, and return it.

        Raises what psycopg raises when no connection can be made, and `DeadlineExceededError`.
        """
        known = self._handles.get(alias)
        with self._lock:
            manager = self._managers.setdefault(alias, PGConnectionManager())
            # Another thread may have opened the new pool by now, which must stay open.
            if known is not None and self._handles.get(alias) is known:
                del self._handles[alias]
                manager.clear_cache()
        timeout = None if deadline is None else deadline.wait(inf)
        # Outside of the lock, because connecting may take long.  For one configuration, threads get the same handle.
        try:
            handle = manager.get_database_connection_from_dict(
                literal(config), "normal" if alias == NO_DB_ALIAS else "pool", resolve_env=True, timeout=timeout
            )
        except (PoolTimeoutError, ConnectionTimeout) as error:
            if deadline is None or deadline.left:
                raise
            raise deadline.exceeded("no connection became free") from error
        self._handles[alias] = (config, handle)
        return handle

    def show(self, alias: str, config: Config, handle: ConnectionHandle) -> Pool:
        """Return *handle*, the pool of *alias*, as Django's pools are."""
        known = self._shown.get(alias)
        if known is None or known[0] is not handle:
            settings = config.get("pool_settings") or {}
            own = ConnectionPool.check_connection if settings.get("check_on_checkout") else None
            known = self._shown[alias] = (handle, Pool(handle, settings.get("check", own)))
        return known[1]

    def get_async(self, alias: str, config: Config) -> AsyncDatabase[TupleRow]:
        """Return the asynchronous database of *alias*; its pool opens with the first query."""
        with self._lock:
            known = self._async.get(alias)
            if known is None or known[0] != config:
                if known is not None:
                    known[1].release()  # not closed: others in the process may use its pool
                database = AsyncDatabase(literal(config), resolve_env=True)
                database.framework = "django"
                if read_deadline() is not None:
                    database.deadline = current_deadline.get
                known = self._async[alias] = (config, database)
            return known[1]

    def close(self, alias: str) -> None:
        """Close the pools of *alias*; they stay open for others in the process with the same configuration."""
        with self._lock:
            self._handles.pop(alias, None)
            self._shown.pop(alias, None)
            if alias in self._managers:
                self._managers[alias].clear_cache()
            if alias in self._async:
                self._async.pop(alias)[1].release()


pools = Pools()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pools.after_fork_in_child)
