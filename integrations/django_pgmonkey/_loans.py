"""Who has which connection, and gives it back when Django does not: threads that end, wrappers that are forgotten."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

from pgmonkey import Lease

if TYPE_CHECKING:
    from .base import DatabaseWrapper


class Closed(Exception):
    """Why a connection that Django closes is rolled back: what was to be committed is by then."""


class Loan:
    """Gives a connection back when the thread that borrowed it ends without closing it.

    Django closes connections at the end of a request only, and its wrappers are in reference cycles.
    """

    def __init__(self, wrapper: DatabaseWrapper, lease: Lease) -> None:
        self.thread = threading.get_ident()
        self._process = os.getpid()
        self.leases = leases = [lease]
        """The latest one."""
        # A lease that nobody has any more gives itself back.
        self._wrapper = weakref.ref(wrapper, lambda _: leases.clear())

    def __del__(self) -> None:
        if self._process != os.getpid():
            return  # a fork ended this thread, with what is another process's
        wrapper = self._wrapper()
        if self.active and (wrapper is None or not wrapper.allow_thread_sharing):
            self.leases[0].finish(Closed())
            if wrapper is not None:
                wrapper.connection = None

    @property
    def active(self) -> bool:
        """Whether something is to be given back."""
        return bool(self.leases) and self.leases[0].active


class _OfThread(threading.local):
    """The loans that a thread has; they go when it does."""

    def __init__(self) -> None:
        self._loans: list[Loan] = []

    def add(self, loan: Loan) -> None:
        self._loans = [*(other for other in self._loans if other.active), loan]


_of_thread = _OfThread()
_borrowers: weakref.WeakSet[DatabaseWrapper] = weakref.WeakSet()


def remember(wrapper: DatabaseWrapper, lease: Lease, latest: weakref.ref[Loan] | None) -> weakref.ref[Loan]:
    """Give *lease* back when this thread ends, or *wrapper* is forgotten; *latest* is what this returned before."""
    loan = latest() if latest is not None else None
    if latest is not None and loan is not None and loan.thread == threading.get_ident():
        loan.leases[:] = [lease]
        return latest
    loan = Loan(wrapper, lease)
    _of_thread.add(loan)
    _borrowers.add(wrapper)
    return weakref.ref(loan)


def _after_fork_in_child() -> None:
    for wrapper in list(_borrowers):
        wrapper.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
