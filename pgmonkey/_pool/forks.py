"""Keep a forked child from using its parent's connections."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from psycopg import pq
from psycopg.pq.abc import PGconn


class Forkable(Protocol):
    """An object that holds connections or locks, which a forked child must not use."""

    def after_fork_in_child(self) -> None:
        """Drop what belongs to the parent."""


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()
_pid = os.getpid()


def register(what: Forkable) -> None:
    """Call *what*'s ``after_fork_in_child()`` in every forked child, for as long as *what* lives."""
    _watched.add(what)


def disown(pgconn: PGconn) -> None:
    """Replace the socket of an inherited connection with /dev/null; the parent goes on using the socket."""
    if pgconn.status != pq.ConnStatus.OK:
        return
    # Closing the connection, as its finalizer does, would send Terminate to the server and so end the parent's session.
    devnull = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(devnull, pgconn.socket)
    finally:
        os.close(devnull)


def just_forked() -> bool:
    """Tell whether this is a forked child in which ``after_fork_in_child()`` was not called yet.

    In a child, Python drops the other threads of the parent before it calls the functions of ``os.register_at_fork``.
    Finalizers of objects of those threads run in between, and must not close or give back the parent's connections.
    """
    return os.getpid() != _pid


def _after_fork_in_child() -> None:
    global _pid
    _pid = os.getpid()
    # A copy: a call may create or drop watched objects.
    for what in list(_watched):
        what.after_fork_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
