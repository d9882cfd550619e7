"""The one door to psycopg's insides: every private name that pgmonkey uses, and what happens where one is missing.

psycopg may rename what is private in any release.  So each name is looked for when pgmonkey is imported.  Names that
make things faster are optional: without one of them, the short way is off and psycopg does the work.  Names that are
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
from psycopg.adapt import AdaptersMap, Transformer

if TYPE_CHECKING:
    from psycopg._preparing import Prepare, PrepareManager
    from psycopg._queries import PostgresClientQuery, PostgresQuery
else:
    # Placeholders, so that what is missing is one error that names it and not the end of the import.
    try:
        from psycopg._preparing import Prepare, PrepareManager
    except ImportError:
        Prepare = PrepareManager = type("Missing", (), {"NO": None})
    try:
        from psycopg._queries import PostgresClientQuery, PostgresQuery
    except ImportError:
        PostgresClientQuery, PostgresQuery = type("Missing", (), {}), type("Missing", (), {})

__all__ = [
    "MISSING",
    "PRIVATE",
    "SHORT_WAY",
    "PostgresClientQuery",
    "PostgresQuery",
    "Prepare",
    "PrepareManager",
]

logger = logging.getLogger("pgmonkey")

PRIVATE: dict[str, tuple[str, ...]] = {
    # Required: lending copies a connection's state and changes these.
    "BaseConnection": (
        *("_adapters", "_autocommit", "_closed", "_notice_handlers", "_notifies_backlog", "_notify_handlers"),
        *("_connect_gen", "_exec_command", "_get_tx_start_command", "_notice_handler", "_notify_handler"),
        *("_pool", "_prepared", "_start_query"),
    ),
    # Required: this is where what a borrower executed is noticed, and cleaned up after.
    "PrepareManager": (*("_counts", "_names", "_to_flush"), *("clear", "get", "maybe_add_to_cache")),
    # Optional, as all that follows: what is open on the connection, for a COMMIT by the short way.
    "transactions": ("_num_transactions", "_pipeline", "_tpc"),
    "PostgresQuery": ("_order", "_tx", "_want_formats"),
    "AdaptersMap": ("_dumpers", "_loaders"),
    "Transformer": ("dump_sequence", "load_row", "load_rows", "set_pgresult"),
    "BaseCursor": (
        *("_adapters", "_closed", "_conn", "_convert_query", "_last_query", "_query", "_query_cls", "_reset"),
        *("_set_results", "_tx"),
    ),
    # By these names of its generators psycopg's own statements are told from a borrower's.
    "generators": (
        *("_commit_gen", "_rollback_gen", "_enter_gen", "_exit_gen", "_set_autocommit_gen"),
        *("_set_deferrable_gen", "_set_isolation_level_gen", "_set_read_only_gen"),
    ),
}
"""The private names that `pgmonkey._driver` uses, by what psycopg has them on."""

_REQUIRED = ("BaseConnection", "PrepareManager")


def _names_in(*functions: object) -> set[str]:
    """Return the attributes that *functions* use, also by ``getattr``; those of an instance are not on its class."""
    codes = [function.__code__ for function in functions if isinstance(function, FunctionType)]
    return {name for code in codes for name in (*code.co_names, *code.co_consts) if isinstance(name, str)}


def _find_missing() -> dict[str, list[str]]:
    """Return the names of `PRIVATE` that this psycopg does not have."""
    begun = getattr(BaseConnection, "_start_query", None)
    connection = {*dir(Connection), *_names_in(BaseConnection.__init__, BaseConnection.__del__, Connection.__exit__)}
    known: dict[str, set[str]] = {
        "BaseConnection": connection,
        "PrepareManager": {*dir(PrepareManager), *_names_in(PrepareManager.__init__)},
        "transactions": connection & {*_names_in(BaseConnection.__init__, begun), "_num_transactions", "_tpc"},
        "PostgresQuery": {*dir(PostgresQuery)},
        "AdaptersMap": {*dir(psycopg.adapters), *_names_in(AdaptersMap.__init__)},
        "Transformer": {*dir(Transformer)},
        "BaseCursor": {*dir(psycopg.Cursor)},
        "generators": {*dir(BaseConnection), *dir(Transaction)},
    }
    missing = {owner: [name for name in names if name not in known[owner]] for owner, names in PRIVATE.items()}
    if PrepareManager.__name__ == "Missing":
        missing["PrepareManager"].insert(0, "PrepareManager")
    if PostgresQuery.__name__ == "Missing" or PostgresClientQuery.__name__ == "Missing":
        missing["PostgresQuery"].insert(0, "PostgresQuery")
    return {owner: names for owner, names in missing.items() if names}


MISSING = _find_missing()
"""The private names that the installed psycopg does not have, by what should have them."""

SHORT_WAY = psycopg.Pipeline.is_supported() and not set(MISSING) - {"generators"}
"""Whether prepared statements may be executed by the short way.  It needs libpq 14, which has the pipeline mode."""

HAS_PIPELINE_SYNC = hasattr(pq.PGconn, "pgconn_ptr")
"""Whether libpq's functions can be called with psycopg's connection."""


def _explain(owners: list[str]) -> str:
    try:
        ours = version("pgmonkey")
    except PackageNotFoundError:
        ours = "this release"
    names = ", ".join(f"{owner}.{name}" for owner in owners for name in MISSING[owner])
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
    if owners:
        effect = "sessions are cleaned more often" if owners == ["generators"] else "psycopg executes every statement"
        logger.warning("%s; %s", _explain(owners), effect)


_warn()
