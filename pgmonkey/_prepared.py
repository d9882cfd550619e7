"""What a connection has executed: its prepared statements, and whether anything may be left of it in the session."""

from __future__ import annotations

from typing import Any, Literal

import psycopg
from psycopg import BaseConnection
from psycopg._preparing import Prepare, PrepareManager

from ._statement import is_harmless

DEALLOCATE = "DEALLOCATE ALL"
# What psycopg executes on its own account, by the names of its generators: transactions and savepoints.
_ENDS = ("_commit_gen", "_rollback_gen", "_enter_gen", "_exit_gen", "_start_query")
_MODES = ("_set_autocommit_gen", "_set_isolation_level_gen", "_set_read_only_gen", "_set_deferrable_gen")
_PSYCOPGS_OWN = frozenset(_ENDS + _MODES)


def is_outdated(error: psycopg.Error) -> bool:
    """Tell whether *error* says that a prepared statement does not fit the tables any more, or is gone.

    The server says so before it does anything; see RevalidateCachedQuery in plancache.c.
    """
    return error.sqlstate == "26000" or error.diag.source_function == "RevalidateCachedQuery"


class Prepared(PrepareManager):
    """psycopg's bookkeeping, shared by all borrowers of a connection, which also notices what they may leave behind."""

    def __init__(self) -> None:
        super().__init__()
        self._foreign = False
        self._stale = False
        self._unclean = False
        self._unseen = False
        self._generation = 0
        self.reading: tuple[bytes, bytes] | Literal[False] | None = None
        """The names of the statements that begin and end a transaction for a single read.

        False where a read is not to have a transaction of its own; None as long as that is not known.
        """

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

    def maybe_add_to_cache(self, query: Any, prep: Prepare, name: bytes) -> Any:
        """Take note of *query*, which is being executed: cursors of every kind tell."""
        self._unseen = False
        self.note(query)
        return super().maybe_add_to_cache(query, prep, name)

    def note(self, query: Any) -> None:
        """Take note of *query*, which is being executed."""
        if not is_harmless(getattr(query, "template", None) or query.query):
            self._unclean = True

    def expect(self, what: str) -> None:
        """Take note that something is being executed, by the generator *what* of psycopg.

        Unless that tells what by `maybe_add_to_cache`, nobody knows what it leaves behind.
        """
        if what not in _PSYCOPGS_OWN:
            self._unclean = self._unclean or self._unseen
            self._unseen = True

    @property
    def unclean(self) -> bool:
        """Whether anything may be left in the session."""
        return self._unclean or self._unseen

    def cleaned(self) -> None:
        """Take note that nothing is left in the session."""
        self._unclean = self._unseen = False

    @property
    def any(self) -> bool:
        """Whether psycopg has prepared something."""
        return bool(self._names)

    def name_of(self, key: Any) -> bytes | None:
        """Return the name of the statement prepared for *key*, its text and the types of its parameters."""
        return None if self._stale else self._names.get(key)

    def use(self, key: Any, name: bytes) -> bool:
        """Tell whether *name* is prepared for *key*, and count it as used."""
        if self._stale or self._names.get(key) is not name or self.prepare_threshold is None:
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

    def clear(self) -> bool:
        """Do as psycopg does: everything is to be deallocated."""
        self.reading = None
        return super().clear()

    def names_for_reading(self) -> tuple[bytes, bytes]:
        """Return two names under which nothing is prepared."""
        self._generation += 1
        return b"pgmonkey_begin_%d" % self._generation, b"pgmonkey_end_%d" % self._generation

    def forget(self) -> None:
        """Start anew: everything was deallocated."""
        self._foreign = False
        self.reading = None
        self._counts.clear()
        self._names.clear()
        self._to_flush.clear()
