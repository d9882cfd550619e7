# Generated from _blocks_async.py by tools/twins.py: change that file, then run the tool.

"""Units of work and transactions as blocks.  Classes, not generators: these are entered once a request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Generic

from psycopg import Connection, Transaction
from psycopg.rows import Row

from ._mode import USUAL, Mode
from ._unit import UnitOfWork, enter


class UnitBlock(AbstractContextManager["UnitOfWork[Row]"], Generic[Row]):
    """A unit of work that is finished at the end of a block, with the block's error if there is one."""

    def __init__(self, begin: Callable[[], UnitOfWork[Row]]) -> None:
        self._begin = begin

    def __enter__(self) -> UnitOfWork[Row]:
        self._unit = self._begin()
        return self._unit

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._unit.finish(error)


class TransactionBlock(AbstractContextManager["Connection[Row]"], Generic[Row]):
    """A transaction, or a savepoint inside the unit of work that the block is in."""

    def __init__(self, source: Any, mode: Mode) -> None:
        self._source = source
        self._mode = mode
        self._unit: UnitOfWork[Row] | None = None
        self._savepoint: AbstractContextManager[Transaction] | None = None

    def __enter__(self) -> Connection[Row]:
        outer: UnitOfWork[Row] | None = self._source.current_unit()
        if outer is None:
            unit: UnitOfWork[Row] = UnitOfWork(self._source, self._mode)
            self._unit = enter(unit)
            try:
                return unit.connection()
            except BaseException as error:
                unit.finish(error)
                raise
        if self._mode is not USUAL:
            outer.set_mode(self._mode)
        connection = outer.connection()
        self._savepoint = connection.transaction()
        self._savepoint.__enter__()
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._savepoint is not None:
            return self._savepoint.__exit__(kind, error, traceback)
        if self._unit is not None:
            self._unit.finish(error)
        return None
