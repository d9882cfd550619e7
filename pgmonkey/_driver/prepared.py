"""What a connection has executed: its prepared statements, and whether a borrower may have changed the session."""

from __future__ import annotations

import re

import psycopg

from .compat import GENERATORS, PostgresQuery, Prepare, PrepareManager
from .psycopg_types import AnyConnection
from .sql import is_harmless

Key = tuple[bytes, tuple[int, ...]]
"""Text and parameter types of a statement, by which psycopg knows it."""

_CLEAN = (
    b"RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); "
    b"CLOSE ALL; DISCARD TEMP; DISCARD SEQUENCES"
)
"""All that DISCARD ALL does, which cannot follow a COMMIT in one message; psycopg's prepared statements stay."""
_DEALLOCATE = b"DEALLOCATE ALL"
# The generators that begin and end transactions and savepoints, and set their mode and their session values.
_PSYCOPGS_OWN = frozenset((*GENERATORS, "_start_query", "setting"))


# The first line of what the server says about a parameter that it could not read, in whatever language.
_PARAMETER = re.compile(r"[^\"\n]*\$\d+(?: = '|\Z)")


def is_refused(error: psycopg.Error) -> bool:
    """Tell whether *error* came before anything of a prepared statement was executed.

    The statement may be outdated then: it is gone (SQLSTATE 26000), returns other columns (RevalidateCachedQuery in
    plancache.c), was analysed anew and no longer fits the tables (only the parser gives a position in the statement),
    or its parameters have types that are gone or that the values do not fit (bind_param_error_callback in postgres.c).
    """
    diag = error.diag
    context = diag.context
    if context is not None:  # of a parameter, or else of a function, which may have done something
        return _PARAMETER.match(context) is not None
    return (
        error.sqlstate == "26000"
        or diag.source_function == "RevalidateCachedQuery"
        or diag.statement_position is not None
    )


class Prepared(PrepareManager):
    """psycopg's bookkeeping of prepared statements, shared by all borrowers of a connection.

    It sees each query, so it also notes whether one may have left something in the session.
    """

    def __init__(self) -> None:
        super().__init__()
        self._foreign = False
        """Whether a borrower prepared statements by hand, which psycopg does not know of."""
        self.stale = False
        """Whether tables have changed: the next query deallocates everything first."""
        self.reused = False
        """Whether the latest execution was of a statement that was prepared before, and so may be outdated."""
        self.worked = False
        """Whether the borrower has executed something; of use only while a transaction is open."""
        self.unclean = False
        """Whether something may be left in the session."""
        self._unclean_before = False
        """`unclean` as it was before the running statement; restored when that is harmless."""

    @classmethod
    def install(cls, connection: AnyConnection) -> Prepared:
        """Replace *connection*'s own bookkeeping, which is still empty."""
        prepared = cls()
        prepared.prepare_threshold = connection.prepare_threshold
        prepared.prepared_max = connection._prepared.prepared_max
        connection._prepared = prepared
        return prepared

    # -- what psycopg calls -----------------------------------------------------------------------------------------

    def get(self, query: PostgresQuery, prepare: bool | None = None) -> tuple[Prepare, bytes]:
        """Tell psycopg whether to prepare *query*, to use what is prepared, or neither."""
        if b"PREPARE" in query.query.upper():
            self._foreign = True
        self.reused = False
        if self.stale:
            self.stale = False
            self.clear()
            return Prepare.NO, b""
        found = super().get(query, prepare)
        self.reused = found[0] is Prepare.YES
        return found

    def maybe_add_to_cache(self, query: PostgresQuery, prep: Prepare, name: bytes) -> Key | None:
        """Note *query*, which is being executed: cursors of every kind call this."""
        self.unclean = self._unclean_before
        self.note(query)
        return super().maybe_add_to_cache(query, prep, name)

    # -- what may be left in the session ----------------------------------------------------------------------------

    def note(self, query: PostgresQuery) -> None:
        """Note *query*, which is being executed."""
        template: bytes | None = getattr(query, "template", None)  # of client-side cursors: without the parameters
        if not is_harmless(template or query.query):
            self.unclean = self._unclean_before = True

    def expect(self, generator: str) -> None:
        """Note that psycopg's *generator*, given by its name, executes something.

        Unless `maybe_add_to_cache` follows and tells what, it may leave anything behind.
        """
        self.worked = True
        if generator not in _PSYCOPGS_OWN:
            self._unclean_before = self.unclean
            self.unclean = True

    def cleaned(self) -> None:
        """Note that nothing is left in the session."""
        self.unclean = self._unclean_before = False

    def ending(self, end: bytes | None, *, clean: bool, pgbouncer: bool) -> bytes:
        """Return the message that does *end*, a COMMIT or ROLLBACK, and cleans the session; empty when neither.

        Behind PgBouncer, only what is in one message with the end of a transaction reaches the session it ran in, and
        PgBouncer itself knows what is prepared there.
        """
        statements = [] if end is None else [end]
        if clean and (statements or not pgbouncer):
            statements.append(_CLEAN)
        # A statement that was prepared in that transaction may be gone, so psycopg, too, forgets all.
        rolled_back = end == b"ROLLBACK"
        if pgbouncer:
            if rolled_back:
                self.clear()
        elif rolled_back or (clean and self._to_deallocate):
            statements.append(_DEALLOCATE)
            self._forget()
        return b"; ".join(statements)

    @property
    def _to_deallocate(self) -> bool:
        """Whether cleaning deallocates everything: a borrower prepared by hand, or psycopg has nothing to lose.

        Client cursors do not tell all that they execute, so the latter may hide a PREPARE.
        """
        return self._foreign or not self._names

    def _forget(self) -> None:
        self._foreign = False
        self._counts.clear()
        self._names.clear()
        self._to_flush.clear()

    # -- what is prepared -------------------------------------------------------------------------------------------

    def name_of(self, key: Key) -> bytes | None:
        """Return the name of the statement prepared for *key*."""
        return None if self.stale else self._names.get(key)
