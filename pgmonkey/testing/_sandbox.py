"""A sandbox: one transaction for all that an application does in it, rolled back at the end."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
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
from ._process import Remote

HEADER = "X-Pgmonkey-Sandbox"
"""The header by which an application in another process is told the sandbox of a request."""
# What a client of the real server is told in other ways than a client of the sandbox.
_KEPT = {"dbname", "user", "options", "application_name", "fallback_application_name", "client_encoding"}
_KEPT |= {"connect_timeout"}
# Said outright, because the environment may say otherwise.
_PLAIN = {"sslmode": "disable", "gssencmode": "disable", "channel_binding": "disable", "require_auth": "password"}


class SandboxError(PgmonkeyError, RuntimeError):
    """Report what cannot be done in, or after, a sandbox."""


class Statements:
    """What applications have done in a sandbox while it was counted."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._number: int = remote.ask("begin_counting")
        self._found: tuple[list[str], int, int] | None = None

    def _read(self) -> tuple[list[str], int, int]:
        return self._found or self._remote.ask("read_count", number=self._number)

    def _end(self) -> None:
        self._found = self._read()
        self._remote.ask("end_counting", number=self._number)

    @property
    def texts(self) -> list[str]:
        """The statements, without BEGIN, COMMIT, savepoints and what sets a session up."""
        return self._read()[0]

    @property
    def count(self) -> int:
        """How many statements there were."""
        return len(self.texts)

    @property
    def round_trips(self) -> int:
        """How often a client waited for the server."""
        return self._read()[1]

    @property
    def connections(self) -> int:
        """How many connections were used."""
        return self._read()[2]


class Sandbox:
    """One transaction for each database that applications use in it; all are rolled back at the end.

    `sandbox` makes one.
    """

    def __init__(self, dsn: str, databases: Mapping[str, str], patience: float) -> None:
        self._remote = Remote(dsn, databases, patience)
        self.address = f"127.0.0.1:{self._remote.port}"
        """Where it listens."""
        self.closed = False
        self._kept: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
        """What databases and handles have for this sandbox in the place of their own."""
        self._pools: list[Any] = []

    @property
    def dsn(self) -> str:
        """The address of the sandbox, for clients that are not of pgmonkey."""
        return f"postgresql://sandbox:{self._remote.secret}@{self.address}/sandbox?sslmode=disable"

    @property
    def headers(self) -> dict[str, str]:
        """The header that tells an application, started for tests, that a request belongs to this sandbox."""
        return {HEADER: f"{self._remote.port}:{self._remote.secret}"}

    # -- what tests ask for -----------------------------------------------------------------------------------------

    @contextmanager
    def statements(self) -> Iterator[Statements]:
        """Count, in a block, the statements, round trips and connections of everything in the sandbox."""
        counted = Statements(self._remote)
        try:
            yield counted
        finally:
            counted._end()

    def fail_next_commit(self, sqlstate: str = "40001", message: str = "could not serialize access") -> None:
        """Have the next COMMIT fail and roll back; called twice, the next two."""
        self._remote.ask("fail_commit", sqlstate=sqlstate, words=message)

    def lose_connection(self) -> None:
        """Have the server end the connection that sends it something next, without a word."""
        self._remote.ask("lose_connection")

    @contextmanager
    def server_away(self) -> Iterator[None]:
        """Have no server in a block: connections end, and new ones are refused."""
        self._remote.ask("be_away", away=True)
        try:
            yield
        finally:
            self._remote.ask("be_away", away=False)

    # -- the pools of applications ----------------------------------------------------------------------------------

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
        connect.update(host="127.0.0.1", hostaddr="127.0.0.1", port=self._remote.port, password=self._remote.secret)
        return replace(
            blueprint,
            connect=connect,
            credentials={},
            refresh=None,
            notice_pooler=False,
            # No connection before it is needed: each is a thread, and most tests need one.
            settings=replace(blueprint.settings, min_size=0),
        )

    def close(self) -> None:
        """Roll everything back; raise `SandboxError` where that is not certain."""
        self.closed = True
        for pool in self._pools:
            pool.terminate("the sandbox has ended")
        for kept in list(self._kept.values()):
            if "_holder" in kept:
                cache.release(kept["_holder"])
        lost = self._remote.close()
        if "may have been stored" in lost:
            raise SandboxError(lost)


# -- which sandbox a database uses ------------------------------------------------------------------------------------

_current: ContextVar[Sandbox | None] = ContextVar("pgmonkey_sandbox", default=None)
_open: dict[Sandbox, None] = {}
_lock = threading.Lock()


def current() -> Sandbox | None:
    """Return the sandbox of this context; in a thread that was started without one, the only one that is open.

    None where none is open; raises `SandboxError` where several are, and the context does not tell which one.
    """
    found = _current.get()
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

    def __init__(self, name: str, make: Callable[[Sandbox, Any, Any], Any]) -> None:
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


def _kept(name: str) -> Callable[[Sandbox, Any, Any], Any]:
    return lambda sandbox, database, own: sandbox.kept_by(database).get(name)


def _holder(sandbox: Sandbox, database: Any, own: Any) -> Any:
    return sandbox.kept_by(database).setdefault("_holder", Holder())


_ATTRIBUTES: list[tuple[type[Any], str, _ForEachSandbox]] = []
for _database in (Database, AsyncDatabase):
    _ATTRIBUTES += [(_database, name, _ForEachSandbox(name, _kept(name))) for name in ("_handle", "_fast")]
    _ATTRIBUTES.append((_database, "_holder", _ForEachSandbox("_holder", _holder)))
for _handle in (ConnectionHandle, AsyncConnectionHandle):
    _ATTRIBUTES.append((_handle, "_pool", _ForEachSandbox("_pool", Sandbox.pool_of)))


def _note_open(sandbox: Sandbox) -> None:
    with _lock:
        if not _open:
            for kind, name, attribute in _ATTRIBUTES:
                setattr(kind, name, attribute)
        _open[sandbox] = None


def _note_closed(sandbox: Sandbox) -> None:
    with _lock:
        _open.pop(sandbox, None)
        if not _open:
            for kind, name, _ in _ATTRIBUTES:
                delattr(kind, name)


@contextmanager
def sandbox(dsn: str, *, databases: Mapping[str, str] | None = None, patience: float = 10.0) -> Iterator[Sandbox]:
    """Have all databases of applications, in a block, be one transaction in the database *dsn*, then rolled back.

    It is in force in the context of the block, whatever address an application's configuration names: requests to test
    clients, tasks and threads that copy the context.  While it is the only one of the process, it is in force
    everywhere.  *databases* are further ones: addresses by the names of the databases in the configurations.

    Transactions take turns; each waits *patience* seconds for the one before it, then it fails.
    """
    opened = Sandbox(dsn, databases or {}, patience)
    token = _current.set(opened)
    _note_open(opened)
    try:
        yield opened
    finally:
        with suppress(ValueError):  # ended in another context than it began in, as a fixture for tasks may be
            _current.reset(token)
        _note_closed(opened)
        opened.close()


@contextmanager
def statements() -> Iterator[Statements]:
    """Do as `Sandbox.statements`, for the sandbox that is in force."""
    found = current()
    if found is None:
        raise SandboxError("there is no sandbox to count in: use the fixture pgmonkey_sandbox")
    with found.statements() as counted:
        yield counted
