"""libpq's protocol for prepared statements, without I/O: put statements into one message, and read its answer."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

import psycopg
from psycopg import pq
from psycopg.abc import Buffer, PQGen
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, PipelineStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Wait

from .compat import MISSING
from .psycopg_types import AnyConnection

_Params: TypeAlias = Sequence[Buffer | None] | None
# As plain numbers, which are faster to compare than members of an enumeration.
_FATAL, _SYNC, _OFF = int(ExecStatus.FATAL_ERROR), int(ExecStatus.PIPELINE_SYNC), int(PipelineStatus.OFF)


def begin_and_send(pgconn: PGconn, begin: bytes, name: bytes, params: _Params, formats: Sequence[int] | None) -> None:
    """Send *begin* and the execution of the prepared statement *name* in one message."""
    pgconn.enter_pipeline_mode()
    pgconn.send_query_params(begin, None)
    pgconn.send_query_prepared(name, params, formats)
    pipeline_sync(pgconn)


def begin_and_send_text(pgconn: PGconn, begin: bytes, text: bytes) -> None:
    """Send *begin* and the query *text*, which is one statement, in one message."""
    pgconn.enter_pipeline_mode()
    pgconn.send_query_params(begin, None)
    pgconn.send_query_params(text, None)
    pipeline_sync(pgconn)


def read_and_send(
    pgconn: PGconn, transaction: tuple[bytes, bytes], name: bytes, params: _Params, formats: Sequence[int] | None
) -> None:
    """Send the execution of the prepared statement *name* inside a prepared *transaction*: its BEGIN and COMMIT."""
    begin, end = transaction
    pgconn.enter_pipeline_mode()
    pgconn.send_query_prepared(begin, None)
    pgconn.send_query_prepared(name, params, formats)
    pgconn.send_query_prepared(end, None)
    pipeline_sync(pgconn)


def ask_and_send(
    pgconn: PGconn, transaction: tuple[bytes, bytes], name: bytes, params: _Params, formats: Sequence[int] | None
) -> None:
    """Do as `begin_and_send`; also prepare a *transaction* for `read_and_send` and ask for the isolation level.

    The level is the last result but one.
    """
    begin, end = transaction
    pgconn.enter_pipeline_mode()
    pgconn.send_prepare(begin, b"BEGIN READ ONLY")
    pgconn.send_prepare(end, b"COMMIT")
    pgconn.send_query_params(b"BEGIN", None)
    pgconn.send_query_params(b"SHOW transaction_isolation", None)
    pgconn.send_query_prepared(name, params, formats)
    pipeline_sync(pgconn)


def read_results(pgconn: PGconn, results: list[PGresult]) -> bool:
    """Add to *results* what has arrived of the answer; tell whether it is complete."""
    pgconn.consume_input()
    while not pgconn.is_busy():
        result = pgconn.get_result()
        if result is None:
            if pgconn.pipeline_status == _OFF or pgconn.status != pq.ConnStatus.OK:
                return True
        elif result.status == _SYNC:
            pgconn.exit_pipeline_mode()
            return True
        else:
            results.append(result)
    return False


def fetching(pgconn: PGconn) -> PQGen[list[PGresult]]:
    """Flush what was sent and return the answer, as psycopg's own generators do.  See `psycopg.generators`."""
    results: list[PGresult] = []
    while pgconn.flush():
        ready = yield Wait.RW
        if ready & Wait.R:
            pgconn.consume_input()
    try:
        while not read_results(pgconn, results):
            yield Wait.R
    except psycopg.OperationalError:
        if not has_error(results):
            raise
    return results


def has_error(results: list[PGresult]) -> bool:
    """Tell whether the server sent an error, which says more than the loss of the connection that follows it."""
    return any(result.status == _FATAL for result in results)


def check_results(results: list[PGresult], connection: AnyConnection) -> None:
    """Raise the error among *results*, if there is one, and pass on the notifications that came with them."""
    for result in results:
        if result.status == _FATAL:
            raise error_from_result(result, encoding=connection.info.encoding)
    pgconn = connection.pgconn
    while notification := pgconn.notifies():
        if pgconn.notify_handler is not None:
            pgconn.notify_handler(notification)


def _find_pipeline_sync() -> Callable[[int | None], int] | None:
    """Return libpq's ``PQpipelineSync`` to be called without the GIL; None where it is not to be found.

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
