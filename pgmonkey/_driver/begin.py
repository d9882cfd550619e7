"""BEGIN travels with the first statement of a transaction, in one message: libpq's pipeline mode."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import psycopg
from psycopg import pq
from psycopg.abc import Buffer
from psycopg.pq import Escaping, TransactionStatus
from psycopg.pq.abc import PGconn

from .compat import MISSING
from .psycopg_types import AnyConnection

_Params: TypeAlias = Sequence[Buffer | None] | None
# As a plain number, which is faster to compare than a member of an enumeration.
_IDLE = int(TransactionStatus.IDLE)


def begin_statement(connection: AnyConnection) -> bytes | None:
    """Return the BEGIN that the next statement on *connection* needs; None where it needs none."""
    idle = connection.pgconn.transaction_status == _IDLE
    return connection._get_tx_start_command() if idle and not connection._autocommit else None


def begin_and_set(connection: AnyConnection, values: Mapping[str, object]) -> bytes:
    """Return the message that sets configuration parameters to *values* until the end of the transaction.

    It begins one where none is open, with the settings that no session keeps (PgBouncer).
    """
    begin = begin_statement(connection)
    parts = [] if begin is None else [begin, connection.__dict__.get("transaction_settings", b"")]
    # By libpq alone: a borrower's cursors may take other placeholders, and its types be dumped in other ways.
    pairs = ((_literal(connection, name), _literal(connection, value)) for name, value in values.items())
    parts.append(b"SELECT " + b", ".join(b"set_config(%s, %s, true)" % pair for pair in pairs))
    return b"; ".join(filter(None, parts))


def _literal(connection: AnyConnection, value: object) -> bytes:
    if value is None:
        return b"NULL"
    text = str(value).encode(connection.info.encoding)
    if b"\0" in text:  # where libpq would end the text
        raise psycopg.DataError("the value of a configuration parameter cannot contain NUL (0x00)")
    return Escaping(connection.pgconn).escape_literal(text)


def send_with_begin(pgconn: PGconn, begin: bytes, name: bytes, params: _Params, formats: Sequence[int] | None) -> None:
    """Send *begin* and the execution of the prepared statement *name* in one message."""
    pgconn.enter_pipeline_mode()
    pgconn.send_query_params(begin, None)
    pgconn.send_query_prepared(name, params, formats)
    pipeline_sync(pgconn)


def send_text_with_begin(pgconn: PGconn, begin: bytes, text: bytes) -> None:
    """Send *begin* and the query *text*, which is one statement, in one message."""
    pgconn.enter_pipeline_mode()
    pgconn.send_query_params(begin, None)
    pgconn.send_query_params(text, None)
    pipeline_sync(pgconn)


def _find_pipeline_sync() -> Callable[[int | None], int] | None:
    """Return libpq's ``PQpipelineSync`` to be called without the GIL; None where it is not found.

    psycopg's compiled modules hold the GIL in this call.  The server wakes up at that moment and may take the processor
    from the thread that holds it; all other threads then queue up behind a thread that does not run.
    """
    module = sys.modules[pq.PGconn.__module__].__file__
    if module is None:
        return None
    try:
        function = ctypes.CDLL(module).PQpipelineSync  # of the library that the module is linked with
    except (AttributeError, OSError):
        return None
    function.argtypes, function.restype = (ctypes.c_void_p,), ctypes.c_int
    return function


_pipeline_sync = None if "PGconn" in MISSING else _find_pipeline_sync()


def pipeline_sync(pgconn: PGconn) -> None:
    """Do as psycopg's ``pgconn.pipeline_sync()``."""
    if _pipeline_sync is None:
        pgconn.pipeline_sync()
    elif _pipeline_sync(pgconn.pgconn_ptr) != 1:  # type: ignore[attr-defined]  # the implementations have it
        raise psycopg.OperationalError(f"sync failed: {pgconn.get_error_message()}")
