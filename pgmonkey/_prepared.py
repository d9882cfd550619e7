"""Prepared statements: psycopg's own, which the borrowers of a connection share, and those that one of them made."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import BaseConnection
from psycopg._preparing import Prepare, PrepareManager

DEALLOCATE = "DEALLOCATE ALL"


def is_outdated(error: psycopg.Error) -> bool:
    """Tell whether *error* says that a prepared statement does not fit the tables any more, or is gone.

    The server says so before it does anything; see RevalidateCachedQuery in plancache.c.
    """
    return error.sqlstate == "26000" or error.diag.source_function == "RevalidateCachedQuery"


class Prepared(PrepareManager):
    """psycopg's bookkeeping, which also notices SQL's own ``PREPARE``."""

    def __init__(self) -> None:
        super().__init__()
        self._foreign = False
        self._stale = False

    @classmethod
    def watch(cls, connection: BaseConnection[Any]) -> Prepared:
        """Put the bookkeeping in the place of *connection*'s own, which has nothing in it yet."""
        prepared = cls()
        prepared.prepare_threshold = connection.prepare_threshold
        prepared.prepared_max = connection._prepared.prepared_max
        connection._prepared = prepared
        return prepared

    def get(self, query: Any, prepare: bool | None = None) -> tuple[Prepare, bytes]:
        """Return what psycopg is to do about *query*."""
        if b"PREPARE" in query.query.upper():
            self._foreign = True
        if self._stale:
            self._stale = False
            self.clear()
            return Prepare.NO, b""
        return super().get(query, prepare)

    @property
    def any(self) -> bool:
        """Whether psycopg has prepared something."""
        return bool(self._names)

    def name_of(self, key: Any) -> bytes | None:
        """Return the name of the statement prepared for *key*, its text and the types of its parameters."""
        return None if self._stale else self._names.get(key)

    def use(self, key: Any, name: bytes) -> bool:
        """Tell whether *name* is prepared for *key*, and count it as used."""
        if self._stale or self._names.get(key) is not name:
            return False
        self._names.move_to_end(key)
        return True

    def mark_stale(self) -> None:
        """Remember that the tables have changed under what was prepared; safe to call from any thread."""
        self._stale = True

    @property
    def to_deallocate(self) -> bool:
        """Whether all is to be deallocated when the connection is cleaned.

        So it is when psycopg has nothing to lose by it: its client-side cursors do not tell what they execute.
        """
        return self._foreign or not self._names

    def forget(self) -> None:
        """Start anew: everything was deallocated."""
        self._foreign = False
        self._counts.clear()
        self._names.clear()
        self._to_flush.clear()
