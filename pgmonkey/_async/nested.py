"""A block inside a unit of work: a savepoint, or, where nothing was done before it, all that the unit has done."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from time import monotonic
from types import FrameType, TracebackType
from typing import Any, Protocol, TypeVar

import psycopg
from psycopg import AsyncTransaction

from .._driver.deadlines import Deadline, earlier
from .._driver.plan import Read
from .._driver.sql import Params, Statement
from .._driver.transaction_mode import DEFAULT, TransactionMode
from .._pool import scopes
from .._pool.scopes import Runner, Source
from .fastpath import AsyncFastPath
from .guard import AsyncGuard
from .lease import AsyncLease
from .psycopg_types import AsyncAnyConnection
from .waiting import cannot_wait

T = TypeVar("T")

# Seconds to roll back a block whose time is over; a server that takes longer is not there.
_GRACE = 2.0


class AsyncUnit(Protocol):
    """What a nested block needs of the unit of work that it is in."""

    mode: TransactionMode

    @property
    def source(self) -> Source:
        """The database."""
        ...

    def answer(
        self, fast: AsyncFastPath, query: Statement, params: Params, read: Read, block: AsyncNested | None = None
    ) -> Awaitable[Any]:
        """Do as `AsyncFastPath.run`, called in the open *block*."""
        ...

    def do(
        self,
        work: Callable[[AsyncAnyConnection], Awaitable[T]],
        block: AsyncNested | None = None,
        deadline: Deadline | None = None,
    ) -> Awaitable[T]:
        """Return what *work* returns, which is given the connection when it is its turn."""
        ...

    async def open_block(self, block: AsyncNested, begin: Callable[[AsyncGuard | None], Awaitable[T]]) -> T:
        """Begin *block* by *begin*, which is given the connection if one is borrowed, when it is its turn."""
        ...

    async def close_block(
        self, block: AsyncNested, end: Callable[[], Awaitable[bool | None]], error: BaseException | None
    ) -> bool | None:
        """End *block*, which ends with *error*, by *end* when it is its turn."""
        ...

    async def undo(self, error: BaseException) -> None:
        """Roll back all that was done."""
        ...

    def refuse(self, reason: str) -> None:
        """Let nothing more be done, and nothing be committed."""
        ...


class AsyncNested:
    """A block inside a unit of work, good for one use.

    *transaction* is psycopg's block.  Without one it is made where the unit has a connection already; where it has
    none, nothing was done before, and to undo the block is to undo all.
    """

    finished = False
    asking = False

    def __init__(
        self,
        unit: AsyncUnit,
        transaction: AbstractAsyncContextManager[AsyncTransaction] | None = None,
        force_rollback: bool = False,
        deadline: Deadline | None = None,
    ) -> None:
        self.unit = unit
        self.source = unit.source
        self.runner: Runner | None = None
        """Who entered it."""
        self.force_rollback = force_rollback
        """Whether it is rolled back however it ends."""
        self._transaction = transaction
        self.values: Mapping[str, str | None] = {}
        """The session values at its beginning, which hold again when it is rolled back."""
        self.deadline = deadline
        """When it must have ended; None is never."""
        self._outer_deadline: Deadline | None = None

    @property
    def runs_elsewhere(self) -> bool:
        """Whether somebody else than the caller is running what is in it."""
        return self.runner is not None and self.runner.elsewhere

    @property
    def goes_on_elsewhere(self) -> bool:
        """Whether somebody else is in the midst of it, and has not left it at a ``yield``."""
        return self.runner is not None and self.runner.elsewhere and not self.runner.suspended

    async def enter(self, frame: FrameType) -> AsyncTransaction | None:
        """Begin the block, which *frame* is to end; raise `psycopg.ProgrammingError` where it would not nest."""
        if self.runner is not None:
            raise scopes.used_before("transaction()")
        self.runner = Runner(frame)
        try:
            transaction = await self.unit.open_block(self, self._begin)
            scopes.enter(self)
            return transaction
        except BaseException:
            self.finished = True  # nobody will end it
            raise

    async def exit(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """End the block as psycopg's: released, or rolled back when there is an *error*, or it ends too late."""
        if self.runner is None or self.finished:
            return None
        if error is None and self.deadline is not None and not self.deadline.left:
            late = self.deadline.exceeded("the block did not end")
            await self.exit(type(late), late, None)
            raise late

        async def end() -> bool | None:
            if self._transaction is not None:
                return await self._transaction.__aexit__(kind, error, traceback)
            if error is not None:
                await self.unit.undo(error)
            return None

        try:
            if cannot_wait(error) and not self.runner.may_wait:
                self.unit.refuse("a block was closed where it could not be rolled back")
                return None
            return await self.unit.close_block(self, end, error)
        finally:
            self.finished = True
            scopes.leave(self)

    async def _begin(self, connection: AsyncGuard | None) -> AsyncTransaction | None:
        if connection is not None:
            self._transaction = self._transaction or connection.new_savepoint()
            return await connection.begin_savepoint(self._transaction)
        return None

    def answer(self, fast: AsyncFastPath, query: Statement, params: Params, read: Read) -> Awaitable[Any]:
        """Do as `AsyncFastPath.run`, as part of this block."""
        return self.unit.answer(fast, query, params, read, self)

    def do(
        self, work: Callable[[AsyncAnyConnection], Awaitable[T]], *, deadline: Deadline | None = None
    ) -> Awaitable[T]:
        """Return what *work* returns, which is given the connection when it is its turn."""
        return self.unit.do(work, self, deadline)

    def limit(self, lease: AsyncLease) -> None:
        """Let what is executed in the block end by its deadline, if it has one."""
        if self.deadline is not None:
            self._outer_deadline = lease.deadline
            lease.limit(earlier(self.deadline, lease.deadline))

    def grant_grace(self, lease: AsyncLease | None) -> None:
        """Let the block be rolled back also where its time is over."""
        if self.deadline is not None and lease is not None and self.deadline.left < _GRACE:
            grace = self.deadline._replace(at=monotonic() + _GRACE)
            lease.limit(earlier(grace, self._outer_deadline))

    def lift_limit(self, lease: AsyncLease | None) -> None:
        """Let what is executed from now on end by the deadline of what is around the block, if that has one."""
        if self.deadline is not None and lease is not None:
            lease.limit(self._outer_deadline)

    async def __aenter__(self) -> AsyncTransaction | None:
        return await self.enter(sys._getframe(1))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self.exit(kind, error, traceback)


class AsyncAttempt(AsyncNested):
    """A block that is all that its unit of work has done: it is undone as a whole, so that it can be tried again."""

    def __init__(self, unit: AsyncUnit, mode: TransactionMode, deadline: Deadline | None) -> None:
        super().__init__(unit, deadline=deadline)
        self._mode = mode
        self._mode_before = unit.mode

    async def _begin(self, connection: AsyncGuard | None) -> AsyncTransaction | None:
        if connection is not None:
            raise psycopg.ProgrammingError(
                "retry() cannot run again what the transaction around it did; call it first, or outside"
            )
        if self._mode is not DEFAULT:
            self.unit.mode = self._mode
        return None

    async def exit(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """End the block; undo it when there is an *error*."""
        try:
            return await super().exit(kind, error, traceback)
        finally:
            if error is not None:
                self.unit.mode = self._mode_before
