"""The one cache of a process: the open handle of each configuration and kind, and the managers that hold it.

No I/O happens under its lock: handles open themselves after they are found.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from typing import Protocol, TypeVar

from .._config.schema import Config, Kind
from . import forks

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
    def __init__(self, key: Key, handle: Handle) -> None:
        self.key = key
        self.handle = handle
        # Weak: a manager that was dropped without a release must not keep the handle from closing.
        self.holders: weakref.WeakSet[object] = weakref.WeakSet()
        # Returns the last holder, which most often is the next to ask; spares a cached call the lock.
        self.latest: Callable[[], object] = lambda: None

    def hold(self, holder: object) -> None:
        self.holders.add(holder)
        self.latest = weakref.ref(holder)

    def release(self, holder: object) -> None:
        self.holders.discard(holder)
        self.latest = lambda: None


class Cache:
    """Handles by key, each with its holders; a handle is closed when its last holder releases it."""

    def __init__(self) -> None:
        self._entries: dict[Key, _Entry] = {}
        # Entries that a fresh one has replaced, and that other holders still use.
        self._replaced: list[_Entry] = []
        self.after_fork_in_child()
        forks.register(self)

    def after_fork_in_child(self) -> None:
        """Make a new lock: a thread that exists only in the parent may hold the old one."""
        self._lock = threading.Lock()

    def acquire(
        self, key: Key, make: Callable[[Config, Kind], H], config: Config, holder: object, *, fresh: bool = False
    ) -> H:
        """Return the one handle for *key*, made by *make* from *config* if need be, and note that *holder* holds it.

        With *fresh*, a new handle replaces it; the old one closes when its other holders release it or ask again.
        """
        entry = self._entries.get(key)
        # Without the lock: when the last holder asks again, nothing changes.
        if fresh or entry is None or entry.latest() is not holder or not entry.handle.usable_here:
            entry = self._hold(key, make, config, holder, fresh)
        return entry.handle  # type: ignore[return-value]  # one *make* for each kind, and the kind is part of the key

    def _hold(
        self, key: Key, make: Callable[[Config, Kind], Handle], config: Config, holder: object, fresh: bool
    ) -> _Entry:
        orphans: list[_Entry] = []
        with self._lock:
            # Again: another thread may have made the entry since.
            entry = self._entries.get(key)
            if entry is None or fresh or not entry.handle.usable_here:
                # A closed event loop does not tell the cache; a new handle is the occasion to look.
                orphans = [other for other in self._entries.values() if other.handle.orphaned]
                for orphan in orphans:
                    del self._entries[orphan.key]
                if entry is not None and entry not in orphans:
                    self._replaced.append(entry)
                entry = self._entries[key] = _Entry(key, make(config, key[1]))
            entry.hold(holder)
            closing = self._release(holder, [old for old in self._replaced if old.key == key])
        for orphan in orphans:
            orphan.handle.terminate()
        for handle in closing:
            handle.close()
        return entry

    def release(self, holder: object, key: Key | None = None) -> None:
        """Release what *holder* holds of *key*, or everything it holds; close handles without a holder."""
        with self._lock:
            entries = [*self._entries.values(), *self._replaced]
            closing = self._release(holder, [entry for entry in entries if key is None or entry.key == key])
        for handle in closing:
            handle.close()

    def _release(self, holder: object, entries: list[_Entry]) -> list[Handle]:
        """Remove *holder* from *entries*; return the handles without a holder, for the caller to close."""
        closing: list[Handle] = []
        for entry in entries:
            if holder in entry.holders:
                entry.release(holder)
                if not entry.holders:
                    closing.append(entry.handle)
                    if self._entries.get(entry.key) is entry:
                        del self._entries[entry.key]
                    else:
                        self._replaced.remove(entry)
        return closing

    def held_by(self, holder: object) -> list[tuple[Key, Handle]]:
        """Return the keys and handles that *holder* holds, without replaced ones."""
        with self._lock:
            return [(key, entry.handle) for key, entry in self._entries.items() if holder in entry.holders]

    def close(self) -> None:
        """Close every connection, at the end of the process."""
        with self._lock:
            entries = [*self._entries.values(), *self._replaced]
            self._entries, self._replaced = {}, []
        for entry in entries:
            entry.handle.terminate()


cache = Cache()
# The server is told that the sessions end, rather than left to find their sockets closed.
atexit.register(cache.close)
