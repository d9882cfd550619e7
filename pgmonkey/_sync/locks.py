# Generated from pgmonkey/_async/locks.py by tools/twins.py: change that file, then run the tool.

"""Advisory locks for a block, in a transaction or on a connection of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import psycopg
from psycopg.errors import LockNotAvailable

from .._driver.advisory import AdvisoryLock, milliseconds
from .._driver.sql import Params, Plain
from ..errors import LockNotAvailableError
from .blocks import TransactionBlock
from .cursor import own_cursor
from .lease import Lease

_WAIT_ON_SERVER = "SELECT set_config('lock_timeout', %s, true)"
Value = Callable[[Plain, Params], Any]
"""Runs a statement; returns the first column of its first row."""


class Locking(Protocol):
    """What a lock needs of a database."""

    def current_unit(self) -> object:
        """Return the unit of work that the current context is in, if any."""
        ...

    def transaction(self) -> TransactionBlock[Any]:
        """Run a block in a transaction, or in a savepoint."""
        ...

    def borrow(self, *, autocommit: bool | None) -> Lease:
        """Lend a connection."""
        ...

    def fetch_own(self, query: Plain, params: Params) -> Any:
        """Return the first column of the first row."""
        ...


@contextmanager
def in_transaction(database: Locking, lock: AdvisoryLock, wait: bool | float) -> Iterator[None]:
    """Take *lock* until the end of the unit of work, or of a transaction that is opened for the block."""
    if database.current_unit() is not None:
        _take_in_transaction(database, lock, wait)
        yield
        return
    with database.transaction():
        _take_in_transaction(database, lock, wait)
        yield


def _take_in_transaction(database: Locking, lock: AdvisoryLock, wait: bool | float) -> None:
    value = database.fetch_own

    def within(seconds: float) -> None:
        with database.transaction():  # a savepoint: a wait in vain fails the statement
            before = value(lock.take_within, (milliseconds(seconds), *lock.params))
            value(_WAIT_ON_SERVER, (before,))

    _take(lock, wait, value, within)


@contextmanager
def in_session(database: Locking, lock: AdvisoryLock, wait: bool | float) -> Iterator[None]:
    """Take *lock* on a connection of its own until the end of the block."""
    lease = database.borrow(autocommit=True)
    connection = lease.connection

    def value(statement: Plain, params: Params) -> Any:
        cursor = own_cursor(connection).execute(statement, params)
        row = cursor.fetchone()
        return None if row is None else row[0]

    def within(seconds: float) -> None:
        value(lock.take_within, (milliseconds(seconds), *lock.params))

    try:
        _take(lock, wait, value, within)
        yield
        _release(lock, value)
    except BaseException as error:
        if not lease.pool.blueprint.settings.clean_on_return:
            lease.abandon()  # or the next borrower would hold it
        lease.finish(error)
        raise
    lease.finish()


def _release(lock: AdvisoryLock, value: Value) -> None:
    try:
        held = value(lock.release, lock.params)
    except psycopg.Error as error:
        raise _lost(lock) from error
    if not held:
        raise _lost(lock)


def _lost(lock: AdvisoryLock) -> psycopg.Error:
    return psycopg.OperationalError(f"the lock {lock.name} was lost with its session before the end of its block")


def _take(lock: AdvisoryLock, wait: bool | float, value: Value, within: Callable[[float], None]) -> None:
    """Take *lock*, or raise `LockNotAvailableError`; by *value*, and by *within* to wait for so many seconds."""
    if wait is True:
        value(lock.take, lock.params)
        return
    if value(lock.attempt, lock.params):
        return
    if wait:
        try:
            within(wait)
            return
        except LockNotAvailable:
            pass  # the wait is over
    raise LockNotAvailableError(lock.not_available(wait, value(lock.holders, lock.params)))
