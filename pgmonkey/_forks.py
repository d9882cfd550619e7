"""Keep a forked child away from its parent's connections."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from psycopg import pq


class Forkable(Protocol):
    """What wants to know that it now lives in a child process."""

    def after_fork_in_child(self) -> None:
        """Forget what belongs to the parent."""


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()
_pid = os.getpid()


def watch(what: Forkable) -> None:
    """Have *what* told, for as long as it lives, when it wakes up in a forked child."""
    _watched.add(what)


def disown(pgconn: pq.abc.PGconn) -> None:
    """Cut an inherited connection off from its socket, which the parent goes on using.

    Closing it would send the server a goodbye in the parent's name, and so would its finalizer: from here on both
    write into the void.
    """
    if pgconn.status != pq.ConnStatus.OK:
        return
    void = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(void, pgconn.socket)
    finally:
        os.close(void)


def just_forked() -> bool:
    """Whether this is a forked child in which nothing was told yet.

    Python ends the parent's other threads there before all else.  What goes with them has finalizers, and all that they
    would close or give back is the parent's.
    """
    return os.getpid() != _pid


def _after_fork_in_child() -> None:
    global _pid
    _pid = os.getpid()
    for what in list(_watched):
        what.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
