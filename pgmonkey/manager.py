"""`PGConnectionManager` returns the one connection or pool that the process has for a configuration."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

from ._async.handle import AsyncConnectionHandle
from ._async.handle import open_handle as open_async_handle
from ._config.schema import KINDS, Config, Kind
from ._config.source import Origin, Path, Sources
from ._pool.cache import Holder, Key, cache
from ._sync.handle import ConnectionHandle, open_handle
from .errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Unpack

SyncKind = Literal["normal", "pool"]
AsyncKind = Literal["async", "async_pool"]


class Reading(TypedDict, total=False):
    """How a configuration is read."""

    resolve_env: bool
    allow_sensitive_defaults: bool
    profile: str | None


class Options(Reading, total=False):
    """Options of `PGConnectionManager.get_database_connection`."""

    force_reload: bool
    timeout: float | None


class CacheInfo(TypedDict):
    """What `PGConnectionManager.cache_info` returns."""

    size: int
    connection_types: dict[str, str]


class PGConnectionManager:
    """Connections and pools by configuration.

    All managers of a process share one cache: for the same configuration they get the same connection, which is closed
    when the last of them releases it.  A manager may be used from any thread and any event loop.
    """

    def __init__(self) -> None:
        self._sources = Sources()
        self._holder = Holder()

    @overload
    def get_database_connection(self, config: Path, kind: SyncKind, **options: Unpack[Options]) -> ConnectionHandle: ...
    @overload
    def get_database_connection(
        self, config: Path, kind: AsyncKind, **options: Unpack[Options]
    ) -> Awaitable[AsyncConnectionHandle]: ...
    # Untyped: with *kind* left to the file, a type checker cannot know which of the two it is.
    @overload
    def get_database_connection(self, config: Path, kind: Kind | None = ..., **options: Unpack[Options]) -> Any: ...
    def get_database_connection(
        self,
        config: Path,
        kind: Kind | None = None,
        *,
        force_reload: bool = False,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        profile: str | None = None,
        timeout: float | None = None,
    ) -> ConnectionHandle | Awaitable[AsyncConnectionHandle]:
        """Return the open connection or pool of *kind* for the configuration file *config*; awaitable for async kinds.

        *kind* is ``normal``, ``pool``, ``async`` or ``async_pool``, and defaults to the file's ``connection_type``.
        The same configuration and kind give the same object, until the file changes, or a variable or secret file that
        it refers to.  *force_reload* replaces the object with a new one; *profile* chooses one of the ``profiles``.
        With a *timeout*, in seconds, it tries to connect once, and for no longer.

        Raises `ConfigError`, `EnvInterpolationError`, or psycopg's exception when the server cannot be reached.
        """
        return self._open(
            self._sources.config(config, resolve_env, allow_sensitive_defaults, profile), kind, force_reload, timeout
        )

    @overload
    def get_database_connection_from_dict(
        self, config: Mapping[str, object], kind: SyncKind, **options: Unpack[Options]
    ) -> ConnectionHandle: ...
    @overload
    def get_database_connection_from_dict(
        self, config: Mapping[str, object], kind: AsyncKind, **options: Unpack[Options]
    ) -> Awaitable[AsyncConnectionHandle]: ...
    @overload
    def get_database_connection_from_dict(
        self, config: Mapping[str, object], kind: Kind | None = ..., **options: Unpack[Options]
    ) -> Any: ...
    def get_database_connection_from_dict(
        self,
        config: Mapping[str, object],
        kind: Kind | None = None,
        *,
        force_reload: bool = False,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        profile: str | None = None,
        timeout: float | None = None,
    ) -> ConnectionHandle | Awaitable[AsyncConnectionHandle]:
        """Do the same as `get_database_connection` for a mapping."""
        return self._open(
            self._sources.config(config, resolve_env, allow_sensitive_defaults, profile), kind, force_reload, timeout
        )

    @property
    def cache_info(self) -> CacheInfo:
        """How many connections and pools this manager holds, and the type of each by a short key."""
        held = cache.held_by(self._holder)
        # The digest alone would not tell apart the kinds of one configuration, nor the pools of two event loops.
        return {
            "size": len(held),
            "connection_types": {f"{key[0][:12]}:{_suffix(key)}": handle.kind for key, handle in held},
        }

    def clear_cache(self) -> None:
        """Release every connection and pool, and close those that no other manager holds.

        A connection that is checked out is closed when it is given back.
        """
        # Files are read again at the next call, even if their signature is the same.
        self._sources.clear()
        cache.release(self._holder)

    async def clear_cache_async(self) -> None:
        """Do the same as `clear_cache`, which never blocks and so can also be called inside an event loop."""
        self.clear_cache()

    def load(
        self,
        config: Origin,
        *,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        profile: str | None = None,
    ) -> Config:
        """Return the checked configuration; read a file again only when it, or what it refers to, has changed."""
        return self._sources.config(config, resolve_env, allow_sensitive_defaults, profile)

    # Not a coroutine: for sync kinds the callers get the connection itself.
    def _open(
        self, config: Config, kind: Kind | None, force_reload: bool, timeout: float | None
    ) -> ConnectionHandle | Awaitable[AsyncConnectionHandle]:
        kind = config.kind if kind is None else kind
        if kind not in KINDS:
            raise ConfigError(f"{config.source}: {kind!r} is not a connection type; use one of {', '.join(KINDS)}")
        if kind in ("async", "async_pool"):
            # A coroutine: its body runs, and looks for the event loop, when the caller awaits it.
            return open_async_handle(config, kind, self._holder, fresh=force_reload, timeout=timeout)
        return open_handle(config, kind, self._holder, fresh=force_reload, timeout=timeout)


def _suffix(key: Key) -> str:
    return key[1] if key[2] is None else f"{key[1]}:{key[2]:x}"
