"""Find the lease that a bare ``with pool as conn`` entered, when one pool is entered many times at once.

Neither the thread nor a context variable can tell: FastAPI enters, uses and exits a synchronous dependency on different
threads, each with a copy of the context.  The frame can: a ``with`` statement enters and exits in the same frame,
whichever thread runs it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import FrameType
from typing import Generic, TypeVar

from . import forks

T = TypeVar("T")


class OpenBlocks(Generic[T]):
    """What was entered and not exited yet, by the frame that entered it; the latest of a frame is exited first."""

    def __init__(self) -> None:
        self._by_frame: dict[FrameType, list[T]] = {}
        self.after_fork_in_child()
        forks.register(self)

    def after_fork_in_child(self) -> None:
        """Make a new lock: the old one may be held by a thread that stayed with the parent."""
        self._lock = threading.Lock()

    def push(self, frame: FrameType, entry: T) -> None:
        """Remember that *frame* entered *entry*."""
        with self._lock:
            self._by_frame.setdefault(frame, []).append(entry)

    def pop(self, frame: FrameType) -> T:
        """Return what *frame* entered last.

        `contextlib.ExitStack`, and classes that enter on behalf of others, enter and exit in two methods: these are
        recognised by the object that both belong to.  Raises RuntimeError when it cannot be told.
        """
        with self._lock:
            entered_by = frame if frame in self._by_frame else self._same_object(frame)
            if entered_by is None and sum(map(len, self._by_frame.values())) == 1:
                entered_by = next(iter(self._by_frame))
            if entered_by is None:
                raise RuntimeError(
                    "cannot tell which 'with' block ends here: it was entered by another function; "
                    "use 'with pool.connection() as conn' there"
                )
            entries = self._by_frame[entered_by]
            entry = entries.pop()
            if not entries:
                del self._by_frame[entered_by]
            return entry

    def remove(self, abandoned: Callable[[T, FrameType], bool]) -> list[T]:
        """Remove and return the entries that are abandoned, as *abandoned* tells."""
        removed: list[T] = []
        with self._lock:
            for frame, entries in list(self._by_frame.items()):
                gone = [entry for entry in entries if abandoned(entry, frame)]
                removed += gone
                entries[:] = [entry for entry in entries if entry not in gone]
                if not entries:
                    del self._by_frame[frame]
        return removed

    def _same_object(self, frame: FrameType) -> FrameType | None:
        owner = _first_argument(frame)
        if owner is not None:
            for candidate in reversed(self._by_frame):
                if _first_argument(candidate) is owner:
                    return candidate
        return None


def _first_argument(frame: FrameType) -> object:
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
