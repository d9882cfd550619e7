"""The one door to psycopg's insides: every private name that pgmonkey uses, and what happens where one is missing.

psycopg may rename what is private in any release.  So each name is looked for when pgmonkey is imported.  Names that
make things faster are optional: without one of them, the fast path is off and psycopg does the work.  Names that are
needed to lend a connection are required: without one of them, a pool refuses to connect.  Either way one line says so.
Only modules of `pgmonkey._driver` may use these names; docs/design.md says how a new psycopg is taken in.
"""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from types import FunctionType
from typing import TYPE_CHECKING

import psycopg
from psycopg import BaseConnection, Connection, Transaction, pq
from psycopg.adapt import Transformer


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
        *("PrepareManager", "_counts", "_names", "_to_flush", "clear", "get", "maybe_add_to_cache"),
        *("prepare_threshold", "prepared_max"),
    ),
    # Optional, as all that follows: what is open on the connection, for a COMMIT by the fast path.
    "Connection (open transaction)": ("_num_transactions", "_pipeline", "_tpc"),
    "PostgresQuery": ("PostgresQuery", "PostgresClientQuery", "_order", "_tx", "_want_formats"),
    "AdaptersMap": ("_dumpers", "_loaders"),
    "Transformer": ("dump_sequence", "load_row", "load_rows", "set_pgresult"),
    "Cursor": (
        *("_adapters", "_closed", "_conn", "_convert_query", "_last_query", "_query", "_query_cls", "_reset"),
        *("_set_results", "_tx"),
    ),
    # With this, a pipeline is sent without the GIL.
    "PGconn": ("pgconn_ptr",),
    # By these names of its generators, psycopg's own statements are told from a borrower's.
    "Connection (generators)": (
        *("_commit_gen", "_rollback_gen", "_enter_gen", "_exit_gen", "_set_autocommit_gen"),
        *("_set_deferrable_gen", "_set_isolation_level_gen", "_set_read_only_gen"),
    ),
}
"""The names of psycopg that are not promised and that `pgmonkey._driver` uses, by what has them."""

PRIVATE_NAMES = tuple(sorted({"_preparing", "_queries"}.union(*PRIVATE.values())))
"""The same in one list, with the modules that are imported."""

_REQUIRED = ("Connection", "PrepareManager")
# These keep no notifications for later, so the next borrower cannot get one of the last.
_WITHOUT_BACKLOG = ("3.2.2", "3.2.3")


def _names_in(*functions: object) -> set[str]:
    """Return the attributes that *functions* use, also by ``getattr``; those of an instance are not on its class."""
    codes = [function.__code__ for function in functions if isinstance(function, FunctionType)]
    return {name for code in codes for name in (*code.co_names, *code.co_consts) if isinstance(name, str)}


def _find_missing() -> dict[str, list[str]]:
    """Return the names of `PRIVATE` that this psycopg does not have."""
    connection = {*dir(Connection), *_names_in(BaseConnection.__init__, Connection.__init__, Connection.__exit__)}
    manager, query = PrepareManager, PostgresQuery
    known: dict[str, set[str]] = {
        "Connection": connection,
        "PrepareManager": {manager.__name__, *dir(manager), *_names_in(manager.__init__)},
        "Connection (open transaction)": connection,
        "PostgresQuery": {query.__name__, PostgresClientQuery.__name__, *dir(query)},
        "AdaptersMap": {*dir(psycopg.adapters)},
        "Transformer": {*dir(Transformer)},
        "Cursor": {*dir(psycopg.Cursor)},
        "PGconn": {*dir(pq.PGconn), *_names_in(pq.PGconn.__init__)},
        "Connection (generators)": {*dir(Connection), *dir(Transaction)},
    }
    if psycopg.__version__ in _WITHOUT_BACKLOG:
        connection.add("_notifies_backlog")
    missing = {owner: [name for name in names if name not in known[owner]] for owner, names in PRIVATE.items()}
    if issubclass(manager, Missing):
        missing["PrepareManager"] = ["PrepareManager (psycopg._preparing)"]
    if issubclass(query, Missing):
        missing["PostgresQuery"] = ["PostgresQuery or PostgresClientQuery (psycopg._queries)"]
    return {owner: names for owner, names in missing.items() if names}


MISSING = _find_missing()
"""The names that the installed psycopg does not have, by what should have them."""

FAST_PATH = psycopg.Pipeline.is_supported() and not set(MISSING) - {"Connection (generators)", "PGconn"}
"""Whether prepared statements may be executed by the fast path.  It needs libpq 14, which has the pipeline mode."""


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


def _warn() -> None:
    owners = [owner for owner in MISSING if owner not in _REQUIRED]
    if owners and LENDING_ERROR is None:
        effect = "so some statements take longer" if FAST_PATH else "so psycopg itself executes every statement"
        logger.warning("%s, %s", _explain(owners), effect)


_warn()
