"""Advisory locks for a block, in a transaction or on a connection of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import psycopg
from psycopg.errors import LockNotAvailable

from .._driver.advisory import AdvisoryLock, milliseconds
from .._driver.sql import Params, Plain
from ..errors import LockNotAvailableError
from .blocks import AsyncTransactionBlock
from .cursor import own_cursor
from .lease import AsyncLease

_WAIT_ON_SERVER = "SELECT set_config('lock_timeout', %s, true)"
Value = Callable[[Plain, Params], Awaitable[Any]]
"""Runs a statement; returns the first column of its first row."""


class AsyncLocking(Protocol):
    """What a lock needs of a database."""

    def current_unit(self) -> object:
        """Return the unit of work that the current context is in, if any."""
        ...

    def transaction(self) -> AsyncTransactionBlock[Any]:
        """Run a block in a transaction, or in a savepoint."""
        ...

    def borrow(self, *, autocommit: bool | None) -> Awaitable[AsyncLease]:
        """Lend a connection."""
        ...

    def fetch_own(self, query: Plain, params: Params) -> Awaitable[Any]:
        """Return the first column of the first row."""
        ...


@asynccontextmanager
async def in_transaction(database: AsyncLocking, lock: AdvisoryLock, wait: bool | float) -> AsyncIterator[None]:
    """Take *lock* until the end of the unit of work, or of a transaction that is opened for the block."""
    if database.current_unit() is not None:
        await _take_in_transaction(database, lock, wait)
        yield
        return
    async with database.transaction():
        await _take_in_transaction(database, lock, wait)
        yield


async def _take_in_transaction(database: AsyncLocking, lock: AdvisoryLock, wait: bool | float) -> None:
    value = database.fetch_own

    async def within(seconds: float) -> None:
        async with database.transaction():  # a savepoint: a wait in vain fails the statement
            before = await value(lock.take_within, (milliseconds(seconds), *lock.params))
            await value(_WAIT_ON_SERVER, (before,))

    await _take(lock, wait, value, within)


@asynccontextmanager
async def in_session(database: AsyncLocking, lock: AdvisoryLock, wait: bool | float) -> AsyncIterator[None]:
    """Take *lock* on a connection of its own until the end of the block."""
    lease = await database.borrow(autocommit=True)
    connection = lease.connection

    async def value(statement: Plain, params: Params) -> Any:
        cursor = await own_cursor(connection).execute(statement, params)
        row = await cursor.fetchone()
        return None if row is None else row[0]

    async def within(seconds: float) -> None:
        await value(lock.take_within, (milliseconds(seconds), *lock.params))

    try:
        await _take(lock, wait, value, within)
        yield
        await _release(lock, value)
    except BaseException as error:
        if not lease.pool.blueprint.settings.clean_on_return:
            lease.abandon()  # or the next borrower would hold it
        await lease.finish(error)
        raise
    await lease.finish()


async def _release(lock: AdvisoryLock, value: Value) -> None:
    try:
        held = await value(lock.release, lock.params)
    except psycopg.Error as error:
        raise _lost(lock) from error
    if not held:
        raise _lost(lock)


def _lost(lock: AdvisoryLock) -> psycopg.Error:
    return psycopg.OperationalError(f"the lock {lock.name} was lost with its session before the end of its block")


async def _take(
    lock: AdvisoryLock, wait: bool | float, value: Value, within: Callable[[float], Awaitable[None]]
) -> None:
    """Take *lock*, or raise `LockNotAvailableError`; by *value*, and by *within* to wait for so many seconds."""
    if wait is True:
        await value(lock.take, lock.params)
        return
    if await value(lock.attempt, lock.params):
        return
    if wait:
        try:
            await within(wait)
            return
        except LockNotAvailable:
            pass  # the wait is over
    raise LockNotAvailableError(lock.not_available(wait, await value(lock.holders, lock.params)))
