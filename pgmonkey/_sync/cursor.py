# Generated from pgmonkey/_async/cursor.py by tools/twins.py: change that file, then run the tool.

"""The cursors of lent connections: psycopg's, which take the fast path where nothing unusual is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, cast

import psycopg
from psycopg.abc import Params
from psycopg.cursor import Cursor
from psycopg.pq import Format
from psycopg.pq.abc import PGresult
from psycopg.rows import tuple_row

from .._driver.begin import Begin, begin_statement
from .._driver.cursors import convert, fast_class, plan_for, set_result
from .._driver.plan import text_key
from .._driver.sql import TO_SAVEPOINT, Plain, ends_transaction, is_one_plain, text_of
from .connector import PooledConnection
from .fastpath import Lent, begin_anew, execute_first, execute_plan, execute_text, forget_plans, may_repeat
from .guard import Guard
from .psycopg_types import AnyConnection, AnyCursor


def _execute(
    self: AnyCursor,
    query: Plain,
    params: Params | None = None,
    *,
    prepare: bool | None = None,
    binary: bool | None = None,
) -> AnyCursor:
    """Do as psycopg; a prepared statement takes one round trip, also where a transaction begins with it."""
    connection = self.connection
    weak: Lent | None = connection.__dict__.get("pooled")
    pooled = None if weak is None else weak()
    if pooled is None:
        return Cursor.execute(self, query, params, prepare=prepare, binary=binary)
    try:
        if prepare is not None or binary is not None or self.format != Format.TEXT:
            return _execute_as_psycopg(self, query, params, prepare=prepare, binary=binary)
        lock = connection.lock  # named so for `held_by_caller`
        with lock:
            unit = connection.__dict__["unit"]() if "unit" in connection.__dict__ else None
            if unit is not None and unit.blocks:
                unit.check_statement()
            text = query if query.__class__ is str else text_key(query, self)
            # Without parameters psycopg does not look for placeholders, so the same text is another statement.
            key = text if text is None or params is not None else (text, None)
            if key is not None and "tag" in connection.__dict__:
                key = (key, connection.__dict__["tag"])
            plan = None if key is None else plan_for(self, pooled.plans, key, params)
            begin = begin_statement(connection)
            if plan is not None and begin != ():
                result = execute_plan(pooled, plan, begin)
                set_result(self, query, [result], anew=True)
                return self
            results = _execute_first(self, pooled, query, params, begin) if begin else None
        if results is None:
            _execute_as_psycopg(self, query, params)
        else:
            set_result(self, query, results, anew=False)
    except psycopg.Error as error:
        if not may_repeat(connection.__dict__["pool"], pooled, error):
            raise
    else:
        if key is not None:
            pooled.plans.learn(key, query, params, self, tuple_row)
        return self
    begin_anew(connection)
    Cursor.execute(self, query, params, prepare=False, binary=binary)
    forget_plans(connection.__dict__["pool"])  # the others, too, have it prepared for the old shape of the tables
    return self


def _execute_first(
    self: AnyCursor, pooled: PooledConnection, query: Plain, params: Params | None, begin: Begin
) -> list[PGresult] | None:
    """Execute what a transaction begins with, in one round trip; None when psycopg is to do it."""
    _refuse_end(self, query)
    converted = convert(self, query, params)
    # What has parameters is one statement, by psycopg's protocol, too; a pipeline takes no other.
    if converted is None or not (converted.params or is_one_plain(text_of(query))):
        return None
    return execute_first(pooled, self, converted, begin)


def _execute_merged(
    self: AnyCursor,
    query: Plain,
    params: Params | None = None,
    *,
    prepare: bool | None = None,
    binary: bool | None = None,
) -> AnyCursor:
    """Do as psycopg's client-side cursors, in one round trip with the BEGIN that is needed."""
    connection = self.connection
    weak: Lent | None = connection.__dict__.get("pooled")
    pooled = None if weak is None else weak()
    plain = prepare is None and binary is None and self.format == Format.TEXT
    # BEGIN and the statement travel by the extended protocol, which takes one statement a message.
    if pooled is not None and plain and query.__class__ is str and isinstance(query, str) and is_one_plain(query):
        lock = connection.lock  # named so for `held_by_caller`
        with lock:
            unit = connection.__dict__["unit"]() if "unit" in connection.__dict__ else None
            if unit is not None and unit.blocks:
                unit.check_statement()
            begin = begin_statement(connection)
            converted = None if begin == () else convert(self, query, params)
            if converted is not None:
                results = execute_text(pooled, converted, begin)
                set_result(self, query, results, anew=False)
                return self
    return _execute_as_psycopg(self, query, params, prepare=prepare, binary=binary)


def _execute_as_psycopg(self: AnyCursor, query: Plain, params: Params | None, **options: bool | None) -> AnyCursor:
    """Do as psycopg, unless *query* would end a unit of work; set again the session values that it has undone."""
    ends = _refuse_end(self, query)
    Cursor.execute(self, query, params, **options)
    if ends == TO_SAVEPOINT:
        cast("Guard", self.connection).set_values()
    return self


def _executemany(self: AnyCursor, query: Plain, params_seq: Iterable[Params], *, returning: bool = False) -> None:
    """Do as psycopg, unless *query* would end a unit of work."""
    ends = _refuse_end(self, query)
    cast("Guard", self.connection).begin_alone()
    Cursor.executemany(self, query, params_seq, returning=returning)
    if ends == TO_SAVEPOINT:
        cast("Guard", self.connection).set_values()


def _copy(self: AnyCursor, statement: Plain, *arguments: Any, **options: Any) -> Any:
    """Do as psycopg, unless *statement* would end a unit of work."""
    _refuse_end(self, statement)
    return Cursor.copy(self, statement, *arguments, **options)


def _stream(self: AnyCursor, query: Plain, *arguments: Any, **options: Any) -> Any:
    """Do as psycopg, unless *query* would end a unit of work."""
    _refuse_end(self, query)
    return Cursor.stream(self, query, *arguments, **options)


def _refuse_end(cursor: AnyCursor, query: Plain) -> str:
    """Raise `psycopg.ProgrammingError` if *query* would end a unit of work; return what in it ends savepoints."""
    ends = ends_transaction(query, cursor.connection.pgconn)
    if ends and ends != TO_SAVEPOINT:
        cast("Guard", cursor.connection).refuse_end(ends)
    return ends


_OTHERS = {"executemany": _executemany, "copy": _copy, "stream": _stream}


@lru_cache
def fast_cursor(cursor_class: type[AnyCursor]) -> type[AnyCursor]:
    """Return the subclass of a class of cursors that takes the fast path; the class itself where there is none."""
    return fast_class(cursor_class, Cursor, _execute, _execute_merged, _OTHERS)


def adopted(cursor: AnyCursor, connection: AnyConnection) -> AnyCursor:
    """Return *cursor*, which its class has made and not the *connection*, as that would have made it."""
    state = connection.__dict__
    if "tracer" in state:
        traced: AnyCursor = state["tracer"].adopt(cursor, state["fast_cursor"])
        return traced
    cursor.__class__ = state["fast_cursor"](cursor.__class__)
    return cursor


def own_cursor(connection: AnyConnection) -> AnyCursor:
    """Return a cursor for a statement of ours: psycopg's own, whatever class and rows `configure` has chosen."""
    state = connection.__dict__
    if "tracer" in state:
        traced: AnyCursor = state["tracer"].make(Cursor, state["fast_cursor"], connection, tuple_row)
        return traced
    return adopted(Cursor(connection, row_factory=tuple_row), connection)
