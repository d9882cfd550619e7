"""Keep a forked child away from its parent's connections."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from psycopg import pq
from psycopg.pq.abc import PGconn


class Forkable(Protocol):
    """What has to be told that it now lives in a child process."""

    def after_fork_in_child(self) -> None:
        """Forget what belongs to the parent."""


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()
_pid = os.getpid()


def watch(what: Forkable) -> None:
    """Call *what*'s ``after_fork_in_child()`` in every forked child, for as long as *what* lives."""
    _watched.add(what)


def disown(pgconn: PGconn) -> None:
    """Cut an inherited connection off from its socket, which the parent goes on using.

    Closing it would send the server a Terminate message in the parent's name, and so would its finalizer.  From here on
    both write to /dev/null.
    """
    if pgconn.status != pq.ConnStatus.OK:
        return
    void = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(void, pgconn.socket)
    finally:
        os.close(void)


def just_forked() -> bool:
    """Tell whether this is a forked child in which ``after_fork_in_child()`` was not called yet.

    Before it calls anything there, Python ends the parent's other threads.  The finalizers of what they held run then,
    and everything that these would close or give back is the parent's.
    """
    return os.getpid() != _pid


def _after_fork_in_child() -> None:
    global _pid
    _pid = os.getpid()
    for what in list(_watched):
        what.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
