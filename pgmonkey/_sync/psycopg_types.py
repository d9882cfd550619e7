# Generated from pgmonkey/_async/psycopg_types.py by tools/twins.py: change that file, then run the tool.

"""psycopg's types where the kind of rows does not matter."""

from __future__ import annotations

from typing import Any, TypeAlias

from psycopg import Connection, Cursor

AnyConnection: TypeAlias = Connection[Any]
AnyCursor: TypeAlias = Cursor[Any]
