"""Which sandbox a database uses: its pools are others there."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from .._async.database import AsyncDatabase
from .._async.handle import AsyncConnectionHandle
from .._config.blueprint import Blueprint, said_elsewhere
from .._config.schema import libpq_keywords
from .._pool.cache import Holder, cache
from .._sync.database import Database
from .._sync.handle import ConnectionHandle
from ..errors import PgmonkeyError

# What a client of the real server is told in other ways than a client of the sandbox.
_KEPT = {"dbname", "user", "options", "application_name", "fallback_application_name", "client_encoding"}
_KEPT |= {"connect_timeout"}
# Said outright, because the environment may say otherwise.
_PLAIN = {"sslmode": "disable", "gssencmode": "disable", "channel_binding": "disable", "require_auth": "password"}


class SandboxError(PgmonkeyError, RuntimeError):
    """Report what cannot be done in, or after, a sandbox."""


class Redirection:
    """A sandbox as databases see it: what they have for it, in the place of their own pools."""

    def __init__(self, port: int, secret: str) -> None:
        self._port = port
        self._secret = secret
        self.closed = False
        self._kept: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
        """What databases and handles have for this sandbox in the place of their own."""
        self._pools: list[Any] = []

    def kept_by(self, owner: Any) -> dict[str, Any]:
        """Return what *owner*, a database or a handle, keeps for this sandbox."""
        kept = self._kept.get(owner)
        return self._kept.setdefault(owner, {}) if kept is None else kept

    def pool_of(self, handle: Any, own: Any) -> Any:
        """Return the pool of *handle* in this sandbox, made as its *own*."""
        kept = self.kept_by(handle)
        pool = kept.get("_pool")
        if pool is None:
            if self.closed:
                raise SandboxError(
                    "this runs in the context of a sandbox that has ended; end threads and tasks before their test ends"
                )
            made = type(own)(self._redirected(own.blueprint))
            made.scavenge = own.scavenge
            pool = kept.setdefault("_pool", made)
            self._pools.append(pool)
        return pool

    def _redirected(self, blueprint: Blueprint) -> Blueprint:
        """Return *blueprint* with the address of this sandbox."""
        known = libpq_keywords()
        connect = {key: value for key, value in blueprint.connect.items() if key in _KEPT or key not in known}
        elsewhere = said_elsewhere(
            {key: value for key, value in blueprint.connect.items() if key in ("service", "servicefile")}
        )
        for key in ("dbname", "user", "options"):
            if key in elsewhere:
                connect.setdefault(key, elsewhere[key])
        connect.pop("password", None)
        if not isinstance(connect.get("user", ""), str):
            connect.pop("user")  # a function
        connect.setdefault("user", "sandbox")
        connect.setdefault("dbname", connect["user"])
        connect.update({key: value for key, value in _PLAIN.items() if key in known})
        connect.update(host="127.0.0.1", hostaddr="127.0.0.1", port=self._port, password=self._secret)
        return replace(
            blueprint,
            connect=connect,
            credentials={},
            refresh=None,
            notice_pooler=False,
            # No connection before it is needed: each is a thread, and most tests need one.
            settings=replace(blueprint.settings, min_size=0),
        )

    def leave(self) -> None:
        """Close the pools, for good."""
        self.closed = True
        for pool in self._pools:
            pool.terminate("the sandbox has ended")
        for kept in list(self._kept.values()):
            if "_holder" in kept:
                cache.release(kept["_holder"])


in_context: ContextVar[Redirection | None] = ContextVar("pgmonkey_sandbox", default=None)
_open: dict[Redirection, None] = {}
_lock = threading.Lock()
_for_good = False


def current() -> Redirection | None:
    """Return the sandbox of this context; in a thread that was started without one, the only one that is open.

    None where none is open; raises `SandboxError` where several are, and the context does not tell which one.
    """
    found = in_context.get()
    if found is not None:
        return found
    opened = list(_open)
    if len(opened) > 1:
        raise SandboxError(
            f"{len(opened)} sandboxes are open, and this thread or task does not tell which one it belongs to: start it"
            " with contextvars.copy_context().run(...), or send the headers of its sandbox"
        )
    return opened[0] if opened else None


class _ForEachSandbox:
    """An attribute of databases and handles of which each sandbox has its own.

    It stands in for the attribute while a sandbox is open, so that the core knows nothing of sandboxes, and where there
    are none nothing is looked up.
    """

    def __init__(self, name: str, make: Callable[[Redirection, Any, Any], Any]) -> None:
        self._name = name
        self._make = make

    def __get__(self, owner: Any, kind: type[Any] | None = None) -> Any:
        if owner is None:
            return self
        try:
            own = owner.__dict__[self._name]
        except KeyError:
            raise AttributeError(self._name) from None
        sandbox = current()
        return own if sandbox is None else self._make(sandbox, owner, own)

    def __set__(self, owner: Any, value: Any) -> None:
        sandbox = current() if self._name in owner.__dict__ else None  # while it is made, it has none
        if sandbox is None:
            owner.__dict__[self._name] = value
        else:
            sandbox.kept_by(owner)[self._name] = value


def _kept(name: str) -> Callable[[Redirection, Any, Any], Any]:
    return lambda sandbox, database, own: sandbox.kept_by(database).get(name)


def _holder(sandbox: Redirection, database: Any, own: Any) -> Any:
    return sandbox.kept_by(database).setdefault("_holder", Holder())


_ATTRIBUTES: list[tuple[type[Any], str, _ForEachSandbox]] = []
for _database in (Database, AsyncDatabase):
    _ATTRIBUTES += [(_database, name, _ForEachSandbox(name, _kept(name))) for name in ("_handle", "_fast")]
    _ATTRIBUTES.append((_database, "_holder", _ForEachSandbox("_holder", _holder)))
for _handle in (ConnectionHandle, AsyncConnectionHandle):
    _ATTRIBUTES.append((_handle, "_pool", _ForEachSandbox("_pool", Redirection.pool_of)))


def install(*, for_good: bool = False) -> None:
    """Let databases look for a sandbox; *for_good*, also when no sandbox of this process is open."""
    global _for_good
    _for_good = _for_good or for_good
    for kind, name, attribute in _ATTRIBUTES:
        setattr(kind, name, attribute)


def note_open(sandbox: Redirection) -> None:
    """Let *sandbox* be found, also in threads that do not tell which is theirs."""
    with _lock:
        if not _open:
            install()
        _open[sandbox] = None


def note_closed(sandbox: Redirection) -> None:
    """Let *sandbox* be found no more; without any, databases look for none."""
    with _lock:
        _open.pop(sandbox, None)
        if not _open and not _for_good:
            for kind, name, _ in _ATTRIBUTES:
                delattr(kind, name)
