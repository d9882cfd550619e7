"""What the fast path needs of psycopg's cursors: begin an execution on one, and show the results of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from psycopg.abc import Params
from psycopg.adapt import Transformer
from psycopg.pq.abc import PGresult

from .compat import FAST_PATH, PostgresClientQuery, PostgresQuery, Prepare
from .plan import Plan, Plans, is_plain
from .psycopg_types import AnyCursor
from .sql import Statement

K = TypeVar("K", bound=AnyCursor)

# Of one statement in the protocol.  libpq refuses more when they are to be sent, which is too late behind a BEGIN.
_MOST_PARAMETERS = 65535


def fast_class(
    cursor_class: type[K], usual: type[AnyCursor], execute: object, execute_merged: object, others: Mapping[str, object]
) -> type[K]:
    """Return the subclass of *cursor_class* that takes the fast path; the class itself where there is none for it.

    *usual* is psycopg's class, *execute* and *execute_merged* are the fast paths of cursors that send parameters to the
    server and of those that merge them into the text.  *others* take the place of psycopg's methods of these names.
    """
    if not FAST_PATH or cursor_class.execute is not usual.execute:
        return cursor_class
    # Raw cursors are among the former: what they have executed gets no plan.
    way = execute_merged if cursor_class._query_cls is PostgresClientQuery else execute
    unchanged = {name: other for name, other in others.items() if getattr(cursor_class, name) is getattr(usual, name)}
    # No slots of its own, so that psycopg's cursors can become of this class.
    names = {**unchanged, "__module__": cursor_class.__module__, "__slots__": (), "execute": way}
    return type(cursor_class.__name__, (cursor_class,), names)


def plan_for(cursor: AnyCursor, plans: Plans, key: object, params: Params | None) -> Plan | None:
    """Return the plan by which *cursor* executes the statement *key*; None when psycopg is to do it."""
    if cursor._closed or cursor._query_cls is not PostgresQuery or not is_plain(cursor._conn):
        return None
    try:
        return plans.find(key, params, cursor)
    except Exception:
        return None  # psycopg raises it again, when it has begun the transaction


def convert(cursor: AnyCursor, statement: Statement, params: Params | None) -> PostgresQuery | None:
    """Begin to execute on *cursor* and return its query with *params*; None when psycopg is to do it."""
    if cursor._closed or not is_plain(cursor._conn):
        return None
    cursor._reset()
    cursor._tx = Transformer(cursor)
    try:
        cursor._query = query = cursor._convert_query(statement, params)
    except Exception:
        return None  # psycopg raises it again, when it has begun the transaction
    return query if len(query.params or ()) <= _MOST_PARAMETERS else None


def prepare(cursor: AnyCursor, query: PostgresQuery) -> tuple[Prepare, bytes]:
    """Tell whether *query*, which *cursor* is about to execute, is or should be prepared, and by which name."""
    found = cursor._conn._prepared.get(query)
    if found[0] is not Prepare.NO:
        cursor._query = None  # as psycopg, which keeps it only where nothing is prepared
    return found


def set_result(cursor: AnyCursor, statement: Statement, results: list[PGresult], *, anew: bool) -> None:
    """Show *results* of *statement* on *cursor*, as psycopg does after an execution; *anew* resets the cursor first."""
    if anew:
        cursor._reset()
        cursor._tx = Transformer(cursor)
    cursor._last_query = statement
    cursor._set_results(results)
