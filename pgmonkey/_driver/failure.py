"""What a failed transaction says at its end: which statement failed first, where in the program, and why."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from copy import copy
from typing import TypeAlias

import psycopg
from psycopg import sql
from psycopg.errors import InFailedSqlTransaction

from .templates import Template, composed

Refusal: TypeAlias = Callable[[], psycopg.Error]
"""Makes the error that says why nothing more is done; one that is kept would keep the frames that it was raised in."""

_VALUE = sql.Literal(None)
# In characters.
_LONGEST = 120
# What the server also raises in a transaction that has failed already.  None: the client, which does not ask it.
_LATER = (InFailedSqlTransaction.sqlstate, psycopg.errors.SyntaxError.sqlstate, "26000", None)


class Failure:
    """The first error of a transaction, the text of its statement and its place in the program."""

    def __init__(self, error: psycopg.Error, query: object, place: str) -> None:
        # Not the error itself: its traceback has frames, and these what the borrower holds, for as long as it is kept.
        # psycopg makes an error that is copied fit to be pickled: without this, it would lose its result.
        state = error.__dict__.copy()
        self._copy = copy(error)
        error.__dict__.update(state)
        self._original = weakref.ref(error)
        self._text = f"{text_of(query)}{place} failed and its error was ignored: {_reason(error)}"

    def __str__(self) -> str:
        return self._text

    @property
    def error(self) -> psycopg.Error:
        """The error, or a copy of it where nobody has kept it."""
        original = self._original()
        return self._copy if original is None else original

    @staticmethod
    def may_precede(error: psycopg.Error) -> bool:
        """Tell whether *error* may come from a transaction that has failed already."""
        return error.sqlstate in _LATER


def text_of(query: object) -> str:
    """Return the text of *query* in one line, without values; "a statement" where there is none."""
    line = " ".join(written(query).split())
    return (line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "...") or "a statement"


def written(query: object) -> str:
    """Return the text of *query* as the program has written it, with ... in the place of values inside it."""
    if isinstance(query, str):
        return query
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    if isinstance(query, sql.Composed):
        return "".join(map(written, query))
    if isinstance(query, sql.Composable):
        return "..." if isinstance(query, sql.Literal) else query.as_string(None)
    return written(composed(query, _VALUE)) if isinstance(query, Template) else ""


def _reason(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error).partition("\n")[0] or type(error).__name__
