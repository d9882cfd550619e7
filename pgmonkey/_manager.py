"""`PGConnectionManager`: from a configuration to the one connection or pool that the process has for it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any, Literal, TypedDict, overload

from . import _colour_async
from ._cache import Key, cache
from ._config import KINDS, Config, Kind, check, prepare
from ._connection import ConnectionHandle
from ._connection_async import AsyncConnectionHandle
from ._secrets import Dependencies, file_signature
from ._yaml import read_document
from .errors import ConfigError

Path = str | os.PathLike[str]
SyncKind = Literal["normal", "pool"]
AsyncKind = Literal["async", "async_pool"]


class CacheInfo(TypedDict):
    """What `PGConnectionManager.cache_info` returns."""

    size: int
    connection_types: dict[str, str]


class _Source:
    """Where a configuration comes from; it is read again only when that, or what it refers to, has changed."""

    def __init__(self, origin: Path | Mapping[str, Any], resolve_env: bool, allow_sensitive_defaults: bool) -> None:
        self._origin = origin
        self._file = None if isinstance(origin, Mapping) else origin
        self._options = {"resolve_env": resolve_env, "allow_sensitive_defaults": allow_sensitive_defaults}
        self._loaded: tuple[Config, tuple[int, int, int] | None, Dependencies | None] | None = None

    def config(self) -> Config:
        """Return the checked configuration as it is now."""
        loaded = self._loaded
        # Before the read: a change in between is then noticed at the next call.
        signature = None if self._file is None else file_signature(self._file)
        if loaded is not None and loaded[1] == signature and (loaded[2] is None or loaded[2].unchanged()):
            return loaded[0]
        dependencies = Dependencies()
        config = check(prepare(read_document(self._origin), dependencies=dependencies, **self._options))
        if dependencies:
            config = replace(config, reload=self.config)
        self._loaded = config, signature, dependencies or None
        return config


class PGConnectionManager:
    """Connections and pools by configuration.

    The cache behind it is one per process: managers that name the same configuration get the same connection, which is
    closed when the last of them lets go of it.  A manager may be used from any thread and any event loop.
    """

    def __init__(self) -> None:
        self._sources: dict[tuple[str, bool, bool], _Source] = {}

    @overload
    def get_database_connection(
        self,
        config: Path,
        kind: SyncKind,
        *,
        force_reload: bool = ...,
        resolve_env: bool = ...,
        allow_sensitive_defaults: bool = ...,
    ) -> ConnectionHandle: ...
    @overload
    def get_database_connection(
        self,
        config: Path,
        kind: AsyncKind,
        *,
        force_reload: bool = ...,
        resolve_env: bool = ...,
        allow_sensitive_defaults: bool = ...,
    ) -> Awaitable[AsyncConnectionHandle]: ...
    @overload
    def get_database_connection(
        self,
        config: Path,
        kind: Kind | None = ...,
        *,
        force_reload: bool = ...,
        resolve_env: bool = ...,
        allow_sensitive_defaults: bool = ...,
    ) -> Any: ...
    def get_database_connection(
        self,
        config: Path,
        kind: Kind | None = None,
        *,
        force_reload: bool = False,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
    ) -> Any:
        """Return the connection of *kind* for the configuration file *config*, opened; awaitable for async kinds.

        *kind* is ``normal``, ``pool``, ``async`` or ``async_pool``, and defaults to the file's ``connection_type``.
        The same configuration and kind give the same object, until the file, a variable or a secret file that it
        refers to changes.  *force_reload* puts a fresh connection in its place.

        Raises `ConfigError`, `EnvInterpolationError`, or what psycopg raises when the server cannot be reached.
        """
        loaded = self.load(config, resolve_env=resolve_env, allow_sensitive_defaults=allow_sensitive_defaults)
        return self._open(loaded, kind, force_reload)

    @overload
    def get_database_connection_from_dict(
        self,
        config: Mapping[str, Any],
        kind: SyncKind,
        *,
        force_reload: bool = ...,
        resolve_env: bool = ...,
        allow_sensitive_defaults: bool = ...,
    ) -> ConnectionHandle: ...
    @overload
    def get_database_connection_from_dict(
        self,
        config: Mapping[str, Any],
        kind: AsyncKind,
        *,
        force_reload: bool = ...,
        resolve_env: bool = ...,
        allow_sensitive_defaults: bool = ...,
    ) -> Awaitable[AsyncConnectionHandle]: ...
    @overload
    def get_database_connection_from_dict(
        self,
        config: Mapping[str, Any],
        kind: Kind | None = ...,
        *,
        force_reload: bool = ...,
        resolve_env: bool = ...,
        allow_sensitive_defaults: bool = ...,
    ) -> Any: ...
    def get_database_connection_from_dict(
        self,
        config: Mapping[str, Any],
        kind: Kind | None = None,
        *,
        force_reload: bool = False,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
    ) -> Any:
        """Do what `get_database_connection` does, for a configuration that is a dictionary already."""
        loaded = self.load(config, resolve_env=resolve_env, allow_sensitive_defaults=allow_sensitive_defaults)
        return self._open(loaded, kind, force_reload)

    @property
    def cache_info(self) -> CacheInfo:
        """What this manager holds: how many, and the type of each by a short key."""
        held = cache.held_by(self)
        return {
            "size": len(held),
            "connection_types": {f"{key[0][:12]}:{_suffix(key)}": handle.kind for key, handle in held},
        }

    def clear_cache(self) -> None:
        """Let go of every connection; those that no other manager holds are closed.

        A connection that is lent out at that moment is closed when it is given back.
        """
        self._sources.clear()
        cache.release(self)

    async def clear_cache_async(self) -> None:
        """Do what `clear_cache` does, from inside an event loop."""
        self.clear_cache()

    def load(
        self, config: Path | Mapping[str, Any], *, resolve_env: bool = False, allow_sensitive_defaults: bool = False
    ) -> Config:
        """Return the checked configuration; a file is read again only when it, or what it refers to, has changed."""
        if not isinstance(config, (str, PurePath)):  # asking the abstract classes takes longer than all the rest
            if isinstance(config, Mapping):
                return _Source(config, resolve_env, allow_sensitive_defaults).config()
            if not isinstance(config, os.PathLike):
                raise ConfigError(f"expected the path of a file or a mapping, not {type(config).__name__}")
        memo = (os.fspath(config), resolve_env, allow_sensitive_defaults)
        source = self._sources.get(memo)
        if source is None:
            source = self._sources.setdefault(memo, _Source(*memo))
        return source.config()

    def _open(self, config: Config, kind: Kind | None, force_reload: bool) -> Any:
        kind = config.kind if kind is None else kind
        if kind not in KINDS:
            raise ConfigError(f"{config.source}: {kind!r} is not a connection type; use one of {', '.join(KINDS)}")
        if kind == "async" or kind == "async_pool":
            return self._open_async(config, kind, force_reload)
        key: Key = (config.digest, kind, None)
        handle = cache.acquire(key, ConnectionHandle, config, self, fresh=force_reload)
        try:
            handle.open()
        except BaseException:
            if handle.unused:  # another caller may have had more luck
                cache.release(self, key)
            raise
        return handle

    async def _open_async(self, config: Config, kind: Kind, force_reload: bool) -> AsyncConnectionHandle:
        key: Key = (config.digest, kind, id(_colour_async.current_loop()))
        handle = cache.acquire(key, AsyncConnectionHandle, config, self, fresh=force_reload)
        try:
            await handle.open()
        except BaseException:
            if handle.unused:  # another caller may have had more luck
                cache.release(self, key)
            raise
        return handle


def _suffix(key: Key) -> str:
    return key[1] if key[2] is None else f"{key[1]}:{key[2]:x}"
