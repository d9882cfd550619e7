"""What the verbs are given, and what it may leave in the session."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Union

from psycopg.sql import SQL, Composable, Composed

if TYPE_CHECKING:
    from typing_extensions import LiteralString

# Text that comes from the program: as psycopg, let type checkers refuse what comes from elsewhere.
Statement = Union["LiteralString", bytes, SQL, Composed]
Params = Sequence[Any] | Mapping[str, Any] | None

_PLAIN = re.compile(r"[\s(]*(SELECT|INSERT|UPDATE|DELETE|MERGE|VALUES|TABLE|WITH|SHOW|EXPLAIN)\b", re.IGNORECASE)
_LASTING = re.compile(r"set_config|advisory|setseed|\btemp|;\s*\S", re.IGNORECASE)


def leaves_state(query: Statement) -> bool:
    """Tell whether *query* might leave something behind in the session, so that it must be cleaned after it.

    Errs on the side of cleaning: only plain queries that name none of the functions that last are let through.
    """
    if isinstance(query, Composable):
        return _leaves_state(query.as_string(None))
    return _leaves_state(query.decode(errors="replace") if isinstance(query, bytes) else query)


@lru_cache(maxsize=1024)
def _leaves_state(text: str) -> bool:
    return not _PLAIN.match(text) or bool(_LASTING.search(text))
