"""What a connection has executed: its prepared statements, and whether a borrower may have changed the session."""

from __future__ import annotations

import re

import psycopg
from psycopg.abc import PQGen
from psycopg.pq.abc import PGresult

from .compat import GENERATORS, PostgresQuery, Prepare, PrepareManager
from .failure import Failure
from .psycopg_types import AnyConnection
from .sql import Effect, effect_of

Key = tuple[bytes, tuple[int, ...]]
"""Text and parameter types of a statement, by which psycopg knows it."""

_CLEAN = (
    b"RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); "
    b"CLOSE ALL; DISCARD TEMP; DISCARD SEQUENCES"
)
"""All that DISCARD ALL does, which cannot follow a COMMIT in one message; psycopg's prepared statements stay."""
_DEALLOCATE = b"DEALLOCATE ALL"
_OFTEN = 1_000_000
"""More executions than any threshold asks for."""
_BY_HAND = re.compile(rb"PREPARE|DEALLOCATE|DISCARD", re.IGNORECASE).search
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
        """Whether statements were prepared or deallocated by hand, which psycopg does not know of."""
        self.stale = False
        """Whether tables have changed: the next query deallocates everything first."""
        self.reused = False
        """Whether the latest execution was of a statement that was prepared before, and so may be outdated."""
        self.first = False
        """Whether no transaction was open before the latest execution: nothing else is lost when it is rolled back."""
        self.unclean = Effect.NONE
        """What may be left in the session."""
        self._unclean_before = Effect.NONE
        """`unclean` as it was before the running statement, which has not told yet what it is."""
        self._least = Effect.NONE
        """What every borrower is taken to leave, whatever it executes."""
        self._configured = False
        """Whether `configure` made something in the session, which cleaning removes."""
        self.bare = False
        """Whether that was removed, and is to be made again before the connection is lent."""
        self._usual = self.prepare_threshold, self.prepared_max
        self.deallocates = True
        """Whether DEALLOCATE reaches the session: PgBouncer does not follow it."""
        self.failure: Failure | None = None
        """What failed first in the transaction that is open."""
        self.statements = 0
        """How many statements the borrower has executed by cursors and query methods: not COPY, nor streams."""

    @classmethod
    def install(cls, connection: AnyConnection) -> Prepared:
        """Replace *connection*'s own bookkeeping, which is still empty."""
        prepared = cls()
        prepared.prepare_threshold = connection.prepare_threshold
        prepared.prepared_max = connection._prepared.prepared_max
        prepared._usual = prepared.prepare_threshold, prepared.prepared_max
        connection._prepared = prepared
        return prepared

    def settle(self, *, always: bool, pgbouncer: bool) -> None:
        """Note that the connection is as all borrowers are to find it.

        With *always*, each borrower is taken to leave something.  Behind PgBouncer, sessions are not the pool's to
        configure.
        """
        self._usual = self.prepare_threshold, self.prepared_max
        self.deallocates = not pgbouncer
        self._configured = not pgbouncer and (self._configured or bool(self.unclean))
        self._least = Effect.LASTING if always else Effect.NONE
        self.bare = False
        self.unclean = self._unclean_before = self._least

    def prepare_nothing(self) -> None:
        """Have no borrower prepare anything, unless it says so itself."""
        self.prepare_threshold = None
        self._usual = None, self.prepared_max

    def drop_settings(self) -> None:
        """Drop what the last borrower set on its connection: psycopg keeps these with the prepared statements."""
        self.prepare_threshold, self.prepared_max = self._usual

    # -- what psycopg calls -----------------------------------------------------------------------------------------

    def get(self, query: PostgresQuery, prepare: bool | None = None) -> tuple[Prepare, bytes]:
        """Tell psycopg whether to prepare *query*, to use what is prepared, or neither."""
        if _BY_HAND(query.query):
            self._foreign = True
        self.reused = False
        if self.stale:
            self.stale, failure = False, self.failure
            self.clear()
            self.failure = failure  # nothing was rolled back
            return Prepare.NO, b""
        found = super().get(query, prepare)
        self.reused = found[0] is Prepare.YES
        return found

    def maybe_add_to_cache(self, query: PostgresQuery, prep: Prepare, name: bytes) -> Key | None:
        """Note *query*, which is being executed: cursors of every kind call this."""
        self.executing(query)
        return super().maybe_add_to_cache(query, prep, name)

    def executing(self, query: PostgresQuery, times: int = 1) -> None:
        """Note *query*, which is being executed so many *times*."""
        self.unclean = self._unclean_before
        self.statements += times
        self.note(query)

    def leave_foreign(self) -> None:
        """Note that statements were left in the session which psycopg does not know of."""
        self._foreign = True
        self.note_effect(Effect.LASTING)

    def executed(self, query: PostgresQuery, prep: Prepare, name: bytes, results: list[PGresult]) -> None:
        """Note *results* of *query*, as psycopg does when it has executed one."""
        key = super().maybe_add_to_cache(query, prep, name)
        if key is not None:
            self.validate(key, prep, name, results)

    def maintaining(self, connection: AnyConnection) -> PQGen[None] | None:
        """Return the generator that deallocates what psycopg does not keep prepared; None when there is nothing."""
        return self.maintain_gen(connection) if self._to_flush else None

    def clear(self) -> bool:
        """Forget what was prepared, and what failed, in a transaction or savepoint that is rolled back."""
        self.failure = None
        # psycopg deallocates everything then, also what `configure` has prepared.
        if self._configured and self._foreign:
            self.note_effect(Effect.LASTING)
        often = self._often()
        cleared = super().clear()
        self._counts.update(often)
        return cleared

    # -- what may be left in the session ----------------------------------------------------------------------------

    def note(self, query: PostgresQuery) -> None:
        """Note *query*, which is being executed."""
        template: bytes | None = getattr(query, "template", None)  # of client-side cursors: without the parameters
        self.note_effect(effect_of(query.query, template))

    def note_effect(self, effect: Effect) -> None:
        """Note *effect*, of a statement that is being executed."""
        if effect:
            self._unclean_before = max(self._unclean_before, effect)
            self.unclean = max(self.unclean, effect)

    def expect(self, generator: str, *, first: bool) -> None:
        """Note that psycopg's *generator*, given by its name, executes something; *first* as the attribute.

        Unless `maybe_add_to_cache` follows and tells what, it may leave anything behind.
        """
        if generator not in _PSYCOPGS_OWN:
            self.first = first
            self._unclean_before = self.unclean
            self.unclean = Effect.LASTING

    def cleaned(self) -> None:
        """Note that nothing is left in the session."""
        self.unclean = self._unclean_before = self._least
        self.bare = self._configured
        self._foreign = False

    def needs_cleaning(self, end: bytes | None) -> bool:
        """Tell whether the session is to be cleaned with *end*, a COMMIT or ROLLBACK, or alone."""
        # With a ROLLBACK everything is deallocated, also what `configure` has prepared.
        return bool(self.unclean) or (self._configured and self._foreign and end == b"ROLLBACK")

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
        self.failure = None
        self._counts.update(self._often())
        self._names.clear()
        self._to_flush.clear()

    def _often(self) -> dict[Key, int]:
        """Return counts with which the next execution prepares again what is prepared now."""
        return dict.fromkeys(self._names, _OFTEN)

    # -- what is prepared -------------------------------------------------------------------------------------------

    def name_of(self, key: Key) -> bytes | None:
        """Return the name of the statement prepared for *key*."""
        return None if self.stale else self._names.get(key)
