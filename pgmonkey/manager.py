"""`PGConnectionManager`: from a configuration to the one connection or pool that the process has for it."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

from ._async import handle as async_handle
from ._config.schema import KINDS, Config, Kind
from ._config.source import Origin, Path, Sources
from ._pool.cache import Key, cache
from ._sync import handle as sync_handle
from .errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Unpack

SyncKind = Literal["normal", "pool"]
AsyncKind = Literal["async", "async_pool"]


class Options(TypedDict, total=False):
    """The options of `PGConnectionManager.get_database_connection`, for its overloads."""

    force_reload: bool
    resolve_env: bool
    allow_sensitive_defaults: bool


class CacheInfo(TypedDict):
    """What `PGConnectionManager.cache_info` returns."""

    size: int
    connection_types: dict[str, str]


class PGConnectionManager:
    """Connections and pools by configuration.

    The cache behind it is one per process: managers that name the same configuration get the same connection, which is
    closed when the last of them releases it.  A manager may be used from any thread and any event loop.
    """

    def __init__(self) -> None:
        self._sources = Sources()

    @overload
    def get_database_connection(
        self, config: Path, kind: SyncKind, **options: Unpack[Options]
    ) -> sync_handle.ConnectionHandle: ...
    @overload
    def get_database_connection(
        self, config: Path, kind: AsyncKind, **options: Unpack[Options]
    ) -> Awaitable[async_handle.AsyncConnectionHandle]: ...
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
    ) -> Any:
        """Return the connection of *kind* for the configuration file *config*, opened; awaitable for async kinds.

        *kind* is ``normal``, ``pool``, ``async`` or ``async_pool``, and defaults to the file's ``connection_type``.
        The same configuration and kind give the same object, until the file, a variable or a secret file that it
        refers to changes.  *force_reload* puts a fresh connection in its place.

        Raises `ConfigError`, `EnvInterpolationError`, or what psycopg raises when the server cannot be reached.
        """
        return self._open(self._sources.config(config, resolve_env, allow_sensitive_defaults), kind, force_reload)

    @overload
    def get_database_connection_from_dict(
        self, config: Mapping[str, Any], kind: SyncKind, **options: Unpack[Options]
    ) -> sync_handle.ConnectionHandle: ...
    @overload
    def get_database_connection_from_dict(
        self, config: Mapping[str, Any], kind: AsyncKind, **options: Unpack[Options]
    ) -> Awaitable[async_handle.AsyncConnectionHandle]: ...
    @overload
    def get_database_connection_from_dict(
        self, config: Mapping[str, Any], kind: Kind | None = ..., **options: Unpack[Options]
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
        """Do as `get_database_connection`, for a configuration that is a mapping already."""
        return self._open(self._sources.config(config, resolve_env, allow_sensitive_defaults), kind, force_reload)

    @property
    def cache_info(self) -> CacheInfo:
        """What this manager holds: how many, and the type of each by a short key."""
        held = cache.held_by(self)
        return {
            "size": len(held),
            "connection_types": {f"{key[0][:12]}:{_suffix(key)}": handle.kind for key, handle in held},
        }

    def clear_cache(self) -> None:
        """Release every connection; those that no other manager holds are closed.

        A connection that is lent out at that moment is closed when it is given back.
        """
        self._sources.clear()
        cache.release(self)

    async def clear_cache_async(self) -> None:
        """Do as `clear_cache`, from inside an event loop."""
        self.clear_cache()

    def load(self, config: Origin, *, resolve_env: bool = False, allow_sensitive_defaults: bool = False) -> Config:
        """Return the checked configuration; a file is read again only when it, or what it refers to, has changed."""
        return self._sources.config(config, resolve_env, allow_sensitive_defaults)

    def _open(self, config: Config, kind: Kind | None, force_reload: bool) -> Any:
        kind = config.kind if kind is None else kind
        if kind not in KINDS:
            raise ConfigError(f"{config.source}: {kind!r} is not a connection type; use one of {', '.join(KINDS)}")
        if kind == "async" or kind == "async_pool":
            return async_handle.open_handle(config, kind, self, fresh=force_reload)
        return sync_handle.open_handle(config, kind, self, fresh=force_reload)


def _suffix(key: Key) -> str:
    return key[1] if key[2] is None else f"{key[1]}:{key[2]:x}"
