"""The one cache of a process: which configuration has which open handle, and who still holds it.

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

Key = tuple[str, Kind, "int | None"]
"""Digest of the resolved configuration, kind, and for async kinds the identity of the event loop."""


class Handle(Protocol):
    """What the cache needs to know of the two colours of handle."""

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
        """Whether its event loop is closed, so that nobody can use it any more."""
        ...

    def close(self) -> None:
        """Close what is idle now and what is lent when it comes back."""
        ...

    def terminate(self) -> None:
        """Close everything now."""


H = TypeVar("H", bound=Handle)


class _Entry:
    def __init__(self, key: Key, handle: Handle) -> None:
        self.key = key
        self.handle = handle
        # Weak: a holder that is gone cannot let go any more, and must not keep others from closing.
        self.holders: weakref.WeakSet[object] = weakref.WeakSet()
        self.latest: Callable[[], object] = lambda: None
        """Returns who took hold of it last, which most often is who does again."""

    def hold(self, holder: object) -> None:
        """Note that *holder* holds this."""
        self.holders.add(holder)
        self.latest = weakref.ref(holder)

    def let_go(self, holder: object) -> None:
        """Note that *holder* does not hold this any more."""
        self.holders.discard(holder)
        self.latest = lambda: None


class Cache:
    """Handles by key, each with its holders; a handle is closed when the last holder lets go of it."""

    def __init__(self) -> None:
        self._entries: dict[Key, _Entry] = {}
        self._replaced: list[_Entry] = []
        self.after_fork_in_child()
        forks.watch(self)

    def after_fork_in_child(self) -> None:
        """Make a new lock: the old one may be held by a thread that stayed with the parent."""
        self._lock = threading.Lock()

    def acquire(
        self, key: Key, make: Callable[[Config, Kind], H], config: Config, holder: object, *, fresh: bool = False
    ) -> H:
        """Return the one handle for *key*, made by *make* from *config* if need be; note that *holder* holds it.

        With *fresh*, put a new handle in its place; the old one closes when its other holders let go or ask again.
        """
        entry = self._entries.get(key)
        if entry is not None and entry.latest() is holder and not fresh:
            handle = entry.handle
            if handle.usable_here:  # nothing changes, so there is nothing to lock
                return handle  # type: ignore[return-value]  # the kind is part of the key
        over: list[_Entry] = []  # of event loops that are closed; nobody else would ever look for them
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or fresh or not entry.handle.usable_here:
                over = [other for other in self._entries.values() if other.handle.orphaned]
                for other in over:
                    del self._entries[other.key]
                if entry is not None and entry not in over:
                    self._replaced.append(entry)
                entry = self._entries[key] = _Entry(key, make(config, key[1]))
            entry.hold(holder)
            closing = self._let_go(holder, [old for old in self._replaced if old.key == key]) if self._replaced else []
        for other in over:
            other.handle.terminate()
        for handle in closing:
            handle.close()
        return entry.handle  # type: ignore[return-value]  # the kind is part of the key

    def release(self, holder: object, key: Key | None = None) -> None:
        """Let *holder* go of *key*, or of everything; close what nobody holds any more."""
        with self._lock:
            entries = [*self._entries.values(), *self._replaced]
            closing = self._let_go(holder, [entry for entry in entries if key is None or entry.key == key])
        for handle in closing:
            handle.close()

    def _let_go(self, holder: object, entries: list[_Entry]) -> list[Handle]:
        """Forget that *holder* holds *entries*; return the handles that nobody holds any more."""
        closing: list[Handle] = []
        for entry in entries:
            if holder in entry.holders:
                entry.let_go(holder)
                if not entry.holders:
                    closing.append(entry.handle)
                    if self._entries.get(entry.key) is entry:
                        del self._entries[entry.key]
                    else:
                        self._replaced.remove(entry)
        return closing

    def held_by(self, holder: object) -> list[tuple[Key, Handle]]:
        """Return what *holder* holds."""
        with self._lock:
            return [(key, entry.handle) for key, entry in self._entries.items() if holder in entry.holders]

    def close(self) -> None:
        """Close everything, at the end of the process."""
        with self._lock:
            entries = [*self._entries.values(), *self._replaced]
            self._entries, self._replaced = {}, []
        for entry in entries:
            entry.handle.terminate()


cache = Cache()
atexit.register(cache.close)
