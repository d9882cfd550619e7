# Generated from pgmonkey/_async/batch.py by tools/twins.py: change that file, then run the tool.

"""A batch: several statements in one round trip, and their results."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar, cast, overload

import psycopg
from psycopg import Cursor
from psycopg.rows import Row, RowFactory, RowMaker, tuple_row

from .._driver.compat import PIPELINES
from .._driver.cursors import convert
from .._driver.deadlines import Deadline
from .._driver.failure import text_of
from .._driver.many import can_execute_many, executing_all
from .._driver.psycopg_types import RowFactory as AnyRowFactory
from .._driver.sql import Params, Plain, Statement, ends_transaction
from .._driver.transaction_mode import DEFAULT
from .._pool import scopes
from .._pool.answers import Answer
from .._telemetry.events import Loan
from . import fetching
from .blocks import TransactionBlock
from .cursor import fast_cursor
from .fetching import COLUMNS, Fetch, as_it_is, makes_rows
from .guard import Guard
from .psycopg_types import AnyConnection, AnyCursor
from .unit import Source

T = TypeVar("T")


_Maker: TypeAlias = Callable[[Any], RowMaker[Any]]


class _Queued(NamedTuple):
    query: Statement
    params: Params
    fetch: Fetch[Any]
    row_factory: AnyRowFactory | None
    answer: Answer[Any]

    def prepare(self, cursor: AnyCursor) -> _Maker:
        """Let *cursor* make what `fetch` takes; return what makes the row maker that this takes with it."""
        row_factory: _Maker = self.row_factory or cursor.row_factory
        columns, own = self.fetch in COLUMNS, makes_rows(cursor.__class__)
        cursor.row_factory = row_factory if own and not columns else tuple_row
        return (lambda _cursor: as_it_is) if columns or own else row_factory


class Batch(AbstractContextManager["Batch[Row]"], Generic[Row]):
    """Several statements in one round trip: they are sent at the end of the block, unless that raises.

    In a unit of work they are part of it, elsewhere a transaction of their own: all of them, or none.  Each method does
    what that of the database does; the `Answer` that it returns has the result behind the block.
    """

    def __init__(self, source: Source, deadline: Deadline | None = None) -> None:
        self._source = source
        self._deadline = deadline
        self._queue: list[_Queued] = []
        self._entered = False

    @overload
    def fetch_one(self, query: Statement, params: Params = None, *, row_factory: None = None) -> Answer[Row | None]: ...

    @overload
    def fetch_one(self, query: Statement, params: Params = None, *, row_factory: RowFactory[T]) -> Answer[T | None]: ...

    def fetch_one(
        self, query: Statement, params: Params = None, *, row_factory: RowFactory[Any] | None = None
    ) -> Answer[Any]:
        """Let the batch have *query*, whose result is the first row, or None when there is none."""
        return self._add(query, params, fetching.fetch_one, row_factory)

    @overload
    def fetch_exactly_one(
        self, query: Statement, params: Params = None, *, row_factory: None = None
    ) -> Answer[Row]: ...

    @overload
    def fetch_exactly_one(
        self, query: Statement, params: Params = None, *, row_factory: RowFactory[T]
    ) -> Answer[T]: ...

    def fetch_exactly_one(
        self, query: Statement, params: Params = None, *, row_factory: RowFactory[Any] | None = None
    ) -> Answer[Any]:
        """Let the batch have *query*, whose result is the only row; else it raises `NoRowError` or `ManyRowsError`."""

        def fetch(cursor: Cursor[Any], make: Any) -> Callable[[], Any]:
            found = fetching.fetch_exactly_one(cursor, make)
            return lambda: fetching.only_row(query, *found())

        return self._add(query, params, fetch, row_factory)

    @overload
    def fetch_all(self, query: Statement, params: Params = None, *, row_factory: None = None) -> Answer[list[Row]]: ...

    @overload
    def fetch_all(self, query: Statement, params: Params = None, *, row_factory: RowFactory[T]) -> Answer[list[T]]: ...

    def fetch_all(
        self, query: Statement, params: Params = None, *, row_factory: RowFactory[Any] | None = None
    ) -> Answer[Any]:
        """Let the batch have *query*, whose result is all rows."""
        return self._add(query, params, fetching.fetch_all, row_factory)

    def fetch_value(self, query: Statement, params: Params = None) -> Answer[Any]:
        """Let the batch have *query*, whose result is the first column of the first row, or None."""
        return self._add(query, params, fetching.fetch_value)

    def fetch_values(self, query: Statement, params: Params = None) -> Answer[list[Any]]:
        """Let the batch have *query*, whose result is the first column of all rows."""
        return self._add(query, params, fetching.fetch_values)

    def execute(self, query: Statement, params: Params = None) -> Answer[int]:
        """Let the batch have *query*, whose result is the number of rows affected."""
        return self._add(query, params, fetching.count)

    def _add(
        self, query: Statement, params: Params, fetch: Fetch[T], row_factory: AnyRowFactory | None = None
    ) -> Answer[T]:
        answer: Answer[T] = Answer()
        self._queue.append(_Queued(query, params, fetch, row_factory, answer))
        return answer

    def __enter__(self) -> Batch[Row]:
        if self._entered:
            raise scopes.used_before("batch()")
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None or not self._queue:
            return
        scope = scopes.find(self._source)
        if scope is not None:
            self._answer(scope.do(self._execute, deadline=self._deadline))
            return
        block: TransactionBlock[Row] = TransactionBlock(self._source, DEFAULT, self._deadline)
        with block as connection:
            self._answer(self._execute(connection))

    def _answer(self, made: list[Callable[[], Any]]) -> None:
        # Rows are made by classes and functions of the program, and these may use the unit of work.
        for number, make in enumerate(made):
            try:
                self._queue[number].answer.make(make)
            except psycopg.Error as error:
                self._name(error, number)
                raise

    def _execute(self, connection: AnyConnection) -> list[Callable[[], Any]]:
        """Execute them all and load their results; return what makes the answer of each."""
        sent: list[tuple[AnyCursor, _Maker]] = []
        try:
            if not self._execute_in_one_message(connection, sent):
                sent.clear()
                with ExitStack() as stack:
                    if PIPELINES:
                        stack.enter_context(connection.pipeline())
                    for one in self._queue:
                        cursor = connection.cursor()
                        sent.append((cursor, one.prepare(cursor)))
                        # Not prepared: what is outdated could not be executed again, as others may have been before it.
                        cursor.execute(cast(Plain, one.query), one.params, prepare=False)
        except psycopg.Error as error:
            unanswered = [number for number, (cursor, _) in enumerate(sent) if cursor.pgresult is None]
            if unanswered and error.sqlstate is not None:
                self._name(error, unanswered[0])
            elif unanswered and not isinstance(error, psycopg.OperationalError):
                self._name(error, unanswered[-1])  # what the client finds wrong, it finds before it sends the statement
            raise
        made = []
        for number, (cursor, maker) in enumerate(sent):
            try:
                made.append(self._queue[number].fetch(cursor, maker(cursor)))
            except psycopg.Error as error:
                self._name(error, number)
                raise
        return made

    def _execute_in_one_message(self, connection: AnyConnection, sent: list[tuple[AnyCursor, _Maker]]) -> bool:
        """Execute them on the cursors of *sent*, which it fills; return False where psycopg is to execute them."""
        cast("Guard", connection).begin_alone()
        for one in self._queue:
            cursor = connection.cursor()
            sent.append((cursor, one.prepare(cursor)))
            kind = type(cursor)
            if vars(kind).get("over", kind) is not fast_cursor(Cursor):
                return False  # a class of the program's, or what a tracer has put in its place
            if not can_execute_many(cursor, one.query) or ends_transaction(one.query, connection.pgconn):
                return False
        cursors = [cursor for cursor, _ in sent]
        statements: list[Statement] = [one.query for one in self._queue]
        loan: Loan | None = connection.__dict__.get("loan")
        executions = []
        try:
            with connection.lock:
                for cursor, one in zip(cursors, self._queue, strict=True):
                    if convert(cursor, cast(Plain, one.query), one.params) is None:
                        return False
                    if loan is not None:
                        executions.append(loan.executing(one.query, one.params, connection.pgconn))
                failure: BaseException | None = None
                try:
                    connection.wait(executing_all(cursors, statements))
                except BaseException as error:
                    failure = error
                    raise
                finally:
                    for cursor, execution in zip(cursors, executions, strict=False):
                        execution.rows = cursor.rowcount
                        execution.ended(failure if cursor.pgresult is None else None)
        finally:
            if loan is not None:
                loan.tell()
        return True

    def _name(self, error: psycopg.Error, number: int) -> None:
        """Let the message of *error* say which statement it comes from."""
        which = f"statement {number + 1} of {len(self._queue)} of the batch: {text_of(self._queue[number].query)}"
        error.args = (f"{error}\n{which}", *error.args[1:])
