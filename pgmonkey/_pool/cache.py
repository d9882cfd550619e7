"""The one cache of a process: the open handle of each configuration and kind, and the managers that hold it.

No I/O happens here: handles open themselves after they are found.  As the ledger, it has no lock: each change is one
step, and what was interrupted between two steps is ended by whoever comes next.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable
from typing import Protocol, TypeVar

from .._config.schema import Config, Kind

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

    def terminate(self) -> None:
        """Close every connection now."""
        ...


H = TypeVar("H", bound=Handle)


class _Entry:
    successor: _Entry | None = None
    """What has replaced it, which is decided in one step, by ``setdefault``; its other holders still use it."""
    closing = False
    """Whether its last holder is about to close it."""

    def __init__(self, key: Key, handle: Handle) -> None:
        self.key = key
        self.handle = handle
        # Weak: a manager that was dropped without a release must not keep the handle from closing.
        self.holders: weakref.WeakSet[object] = weakref.WeakSet()
        # Returns the last holder, which most often is the next to ask.
        self.latest: Callable[[], object] = lambda: None

    def hold(self, holder: object) -> None:
        self.holders.add(holder)
        self.latest = weakref.ref(holder)

    def release(self, holder: object) -> None:
        """Strike *holder* off, and note whether it was the last one."""
        if holder in self.holders:
            # Noted first if possible: a release that is interrupted and called again finds nobody to strike off.
            self.closing = len(self.holders) == 1
            self.holders.discard(holder)
            self.latest = lambda: None
            # Another one may have come meanwhile; it has asked for `closing` after it came.
            self.closing = not self.holders


class Cache:
    """Handles by key, each with its holders; a handle is closed when its last holder releases it."""

    def __init__(self) -> None:
        self._entries: dict[Key, _Entry] = {}
        # Those that are not closed yet, also the replaced ones.
        self._open: dict[_Entry, None] = {}

    def acquire(
        self, key: Key, make: Callable[[Config, Kind], H], config: Config, holder: object, *, fresh: bool = False
    ) -> H:
        """Return the one handle for *key*, made by *make* from *config* if need be, and note that *holder* holds it.

        With *fresh*, a new handle replaces it; the old one closes when its other holders release it or ask again.
        """
        entry = self._entries.get(key)
        # When the last holder asks again, nothing changes.
        if fresh or entry is None or entry.latest() is not holder or not entry.handle.usable_here:
            entry = self._hold(key, make, config, holder, fresh)
        return entry.handle  # type: ignore[return-value]  # one *make* for each kind, and the kind is part of the key

    def _hold(
        self, key: Key, make: Callable[[Config, Kind], Handle], config: Config, holder: object, fresh: bool
    ) -> _Entry:
        while True:
            entry = self._entries.get(key)
            while entry is not None and entry.successor is not None:
                entry = entry.successor
            if fresh or entry is None or entry.closing or not entry.handle.usable_here:
                entry = self._replace(entry, _Entry(key, make(config, key[1])))
            entry.hold(holder)
            if not entry.closing:
                break
            self._let_go(entry, holder)  # its last holder has released it at this moment
        for old in list(self._open):
            if old.key == key and old is not entry:
                self._let_go(old, holder)
        return entry

    def _replace(self, old: _Entry | None, new: _Entry) -> _Entry:
        """Put *new* in the place of *old*; return that, or what another caller was faster to put there."""
        # A closed event loop does not tell the cache; a new handle is the occasion to look.
        for entry in list(self._open):
            if entry.handle.orphaned:
                entry.handle.terminate()
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

    def release(self, holder: object, key: Key | None = None) -> None:
        """Release what *holder* holds of *key*, or everything it holds; close handles without a holder.

        Interrupted half-way, it can be called again.
        """
        for entry in list(self._open):
            if key is None or entry.key == key:
                self._let_go(entry, holder)

    def _let_go(self, entry: _Entry, holder: object) -> None:
        entry.release(holder)
        if entry.closing:
            entry.handle.close()
            self._forget(entry)

    def _forget(self, entry: _Entry) -> None:
        self._open.pop(entry, None)
        if self._entries.get(entry.key) is entry:
            found = self._entries.pop(entry.key, None)
            if found is not None and found is not entry:  # which has replaced it between the two steps
                self._entries.setdefault(entry.key, found)

    def held_by(self, holder: object) -> list[tuple[Key, Handle]]:
        """Return the keys and handles that *holder* holds, without replaced ones."""
        entries = [entry for entry in list(self._open) if entry.successor is None and holder in entry.holders]
        return [(entry.key, entry.handle) for entry in entries]

    def close(self) -> None:
        """Close every connection, at the end of the process."""
        for entry in list(self._open):
            entry.handle.terminate()
            self._forget(entry)


cache = Cache()
# The server is told that the sessions end, rather than left to find their sockets closed.
atexit.register(cache.close)
