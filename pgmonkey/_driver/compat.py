"""The one door to psycopg's insides: every private name that pgmonkey uses, and what happens where one is missing.

psycopg may rename what is private in any release.  So each name is looked for when pgmonkey is imported.  Names that
make things faster are optional: without one of them, the fast path is off and psycopg does the work.  Names that are
needed to lend a connection are required: without one of them, a pool refuses to connect.  Either way one line says so.
Only modules of `pgmonkey._driver` may use those that begin with an underscore; docs/design.md says how a new psycopg is
taken in.
"""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor, Transaction, pq
from psycopg.adapt import Transformer
from psycopg.types.json import JsonDumper, JsonLoader


class Missing:
    """Takes the place of what cannot be imported, so that this is one error with a name in it."""


if TYPE_CHECKING:
    from psycopg._preparing import Prepare, PrepareManager
    from psycopg._queries import PostgresClientQuery, PostgresQuery
else:
    try:
        from psycopg._preparing import Prepare, PrepareManager
    except ImportError:
        Prepare = PrepareManager = Missing
    try:
        from psycopg._queries import PostgresClientQuery, PostgresQuery
    except ImportError:
        PostgresClientQuery = PostgresQuery = Missing

__all__ = ["PostgresClientQuery", "PostgresQuery", "Prepare", "PrepareManager"]

logger = logging.getLogger("pgmonkey")

PRIVATE: dict[str, tuple[str, ...]] = {
    # Required: lending copies a connection's state and changes these.
    "Connection": (
        *("_adapters", "_autocommit", "_closed", "_notice_handlers", "_notifies_backlog", "_notify_handlers"),
        *("_connect_gen", "_exec_command", "_get_tx_start_command", "_notice_handler", "_notify_handler"),
        *("_pool", "_prepared", "_start_query", "lock", "wait"),
    ),
    # Required: this is where what a borrower executed is noticed, and cleaned up after.
    "PrepareManager": (
        *("PrepareManager", "_counts", "_names", "_to_flush", "clear", "get", "maintain_gen", "maybe_add_to_cache"),
        *("prepare_threshold", "prepared_max", "validate"),
    ),
    "Prepare": ("NO", "SHOULD", "YES"),
    # Optional, as all that follows: what is open on the connection, for a COMMIT by the fast path.
    "Connection (open transaction)": ("_num_transactions", "_pipeline", "_tpc"),
    "PostgresQuery": (
        *("PostgresQuery", "PostgresClientQuery", "_order", "_tx", "_want_formats"),
        *("convert", "dump", "formats", "params", "query", "types"),
    ),
    "AdaptersMap": ("_dumpers", "_loaders"),
    "Transformer": ("dump_sequence", "formats", "load_row", "load_rows", "set_pgresult", "types"),
    "Cursor": (
        *("_adapters", "_closed", "_conn", "_convert_query", "_encoding", "_last_query", "_query", "_query_cls"),
        *("_reset", "_set_results", "_tx"),
    ),
    "JsonLoader": ("_loads",),
    "JsonDumper": ("_dumps",),
    # With this, a pipeline is sent without the GIL.
    "PGconn": ("pgconn_ptr",),
    # By these names of its generators, psycopg's own statements are told from a borrower's.
    "Connection (generators)": (
        *("_commit_gen", "_rollback_gen", "_set_autocommit_gen"),
        *("_set_deferrable_gen", "_set_isolation_level_gen", "_set_read_only_gen"),
    ),
    "Transaction (generators)": ("_enter_gen", "_exit_gen"),
}
"""The names of psycopg that are not promised and that `pgmonkey._driver` uses, by what has them."""

PRIVATE_NAMES = tuple(sorted({"_preparing", "_queries"}.union(*PRIVATE.values())))
"""The same in one list, with the modules that are imported."""

GENERATORS = (*PRIVATE["Connection (generators)"], *PRIVATE["Transaction (generators)"])
"""The generators that begin and end transactions and savepoints and set their mode, by name."""

_REQUIRED = ("Connection", "PrepareManager", "Prepare")
_SLOWER_WITHOUT = ("PGconn", "Connection (generators)", "Transaction (generators)")


def _names_of_connections() -> set[str]:
    """Return the attributes of connections of both colours: of real objects, over a libpq connection that is closed."""
    closed: Any = SimpleNamespace(status=pq.ConnStatus.BAD)
    names = {*dir(Connection(closed))} & {*dir(AsyncConnection(closed))}
    # psycopg_pool sets `_pool`, and the end of ``with conn`` looks for it; psycopg itself never sets it.
    codes = [getattr(leave, "__code__", None) for leave in (Connection.__exit__, AsyncConnection.__aexit__)]
    if all(code is None or "_pool" in (*code.co_consts, *code.co_names) for code in codes):
        names.add("_pool")
    return names


def _find_missing() -> dict[str, list[str]]:
    """Return the names of `PRIVATE` that this psycopg does not have."""
    connection = _names_of_connections()
    # psycopg 3.2.2 and 3.2.3 keep no notifications for later, so the next borrower cannot get one of the last.
    if psycopg.__version__.startswith(("3.2.2", "3.2.3")):
        connection.add("_notifies_backlog")
    known: dict[str, set[str]] = {
        "Connection": connection,
        "PrepareManager": {PrepareManager.__name__, *dir(PrepareManager())},
        "Prepare": {*dir(Prepare)},
        "Connection (open transaction)": connection,
        "PostgresQuery": {PostgresQuery.__name__, PostgresClientQuery.__name__, *dir(PostgresQuery)},
        "AdaptersMap": {*dir(psycopg.adapters)},
        "Transformer": {*dir(Transformer)},
        "Cursor": {*dir(Cursor)} & {*dir(AsyncCursor)},
        "JsonLoader": {*dir(JsonLoader)},
        "JsonDumper": {*dir(JsonDumper)},
        "PGconn": {*dir(pq.PGconn)},
        "Connection (generators)": connection,
        "Transaction (generators)": {*dir(Transaction)},
    }
    missing = {owner: [name for name in names if name not in known[owner]] for owner, names in PRIVATE.items()}
    # One word for the whole, not a list of all that it has.
    if issubclass(PrepareManager, Missing):
        missing["PrepareManager"], missing["Prepare"] = ["PrepareManager or Prepare (psycopg._preparing)"], []
    if issubclass(PostgresQuery, Missing):
        missing["PostgresQuery"] = ["PostgresQuery or PostgresClientQuery (psycopg._queries)"]
    return {owner: names for owner, names in missing.items() if names}


MISSING = _find_missing()
"""The names that the installed psycopg does not have, by what should have them."""

FAST_PATH = set(MISSING) <= set(_SLOWER_WITHOUT)
"""Whether prepared statements may be executed by the fast path."""
PIPELINES = psycopg.Pipeline.is_supported()
"""Whether libpq can send several statements in one message: from 14 on."""


def _explain(owners: list[str]) -> str:
    try:
        ours = version("pgmonkey")
    except PackageNotFoundError:
        ours = "this release"
    found = [(owner.partition(" ")[0], name) for owner in owners for name in MISSING[owner]]
    names = ", ".join(name if owner in name else f"{owner}.{name}" for owner, name in found)
    return f"psycopg {psycopg.__version__} is not what pgmonkey {ours} knows: it has no {names}"


def _lending_error() -> str | None:
    owners = [owner for owner in _REQUIRED if owner in MISSING]
    if not owners:
        return None
    return f"{_explain(owners)}; install a release of psycopg that it knows, or a newer pgmonkey"


LENDING_ERROR = _lending_error()
"""Why connections cannot be lent with the installed psycopg; None when they can."""

if MISSING and LENDING_ERROR is None:
    _effect = "so some statements take longer" if FAST_PATH else "so psycopg itself executes every statement"
    logger.warning("%s, %s", _explain(list(MISSING)), _effect)
