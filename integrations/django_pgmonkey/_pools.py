"""The pool of each alias, for the settings that it has now: test databases change them."""

from __future__ import annotations

import os
import threading
from typing import Any

from django.db import connections

from pgmonkey import AsyncDatabase, ConnectionHandle, PGConnectionManager


class Pools:
    """What is open for each alias."""

    def __init__(self) -> None:
        self.after_fork_in_child()
        self._managers: dict[str, PGConnectionManager] = {}
        self._handles: dict[str, tuple[dict[str, Any], ConnectionHandle]] = {}
        self._async: dict[str, tuple[dict[str, Any], AsyncDatabase[Any]]] = {}

    def after_fork_in_child(self) -> None:
        """Take a fresh lock: the old one may be held by a thread that stayed with the parent."""
        self._lock = threading.Lock()

    def known(self, alias: str, config: dict[str, Any]) -> ConnectionHandle | None:
        """Return the pool of *alias*, if it is open for *config*."""
        known = self._handles.get(alias)
        if known is not None and (known[0] is config or known[0] == config) and known[1].usable_here:
            return known[1]
        return None

    def get(self, alias: str, config: dict[str, Any]) -> ConnectionHandle:
        """Open the pool of *alias* and return it; raise what psycopg raises when no connection can be made."""
        known = self._handles.get(alias)
        with self._lock:
            manager = self._managers.setdefault(alias, PGConnectionManager())
            # Another thread may have done it by now, and its pool is not to be closed.
            if known is not None and self._handles.get(alias) is known:
                del self._handles[alias]
                manager.clear_cache()
        handle = manager.get_database_connection_from_dict(config, "pool")
        self._handles[alias] = (config, handle)
        return handle

    def get_async(self, alias: str, config: dict[str, Any]) -> AsyncDatabase[Any]:
        """Return the asynchronous database of *alias*; it connects when it is first used."""
        with self._lock:
            known = self._async.get(alias)
            if known is None or known[0] != config:
                if known is not None:
                    known[1].release()
                known = self._async[alias] = (config, AsyncDatabase(config))
            return known[1]

    def close(self, alias: str) -> None:
        """Let go of what is open for *alias*; whoever else uses the same configuration keeps it."""
        with self._lock:
            self._handles.pop(alias, None)
            if alias in self._managers:
                self._managers[alias].clear_cache()
            if alias in self._async:
                self._async.pop(alias)[1].release()


pools = Pools()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pools.after_fork_in_child)


def async_database(alias: str) -> AsyncDatabase[Any]:
    """Return the asynchronous database of *alias*."""
    from .base import DatabaseWrapper

    wrapper = connections[alias]
    if not isinstance(wrapper, DatabaseWrapper):
        raise TypeError(f"DATABASES[{alias!r}] is not of the ENGINE django_pgmonkey")
    return pools.get_async(alias, wrapper.settings.config(wrapper.timezone_name))
