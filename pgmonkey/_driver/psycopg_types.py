"""psycopg's types where neither the colour nor the kind of rows matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from psycopg import AsyncCursor, BaseConnection, Cursor

AnyConnection: TypeAlias = BaseConnection[Any]
AnyCursor: TypeAlias = "Cursor[Any] | AsyncCursor[Any]"
RowFactory: TypeAlias = Callable[[Any], Callable[..., Any]]
"""A row factory of either colour; see `psycopg.rows`."""
