"""Gives connections back that Django does not close: those of threads that ended, and of forgotten wrappers."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

from pgmonkey import Lease


class ClosedError(Exception):
    """Why a connection that Django closes is rolled back: what is to be committed, Django has committed by then."""


class Borrower(Protocol):
    """What a thread's lease needs of the wrapper that borrowed it."""

    connection: object

    @property
    def allow_thread_sharing(self) -> bool:
        """Whether other threads may use the wrapper."""
        ...

    def after_fork_in_child(self) -> None:
        """Forget the connection of the parent process."""
        ...


class ThreadLease:
    """Gives a connection back when the thread that borrowed it ends without closing it.

    Django's wrappers are in reference cycles, so they are not collected when the thread ends; this object is.
    """

    def __init__(self, wrapper: Borrower, lease: Lease) -> None:
        self.thread = threading.get_ident()
        self._process = os.getpid()
        self.leases = leases = [lease]
        """The latest lease, or none: a list, so that the callback below need not refer to this object."""
        # Once the wrapper is collected, nothing else refers to the lease, and it gives itself back.
        self._wrapper = weakref.ref(wrapper, lambda _: leases.clear())

    def __del__(self) -> None:
        if self._process != os.getpid():
            return  # in a forked child, where the parent's threads end at once: the connection is the parent's
        wrapper = self._wrapper()
        if self.active and (wrapper is None or not wrapper.allow_thread_sharing):
            self.leases[0].finish(ClosedError())
            if wrapper is not None:
                wrapper.connection = None

    @property
    def active(self) -> bool:
        """Whether a connection is still borrowed."""
        return bool(self.leases) and self.leases[0].active


class _LeasesOfThread(threading.local):
    """The leases of one thread, which Python drops when the thread ends."""

    def __init__(self) -> None:
        self._leases: list[ThreadLease] = []

    def add(self, lease: ThreadLease) -> None:
        # Those that ended are dropped here; a thread that never ends would collect them.
        self._leases = [*(other for other in self._leases if other.active), lease]


_of_thread = _LeasesOfThread()
_borrowers: weakref.WeakSet[Borrower] = weakref.WeakSet()


def remember(wrapper: Borrower, lease: Lease, latest: weakref.ref[ThreadLease] | None) -> weakref.ref[ThreadLease]:
    """Give *lease* back when this thread ends or *wrapper* is collected.

    *latest* is what this function returned for the wrapper's lease before.
    """
    known = latest() if latest is not None else None
    if latest is not None and known is not None and known.thread == threading.get_ident():
        known.leases[:] = [lease]
        return latest
    new = ThreadLease(wrapper, lease)
    _of_thread.add(new)
    _borrowers.add(wrapper)
    return weakref.ref(new)


def _after_fork_in_child() -> None:
    for wrapper in list(_borrowers):
        wrapper.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
