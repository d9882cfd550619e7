"""The one cache of a process: the open handle of each configuration and kind, and the managers that hold it.

No I/O happens here: handles open themselves after they are found.  As the ledger, it has no lock: each change is one
step, and what was interrupted between two steps is ended by whoever comes next.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Iterable
from time import sleep
from typing import Protocol, TypeVar

from psycopg.pq.abc import PGconn

from .._config.schema import Config, Kind
from .._driver.cancel import cancel_at_exit

# Seconds in which most statements end by themselves, so that none of many busy threads needs a cancel request.
_SHORT = 0.01
# Digest of the resolved configuration, kind, and for async kinds the identity of the event loop.
Key = tuple[str, Kind, "int | None"]


class Handle(Protocol):
    """The interface that sync and async handles share."""

    @property
    def kind(self) -> str:
        """One of the four kinds."""
        ...

    @property
    def usable_here(self) -> bool:
        """Whether it is open and belongs to the running event loop."""
        ...

    @property
    def orphaned(self) -> bool:
        """Whether its event loop is closed, so that it can never be used again."""
        ...

    def close(self) -> None:
        """Close idle connections now, and borrowed ones when they are given back."""
        ...

    def leave(self) -> None:
        """Close what is idle, at the end of the process."""
        ...

    def at_work(self) -> dict[PGconn, object]:
        """Return the connections that execute a statement, each with what tells that statement from others."""
        ...

    def terminate(self) -> None:
        """Close every connection now."""
        ...


H = TypeVar("H", bound=Handle)


class Holder:
    """A manager or a database: what it has asked for lives as long as it does, or as anybody else refers to that."""

    def __init__(self) -> None:
        self.held: dict[_Entry, Handle] = {}


class _Entry:
    successor: _Entry | None = None
    """What has replaced it, which is decided in one step, by ``setdefault``; its other holders still use it."""
    closing = False
    """Whether its last holder is about to close it."""

    def __init__(self, key: Key, handle: Handle) -> None:
        self.key = key
        # Weak: a handle that nobody can reach any more closes its connections as it goes.
        self.handle: Callable[[], Handle | None] = weakref.ref(handle)
        self._holders: dict[weakref.ref[Holder], None] = {}
        self._used_by_others = False
        """Whether a holder has gone without a release: the handle may be in use by whom it was given to."""
        # Returns the last holder, which most often is the next to ask.
        self.latest: Callable[[], object] = lambda: None

    def hold(self, holder: Holder) -> None:
        self._forget_the_gone()
        reference = weakref.ref(holder)
        self._holders[reference] = None
        self.latest = reference

    def release(self, holder: Holder) -> None:
        """Strike *holder* off, and note whether it was the last one."""
        reference = weakref.ref(holder)
        if reference in self._holders:
            self._forget_the_gone()
            # Noted first if possible: a release that is interrupted and called again finds nobody to strike off.
            self.closing = not self._used_by_others and len(self._holders) == 1
            self._holders.pop(reference, None)
            self.latest = lambda: None
            # Another one may have come meanwhile; it has asked for `closing` after it came.
            self.closing = not self._used_by_others and not self._holders

    def _forget_the_gone(self) -> None:
        for reference in list(self._holders):
            if reference() is None:
                self._used_by_others = True
                self._holders.pop(reference, None)


class Cache:
    """Handles by key.  One is closed when its last holder releases it, or when nobody refers to it any more."""

    def __init__(self) -> None:
        self._entries: dict[Key, _Entry] = {}
        # Those that are not closed yet, also the replaced ones.
        self._open: dict[_Entry, None] = {}

    def acquire(
        self, key: Key, make: Callable[[Config, Kind], H], config: Config, holder: Holder, *, fresh: bool = False
    ) -> H:
        """Return the one handle for *key*, made by *make* from *config* if need be, and note that *holder* holds it.

        With *fresh*, a new handle replaces it; the old one closes when its other holders release it or ask again.
        """
        entry = self._entries.get(key)
        handle: Handle | None
        # When the last holder asks again, nothing changes.
        if (
            fresh
            or entry is None
            or entry.latest() is not holder
            or (handle := entry.handle()) is None
            or not handle.usable_here
        ):
            handle = self._hold(key, make, config, holder, fresh)
        return handle  # type: ignore[return-value]  # one *make* for each kind, and the kind is part of the key

    def _hold(
        self, key: Key, make: Callable[[Config, Kind], Handle], config: Config, holder: Holder, fresh: bool
    ) -> Handle:
        while True:
            entry = self._entries.get(key)
            while entry is not None and entry.successor is not None:
                entry = entry.successor
            handle = None if fresh or entry is None or entry.closing else entry.handle()
            if entry is None or handle is None or not handle.usable_here:
                made = make(config, key[1])
                entry = self._replace(entry, _Entry(key, made))
                handle = entry.handle()
            if handle is None:
                continue  # another caller was faster, and is gone
            holder.held[entry] = handle
            entry.hold(holder)
            if not entry.closing:
                break
            self._let_go(entry, holder)  # its last holder has released it at this moment
        for old, held in list(holder.held.items()):
            if old is not entry and (old.key == key or held.orphaned):
                self._let_go(old, holder)
        return handle

    def _replace(self, old: _Entry | None, new: _Entry) -> _Entry:
        """Put *new* in the place of *old*; return that, or what another caller was faster to put there."""
        # Neither a closed event loop nor a forgotten handle tells the cache; a new handle is the occasion to look.
        for entry in list(self._open):
            handle = entry.handle()
            if handle is None:
                self._forget(entry)
            elif handle.orphaned:
                handle.terminate()
                self._forget(entry)
        self._open[new] = None
        if old is None:
            current = self._entries.setdefault(new.key, new)
        else:
            current = old.__dict__.setdefault("successor", new)
            self._entries[new.key] = current
        if current is not new:
            del self._open[new]
        return current

    def release(self, holder: Holder, key: Key | None = None) -> None:
        """Release what *holder* holds of *key*, or everything it holds; close handles without a holder.

        Interrupted half-way, it can be called again.
        """
        for entry in list(holder.held):
            if key is None or entry.key == key:
                self._let_go(entry, holder)

    def _let_go(self, entry: _Entry, holder: Holder) -> None:
        entry.release(holder)
        if entry.closing:
            handle = entry.handle()
            if handle is not None:
                handle.close()
            self._forget(entry)
        # Last: whoever is interrupted before finds it again.
        holder.held.pop(entry, None)

    def _forget(self, entry: _Entry) -> None:
        self._open.pop(entry, None)
        if self._entries.get(entry.key) is entry:
            found = self._entries.pop(entry.key, None)
            if found is not None and found is not entry:  # which has replaced it between the two steps
                self._entries.setdefault(entry.key, found)

    def held_by(self, holder: Holder) -> list[tuple[Key, Handle]]:
        """Return the keys and handles that *holder* holds, without replaced ones."""
        held = list(holder.held.items())
        return [(entry.key, handle) for entry, handle in held if entry.successor is None and entry in self._open]

    def leave(self) -> list[PGconn]:
        """Close what is idle, at the end of the process; return what is in the middle of a long statement."""
        handles = [handle for entry in list(self._open) if (handle := entry.handle()) is not None]
        for handle in handles:
            handle.leave()
        before = _at_work(handles)
        if before:
            sleep(_SHORT)
        return [pgconn for pgconn, statement in _at_work(handles).items() if before.get(pgconn) == statement]


def _at_work(handles: Iterable[Handle]) -> dict[PGconn, object]:
    return {pgconn: statement for handle in handles for pgconn, statement in handle.at_work().items()}


cache = Cache()


@atexit.register
def _at_exit() -> None:
    # The server is told that the sessions end, rather than left to find their sockets closed.
    cancel_at_exit(cache.leave())
