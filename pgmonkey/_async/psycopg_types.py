"""psycopg's types where the kind of rows does not matter."""

from __future__ import annotations

from typing import Any, TypeAlias

from psycopg import AsyncConnection, AsyncCursor

AsyncAnyConnection: TypeAlias = AsyncConnection[Any]
AsyncAnyCursor: TypeAlias = AsyncCursor[Any]
