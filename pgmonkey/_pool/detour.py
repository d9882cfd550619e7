"""The seam for tests: another pool in the place of the one that a database has.

`pgmonkey.testing` sets `find` while a sandbox is open.  Else it is None: whatever lends a connection looks at the name
and calls nothing.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

P = TypeVar("P")


class Find(Protocol):
    """What knows the pool to use in this context."""

    def __call__(self, own: P, /) -> P:
        """Return the pool to use in the place of *own*, or *own*; may raise."""
        ...


find: Find | None = None
"""To be read once and then called: the last sandbox may end in another thread at any moment."""
