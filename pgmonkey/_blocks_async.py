"""Units of work and transactions as blocks.  Classes, not generators: these are entered once a request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic

from psycopg import AsyncConnection, AsyncTransaction
from psycopg.rows import Row

from ._mode import USUAL, Mode
from ._unit_async import AsyncUnitOfWork, enter


class AsyncUnitBlock(AbstractAsyncContextManager["AsyncUnitOfWork[Row]"], Generic[Row]):
    """A unit of work that is finished at the end of a block, with the block's error if there is one."""

    def __init__(self, begin: Callable[[], AsyncUnitOfWork[Row]]) -> None:
        self._begin = begin

    async def __aenter__(self) -> AsyncUnitOfWork[Row]:
        self._unit = self._begin()
        return self._unit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._unit.finish(error)


class AsyncTransactionBlock(AbstractAsyncContextManager["AsyncConnection[Row]"], Generic[Row]):
    """A transaction, or a savepoint inside the unit of work that the block is in."""

    def __init__(self, source: Any, mode: Mode) -> None:
        self._source = source
        self._mode = mode
        self._unit: AsyncUnitOfWork[Row] | None = None
        self._savepoint: AbstractAsyncContextManager[AsyncTransaction] | None = None

    async def __aenter__(self) -> AsyncConnection[Row]:
        outer: AsyncUnitOfWork[Row] | None = self._source.current_unit()
        if outer is None:
            unit: AsyncUnitOfWork[Row] = AsyncUnitOfWork(self._source, self._mode)
            self._unit = enter(unit)
            try:
                return await unit.connection()
            except BaseException as error:
                await unit.finish(error)
                raise
        if self._mode is not USUAL:
            await outer.set_mode(self._mode)
        connection = await outer.connection()
        self._savepoint = connection.transaction()
        await self._savepoint.__aenter__()
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._savepoint is not None:
            return await self._savepoint.__aexit__(kind, error, traceback)
        if self._unit is not None:
            await self._unit.finish(error)
        return None
