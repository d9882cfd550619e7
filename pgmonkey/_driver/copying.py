"""COPY: its statements, what rows are made of, and which row it was that could not be stored."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from operator import attrgetter, itemgetter
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict
from uuid import UUID

import psycopg
from psycopg import AsyncCopy, Copy, sql
from psycopg.abc import Buffer
from psycopg.adapt import AdaptersMap, PyFormat
from psycopg.pq import Format

from ..errors import BadRowError
from .sql import Statement
from .templates import Template

AnyCopy: TypeAlias = "Copy | AsyncCopy"
TableName: TypeAlias = "str | sql.Identifier"
"""The name of a table as it is written in the catalog, perhaps with that of its schema: ``"public.orders"``."""

COLUMNS = (
    "SELECT attname, CASE typtype WHEN 'd' THEN typbasetype ELSE atttypid END"
    " FROM pg_catalog.pg_attribute JOIN pg_catalog.pg_type ON pg_type.oid = atttypid"
    " WHERE attrelid = %s::pg_catalog.regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"
    " ORDER BY attnum"
)
"""Asks for the columns that COPY fills, and their types, of the table whose quoted name is the parameter."""


def columns_of(rows: Sequence[Sequence[Any]]) -> dict[str, int]:
    """Return the types of the columns that `COLUMNS` has found, by name."""
    # In a database whose encoding is SQL_ASCII, psycopg returns bytes.
    return {name.decode(errors="surrogateescape") if isinstance(name, bytes) else name: kind for name, kind in rows}


# Where the server was: "COPY orders, line 3, column total: "x"".  The words are translated, so only their order counts.
_CONTEXT = re.compile(r"^COPY [^\n]*?, \D*(\d+)(?:, \S+ ([^:\n]+))?(?:: .(.*).)?$", re.MULTILINE)
# The longest part of a value that a message shows, in characters.
_SHOWN = 60


def identifier(table: TableName) -> sql.Identifier:
    """Return what *table* is in a statement."""
    return table if isinstance(table, sql.Identifier) else sql.Identifier(*table.split("."))


class CopyOptions(TypedDict, total=False):
    """How a file is written, in the words of PostgreSQL's COPY: as CSV with a header, unless these say otherwise."""

    format: Literal["csv", "text", "binary"]
    header: bool
    delimiter: str | None
    null: str | None
    encoding: str | None


class Layout(NamedTuple):
    """`CopyOptions`, with those that were not given."""

    format: str = "csv"
    header: bool = True
    delimiter: str | None = None
    null: str | None = None
    encoding: str | None = None

    def composed(self) -> sql.Composable:
        """Return the options for a statement."""
        if self.format not in ("csv", "text", "binary"):
            raise ValueError(f"format: {self.format!r} is none of 'csv', 'text' and 'binary'")
        form: Any = self.format
        options: list[sql.Composable] = [sql.SQL("FORMAT {}").format(sql.SQL(form))]
        if self.header and self.format == "csv":
            options.append(sql.SQL("HEADER"))
        for name, value in (
            (sql.SQL("DELIMITER"), self.delimiter),
            (sql.SQL("NULL"), self.null),
            (sql.SQL("ENCODING"), self.encoding),
        ):
            if value is not None:
                options.append(sql.SQL("{} {}").format(name, sql.Literal(value)))
        return sql.SQL(", ").join(options)


def copy_in(table: TableName, columns: Sequence[str] | None, options: Layout) -> sql.Composed:
    """Return the COPY that stores into *table*."""
    names = sql.SQL("")
    if columns is not None:
        names = sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, columns)))  # type: ignore[assignment]
    how = sql.SQL("") if options is None else sql.SQL(" WITH ({})").format(options.composed())
    return sql.SQL("COPY {}{} FROM STDIN{}").format(identifier(table), names, how)


def copy_out(query: Statement, options: Layout) -> Any:
    """Return the COPY that returns the rows of *query*."""
    # The line breaks: it may end with a comment.
    if isinstance(query, Template):
        how = options.composed().as_string(None)
        begin: Any = Template("COPY (\n")  # which only Python 3.14 has
        return begin + query + Template(f"\n) TO STDOUT WITH ({how})")
    if isinstance(query, sql.Composable):
        what = sql.SQL("(\n{}\n)").format(query)
    elif isinstance(query, (str, bytes)):
        text: Any = query if isinstance(query, str) else query.decode()
        what = sql.SQL("(\n{}\n)").format(sql.SQL(text))
    else:
        raise TypeError(f"copy_to() takes text, bytes, psycopg.sql or a template string, not {type(query).__name__!r}")
    return sql.SQL("COPY {} TO STDOUT WITH ({})").format(what, options.composed())


Values: TypeAlias = Callable[[Any], Sequence[Any]]
"""Returns the values of a row, in the order of the columns."""


def values_of(first: object, given: Sequence[str] | None) -> tuple[Sequence[str] | None, Values | None]:
    """Return the names of the columns, None for those of the table, and what takes the values from rows like *first*.

    *given* are the names that the program gave.  Rows that are sequences are the values themselves, which is None.
    """
    if isinstance(first, Mapping):
        names = list(first) if given is None else given
        if not names:
            raise TypeError("a dictionary without keys names no columns to fill")
        return names, _of_mapping(names, exact=given is None)
    if is_dataclass(first):
        names = [field.name for field in fields(first)] if given is None else given
        return names, _tuple_of(attrgetter, names)
    if isinstance(first, Sequence) and not isinstance(first, (str, bytes, bytearray)):
        return given, None
    raise TypeError(f"a row is a tuple, a list, a dictionary or a dataclass, not {type(first).__name__!r}")


def _tuple_of(getter: Callable[..., Callable[[Any], Any]], names: Sequence[str]) -> Values:
    get = getter(*names)
    return get if len(names) > 1 else lambda row: (get(row),)


def _of_mapping(names: Sequence[str], *, exact: bool) -> Values:
    get = _tuple_of(itemgetter, names)
    if not exact:
        return get

    def values(row: Mapping[str, Any]) -> Sequence[Any]:
        if len(row) != len(names):  # what the first row does not have would be lost
            raise KeyError(", ".join(map(str, {*row} ^ {*names})))
        return get(row)

    return values


class _Rule(NamedTuple):
    """The values of which psycopg's binary dumper for a column's type makes what the server makes of their text."""

    kind: int
    """The type that psycopg dumps them as."""
    classes: frozenset[type]
    lowest: int | None = None
    highest: int | None = None
    aware: bool | None = None
    """Whether times must have a zone, or must not."""
    worth: bool = False
    """Whether binary takes so much less time than text that looking at the values pays."""


# Binary dumpers are chosen by the column, and believe what they are given: in C, they cut an integer off without a
# word, and take any object for a truth.  So the values are looked at before.
_RULES = {
    rule.kind: rule
    for rule in (
        _Rule(16, frozenset({bool})),
        *(_Rule(kind, frozenset({int}), -(2**bits), 2**bits - 1) for kind, bits in ((21, 15), (23, 31), (20, 63))),
        _Rule(701, frozenset({float}), worth=True),
        _Rule(1700, frozenset({int, Decimal}), worth=True),
        *(_Rule(kind, frozenset({str})) for kind in (25, 1043)),
        _Rule(17, frozenset({bytes}), worth=True),
        _Rule(2950, frozenset({UUID}), worth=True),
        _Rule(1082, frozenset({date}), worth=True),
        *(_Rule(kind, frozenset({datetime}), aware=kind == 1184, worth=True) for kind in (1114, 1184)),
    )
}


def _fit(rule: _Rule, column: Sequence[Any]) -> bool:
    """Tell whether all values of a *column* are as the *rule* says."""
    found = set(map(type, column))
    if type(None) in found:
        found.discard(type(None))
        column = [value for value in column if value is not None]
    if not found <= rule.classes:
        return False
    if rule.aware is not None and found:
        zones = set(map(_zone, column))
        return None not in zones if rule.aware else zones == {None}
    return rule.lowest is None or not found or (min(column) >= rule.lowest and max(column) <= (rule.highest or 0))


_zone = attrgetter("tzinfo")


class RowEncoder:
    """Encodes the rows of a program for COPY: in binary as long as that means the same as text, which is slower.

    *types* are those of the columns, by name; *adapters* are the connection's.
    """

    def __init__(
        self, names: Sequence[str], types: Mapping[str, int], values: Values | None, adapters: AdaptersMap
    ) -> None:
        self.names = names
        self._values = values
        rules = [_RULES.get(types.get(name, 0)) for name in names]
        self._rules = [rule for rule in rules if rule is not None and _is_usual(rule, adapters)]
        self._formatter: Any = None
        self._rows: Sequence[Sequence[Any]] = ()
        self._index = 0
        """The number of the first of the rows at hand."""
        self.binary = len(self._rules) == len(names) and any(rule.worth for rule in self._rules)
        self.start = 0
        """The number of the first row of the COPY that is going on."""
        self.failure: BadRowError | None = None
        """What it has raised."""

    def take(self, rows: Sequence[Any]) -> bool:
        """Take the *rows* that come next; tell whether a new COPY has to begin with them."""
        self._index += len(self._rows)
        self._rows = self._converted(rows)
        fit = self.binary and all(map(_fit, self._rules, zip(*self._rows, strict=True)))
        new = self._formatter is None or fit != self.binary
        if new:
            self.binary, self.start = fit, self._index
        return new

    def begin(self, copy: AnyCopy) -> None:
        """Encode for *copy* from now on."""
        self._formatter = copy.formatter
        if self.binary:
            copy.set_types([rule.kind for rule in self._rules])

    def encode(self) -> Iterator[Buffer]:
        """Yield what is to be sent for the rows that were taken; raise `BadRowError` where one cannot be encoded."""
        write, number = self._formatter.write_row, 0
        rows = iter(self._rows)
        while True:
            data = None
            try:
                for row in rows:
                    data = write(row)
                    number += 1
                    if data:
                        break
            except Exception as error:
                self.failure = self._bad_value(number, error)
                raise self.failure from error
            if not data:
                return
            yield data

    def _converted(self, rows: Sequence[Any]) -> Sequence[Sequence[Any]]:
        found = rows
        try:
            if self._values is not None:
                found = [*map(self._values, rows)]
            if {*map(len, found)} == {len(self.names)}:
                return found
        except (KeyError, AttributeError, TypeError):
            pass  # it is found below which row it was
        self.failure = self._bad_kind(rows)
        raise self.failure

    def _bad_kind(self, rows: Sequence[Any]) -> BadRowError:
        width = len(self.names)
        for number, row in enumerate(rows, self._index):
            try:
                count = len(row if self._values is None else self._values(row))
            except (KeyError, AttributeError, TypeError) as error:
                kind = type(row).__name__
                return bad_row(None, f"a {kind} that is not as the first row, or has other columns ({error})", number)
            if count != width:
                return bad_row(None, f"{count} values for {width} columns", number)
        return bad_row(None, "a row is not as the first one", self._index)

    def _bad_value(self, number: int, error: Exception) -> BadRowError:
        transformer = self._formatter.transformer
        for column, value in zip(self.names, self._rows[number], strict=True):
            try:
                if value is not None:
                    transformer.get_dumper(value, PyFormat.TEXT).dump(value)
            except Exception as own:
                return bad_row(own, str(own), self._index + number, column, value)
        return bad_row(error, str(error), self._index + number)


def _is_usual(rule: _Rule, adapters: AdaptersMap) -> bool:
    """Tell whether the program has registered no dumpers of its own for these values."""
    dumpers = [adapters.get_dumper(each, PyFormat.TEXT) for each in rule.classes]
    dumpers.append(adapters.get_dumper_by_oid(rule.kind, Format.BINARY))
    return all(dumper.__module__.split(".")[0] in ("psycopg", "psycopg_binary", "psycopg_c") for dumper in dumpers)


def said(error: psycopg.Error) -> str:
    """Return the server's message, with its details."""
    detail = error.diag.message_detail
    return f"{error.diag.message_primary or error}{f' ({detail})' if detail else ''}"


class Place(NamedTuple):
    """Where in what is copied an error was."""

    line: int
    """From 1; of rows and of records in binary, their number."""
    column: str | None
    value: str | None


def place_of(error: psycopg.Error) -> Place | None:
    """Return where the data is wrong for which the server raised *error* in a COPY; None where that is not why."""
    place = _CONTEXT.search(error.diag.context or "")
    if place is None or not str(error.sqlstate).startswith(("22", "23")):
        return None
    return Place(int(place[1]), error.diag.column_name or place[2], place[3] if place[2] else None)


def refused_row(
    error: psycopg.Error, rows: object, columns: Sequence[str], values: Values | None, start: int
) -> psycopg.Error:
    """Return the error that names the row for which the server raised *error*; *error* itself if that is unknown.

    *start* is the number of the first row of the COPY.
    """
    place = place_of(error)
    if place is None:
        return error
    index, column = start + place.line - 1, place.column
    value: object = place.value
    if column in columns and isinstance(rows, Sequence) and index < len(rows):
        value = (rows[index] if values is None else values(rows[index]))[columns.index(column)]
    return bad_row(error, said(error), index, column, value)


def bad_row(
    error: Exception | None, what: str, index: int, column: str | None = None, value: object = None
) -> BadRowError:
    """Return the error that names a row; it is one of the server's class, too, where the server has raised *error*."""
    place = f"rows[{index}]"
    if column is not None:
        shown = repr(value)
        place += f", column {column!r}, value {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '...'}"
    message = f"{place}: {what}; nothing was stored"
    if isinstance(error, psycopg.DatabaseError):
        kind = _class_for(type(error))  # type: ignore[arg-type]  # classes are hashable
        return kind(message, index, column, value, info=error.pgresult)
    return BadRowError(message, index, column, value)


@lru_cache
def _class_for(kind: type[psycopg.DatabaseError]) -> type[BadRowError]:
    names = {"__module__": BadRowError.__module__, "sqlstate": kind.sqlstate}
    return type(BadRowError.__name__, (BadRowError, kind), names)
