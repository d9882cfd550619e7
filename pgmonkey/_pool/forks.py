"""Keep a forked child from using its parent's connections.

Each connection and each pool knows its process, compares ``os.getpid()``, and is used in no other one.  Python is not
told of every fork, as uWSGI's, so `register` only has done at once what is done at the first use otherwise.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from psycopg import pq
from psycopg.pq.abc import PGconn


class Forkable(Protocol):
    """An object that holds connections, which a forked child must not use."""

    def after_fork_in_child(self) -> None:
        """Drop what belongs to the parent."""


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()


def register(what: Forkable) -> None:
    """Call *what*'s ``after_fork_in_child()`` in forked children, for as long as *what* lives."""
    _watched.add(what)


def disown(pgconn: PGconn) -> None:
    """Replace the socket of an inherited connection with /dev/null; the parent goes on using the socket."""
    if pgconn.status != pq.ConnStatus.OK:
        return
    # Closing the connection would send Terminate to the server and so end the parent's session.
    devnull = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(devnull, pgconn.socket)
    finally:
        os.close(devnull)


def _after_fork_in_child() -> None:
    # A copy: a call may create or drop watched objects.
    for what in list(_watched):
        what.after_fork_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
