# Generated from pgmonkey/_async/blocks.py by tools/twins.py: change that file, then run the tool.

"""The blocks of a database: ``unit_of_work()`` and ``transaction()``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Generic

from psycopg import Connection, Rollback
from psycopg.rows import Row

from .._driver.deadlines import Deadline
from .._driver.transaction_mode import DEFAULT, TransactionMode
from .._pool import scopes
from .nested import Nested
from .unit import Source, UnitOfWork, current_unit


class UnitBlock(AbstractContextManager["UnitOfWork[Row]"], Generic[Row]):
    """A unit of work that is finished at the end of a block; inside another one, a savepoint of it."""

    def __init__(
        self,
        source: Source,
        mode: TransactionMode = DEFAULT,
        values: Mapping[str, str | None] | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        self._source = source
        self._mode = mode
        self._values = values
        self._deadline = deadline
        self._unit: UnitOfWork[Row] | None = None
        self._nested: Nested | None = None

    def __enter__(self) -> UnitOfWork[Row]:
        if self._unit is not None or self._nested is not None:
            raise scopes.used_before("unit_of_work()")
        outer: UnitOfWork[Row] | None = current_unit(self._source) if scopes.inside.get() else None
        if outer is not None:
            self._nested = Nested(outer)
            self._nested.enter(sys._getframe(1))
            return outer
        unit: UnitOfWork[Row] = UnitOfWork(self._source, self._mode, values=self._values, deadline=self._deadline)
        self._unit, unit.nests = unit, True
        try:
            scopes.enter(unit)
            return unit
        except BaseException:
            unit.finished = True  # nobody will finish it
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._nested is not None:
            self._nested.exit(kind, error, traceback)
        elif self._unit is not None:
            self._unit.finish(error)


class TransactionBlock(AbstractContextManager["Connection[Row]"], Generic[Row]):
    """A transaction, or a savepoint inside the unit of work that the block is in."""

    def __init__(self, source: Source, mode: TransactionMode, deadline: Deadline | None = None) -> None:
        self._source = source
        self._mode = mode
        self._deadline = deadline
        self._unit: UnitOfWork[Row] | None = None
        self._nested: Nested | None = None

    def __enter__(self) -> Connection[Row]:
        if self._unit is not None or self._nested is not None:
            raise scopes.used_before("transaction()")
        outer: UnitOfWork[Row] | None = current_unit(self._source) if scopes.inside.get() else None
        if outer is not None:
            return self._enter_nested(outer, sys._getframe(1))
        unit: UnitOfWork[Row] = UnitOfWork(self._source, self._mode, deadline=self._deadline)
        self._unit, unit.nests = unit, True
        try:
            connection = unit.connection()
            # Last: a unit that is current is one that somebody will finish.
            if scopes.inside.get():
                scopes.share(unit, sys._getframe(1))
            scopes.enter(unit)
            return connection
        except BaseException as error:
            unit.finish(error)
            raise

    def _enter_nested(self, outer: UnitOfWork[Row], frame: FrameType) -> Connection[Row]:
        if self._mode is not DEFAULT:
            outer.set_mode(self._mode)
        deadline = self._deadline
        timeout = None if deadline is None else deadline.wait(self._source.timeout)
        connection = outer.connection(timeout=timeout)
        self._nested = Nested(outer, deadline=deadline)
        self._nested.enter(frame)
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._nested is not None:
            return self._nested.exit(kind, error, traceback)
        if self._unit is not None:
            self._unit.finish(error)
        # As psycopg's outermost block: Rollback() ends it, and the program goes on behind it.
        return error is not None and isinstance(error, Rollback) and error.transaction is None
