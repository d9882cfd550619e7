"""Which sandbox a database uses: its pools are others there."""

from __future__ import annotations

import threading
import weakref
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from .._config.blueprint import Blueprint, said_elsewhere
from .._config.schema import libpq_keywords
from .._pool import detour
from ..errors import PgmonkeyError

# What a client of the real server is told in other ways than a client of the sandbox.
_KEPT = {"dbname", "user", "options", "application_name", "fallback_application_name", "client_encoding"}
_KEPT |= {"connect_timeout"}
# Said outright, because the environment may say otherwise.
_PLAIN = {"sslmode": "disable", "gssencmode": "disable", "channel_binding": "disable", "require_auth": "password"}


class SandboxError(PgmonkeyError, RuntimeError):
    """Report what cannot be done in, or after, a sandbox."""


class Redirection:
    """A sandbox as databases see it: the pools that they have in it in the place of their own."""

    def __init__(self, port: int, secret: str) -> None:
        self._port = port
        self._secret = secret
        self._ended = False
        # Gone with a database's own, which is how one that was closed in a sandbox closes there.
        self._pools: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def pool_of(self, own: Any) -> Any:
        """Return the pool that is in this sandbox in the place of *own*, and made as that is."""
        if self._ended:
            raise SandboxError(
                "this runs in the context of a sandbox that has ended; end threads and tasks before their test ends"
            )
        if own.close_reason:
            return own  # whose error says so
        return self._pools.get(own) or self._new_pool(own)

    def _new_pool(self, own: Any) -> Any:
        made = type(own)(self._redirected(own.blueprint))
        made.scavenge = own.scavenge
        with _lock:
            pool = self._pools.setdefault(own, made)
        if self._ended:  # at this moment
            pool.terminate("the sandbox has ended")
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
        self._ended = True
        with _lock:
            pools = list(self._pools.values())
        for pool in pools:
            pool.terminate("the sandbox has ended")


in_context: ContextVar[Redirection | None] = ContextVar("pgmonkey_sandbox", default=None)
_open: dict[Redirection, None] = {}
_lock = threading.Lock()
_always = False


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
            f"{len(opened)} sandboxes are open, and nothing says which of them this thread or task is for: start it"
            " with contextvars.copy_context().run(...), or send the headers of its sandbox"
        )
    return opened[0] if opened else None


def _find(own: detour.P) -> detour.P:
    sandbox = current()
    pool: detour.P = own if sandbox is None else sandbox.pool_of(own)
    return pool


def look_always() -> None:
    """Let databases look for a sandbox also when none of this process is open: one may be in a request's header."""
    global _always
    _always, detour.find = True, _find


def note_open(sandbox: Redirection) -> None:
    """Let *sandbox* be found, also in threads that do not tell which is theirs."""
    with _lock:
        _open[sandbox] = None
        detour.find = _find


def note_closed(sandbox: Redirection) -> None:
    """Let *sandbox* be found no more; without any, databases look for none."""
    with _lock:
        _open.pop(sandbox, None)
        if not _open and not _always:
            detour.find = None
