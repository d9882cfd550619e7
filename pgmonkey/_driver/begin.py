"""BEGIN travels with the first statement of a transaction, in one message: libpq's pipeline mode."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import psycopg
from psycopg.abc import Buffer
from psycopg.pq import Escaping, TransactionStatus
from psycopg.pq.abc import PGconn

from .compat import PostgresQuery, Prepare
from .libpq import LIBPQ
from .plan import LOOKED_AT
from .psycopg_types import AnyConnection

_Params: TypeAlias = Sequence[Buffer | None] | None
# As a plain number, which is faster to compare than a member of an enumeration.
_IDLE = int(TransactionStatus.IDLE)
_LOOKED_AT = frozenset(name.decode().lower() for name in LOOKED_AT)


Begin: TypeAlias = tuple[bytes, ...]
"""The commands that begin a transaction: BEGIN, and what sets its session values and names its trace.

None of them where psycopg is to begin it: what is set then decides how the parameters of the first statement are sent.
"""


Trace: TypeAlias = Callable[[], "bytes | None"]
"""Returns the command that tells the server which trace the transaction is part of; None where that is none."""


def begin_statement(connection: AnyConnection) -> Begin | None:
    """Return the commands that the next statement on *connection* needs before it; None where it needs none."""
    if connection.pgconn.transaction_status != _IDLE or connection._autocommit:
        return None
    state = connection.__dict__
    begin, values = connection._get_tx_start_command(), state.get("session_values")
    commands = (begin,) if not values else () if state["begins_alone"] else (begin, values)
    return with_trace(commands, state["trace"]) if "trace" in state else commands


def with_trace(begin: Begin, trace: Trace) -> Begin:
    """Return *begin* with what *trace* returns now, unless psycopg is to begin the transaction, which asks itself."""
    command = trace() if begin else None
    return begin if command is None else (*begin, command)


def begins_alone(values: Mapping[str, str | None]) -> bool:
    """Tell whether one of the session *values* is looked at by psycopg when it sends the parameters of a statement."""
    return any(name.lower() in _LOOKED_AT for name in values)


def set_command(values: Mapping[str, str | None], connection: AnyConnection) -> bytes:
    """Return the command that sets configuration parameters until the end of the transaction; None resets one."""
    # The values are in its text, so that it can travel with BEGIN, in whatever protocol.
    escaping, encoding = Escaping(connection.pgconn), connection.info.encoding
    if encoding == "ascii":  # SQL_ASCII, which takes any bytes; psycopg's parameters are UTF-8 then
        encoding = "utf-8"

    def quoted(text: str | None) -> bytes:
        if text is None:
            return b"NULL"
        if "\0" in text:
            raise psycopg.DataError("a session value cannot contain NUL (0x00) characters")
        return escaping.escape_literal(text.encode(encoding))

    calls = [b"set_config(%s, %s, true)" % (quoted(name), quoted(value)) for name, value in values.items()]
    return b"SELECT " + b", ".join(calls)


def send_with_begin(pgconn: PGconn, begin: Begin, name: bytes, params: _Params, formats: Sequence[int] | None) -> None:
    """Send *begin* and the execution of the prepared statement *name* in one message."""
    pgconn.enter_pipeline_mode()
    for command in begin:
        pgconn.send_query_params(command, None)
    pgconn.send_query_prepared(name, params, formats)
    pipeline_sync(pgconn)


def send_text_with_begin(pgconn: PGconn, begin: Begin, text: bytes) -> None:
    """Send *begin* and the query *text*, which is one statement, in one message."""
    pgconn.enter_pipeline_mode()
    for command in begin:
        pgconn.send_query_params(command, None)
    pgconn.send_query_params(text, None)
    pipeline_sync(pgconn)


def send_query_with_begin(pgconn: PGconn, begin: Begin, query: PostgresQuery, prep: Prepare, name: bytes) -> None:
    """Send *begin* and *query* in one message; *prep* tells whether it is, or is to be, prepared as *name*."""
    pgconn.enter_pipeline_mode()
    for command in begin:
        pgconn.send_query_params(command, None)
    if prep is Prepare.SHOULD:
        pgconn.send_prepare(name, query.query, query.types)
    if prep is Prepare.NO:
        pgconn.send_query_params(query.query, query.params, query.types, query.formats)
    else:
        pgconn.send_query_prepared(name, query.params, query.formats)
    pipeline_sync(pgconn)


def _find_pipeline_sync() -> Callable[[int | None], int] | None:
    """Return libpq's ``PQpipelineSync`` to be called without the GIL; None where it is not found."""
    try:
        function = None if LIBPQ is None else LIBPQ.PQpipelineSync
    except AttributeError:  # of libpq before 14
        return None
    if function is not None:
        function.argtypes, function.restype = (ctypes.c_void_p,), ctypes.c_int
    return function


_pipeline_sync = _find_pipeline_sync()


def pipeline_sync(pgconn: PGconn) -> None:
    """Do as psycopg's ``pgconn.pipeline_sync()``."""
    if _pipeline_sync is None:
        pgconn.pipeline_sync()
    elif _pipeline_sync(pgconn.pgconn_ptr) != 1:  # type: ignore[attr-defined]  # the implementations have it
        raise psycopg.OperationalError(f"sync failed: {pgconn.get_error_message()}")
