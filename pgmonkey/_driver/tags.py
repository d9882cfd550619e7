"""Tags: the comment that each statement of a lent connection ends with, so that the server's log tells who sent it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

from psycopg.abc import Params

from .compat import FAST_PATH, PostgresQuery
from .psycopg_types import AnyCursor
from .sql import Statement


def tagged(text: bytes, tag: bytes) -> bytes:
    """Return the statement *text* with the comment *tag* behind it, in a line of its own where it would be lost."""
    # The tag's quotes come in pairs: a string that does not end does not end in it either.
    return text + (b"\n" if b"--" in text.rpartition(b"\n")[2] else b" ") + tag


@lru_cache
def tagged_cursor(cursor_class: type[AnyCursor], make_fast: Callable[[Any], Any]) -> type[AnyCursor]:
    """Return the subclass of what *make_fast* makes of a class of cursors that ends each statement with the tag.

    The tag is its connection's.
    """
    fast: Any = make_fast(cursor_class)
    if not FAST_PATH:
        return cast("type[AnyCursor]", fast)

    def _convert_query(self: AnyCursor, query: Statement, params: Params | None = None) -> PostgresQuery:
        converted: PostgresQuery = fast._convert_query(self, query, params)
        converted.query = tagged(converted.query, self._conn.__dict__["tag"])
        return converted

    over = vars(fast).get("over", fast)
    names = {"__module__": fast.__module__, "__slots__": (), "_convert_query": _convert_query, "over": over}
    # No slots of its own, so that psycopg's cursors can become of this class.
    return type(fast.__name__, (fast,), names)
