"""Send a prepared statement, perhaps with the BEGIN before it, and take its answer: libpq's protocol, without I/O."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import pq
from psycopg.abc import Buffer
from psycopg.pq import ExecStatus, PipelineStatus
from psycopg.waiting import Wait

from ._flushing import sync
from ._limits import Waits

_SYNC = int(ExecStatus.PIPELINE_SYNC)
_OFF = int(PipelineStatus.OFF)


def begin_and_send(
    pgconn: pq.abc.PGconn,
    begin: bytes,
    name: bytes,
    params: Sequence[Buffer | None] | None,
    formats: Sequence[int] | None,
) -> None:
    """Send *begin* and the execution of the prepared statement *name* in one message."""
    pgconn.enter_pipeline_mode()
    pgconn.send_query_params(begin, None)
    pgconn.send_query_prepared(name, params, formats)
    sync(pgconn)


def begin_and_send_text(pgconn: pq.abc.PGconn, begin: bytes, text: bytes) -> None:
    """Send *begin* and the query *text*, which is one statement, in one message."""
    pgconn.enter_pipeline_mode()
    pgconn.send_query_params(begin, None)
    pgconn.send_query_params(text, None)
    sync(pgconn)


def read_and_send(
    pgconn: pq.abc.PGconn,
    transaction: tuple[bytes, bytes],
    name: bytes,
    params: Sequence[Buffer | None] | None,
    formats: Sequence[int] | None,
) -> None:
    """Send the execution of the prepared statement *name* and, around it, what begins and ends its *transaction*."""
    begin, end = transaction
    pgconn.enter_pipeline_mode()
    pgconn.send_query_prepared(begin, None)
    pgconn.send_query_prepared(name, params, formats)
    pgconn.send_query_prepared(end, None)
    sync(pgconn)


def ask_and_send(
    pgconn: pq.abc.PGconn,
    transaction: tuple[bytes, bytes],
    name: bytes,
    params: Sequence[Buffer | None] | None,
    formats: Sequence[int] | None,
) -> None:
    """Do as `begin_and_send` does, preparing a *transaction* for `read_and_send` and asking how isolated they are.

    The answer is the last result but one.
    """
    begin, end = transaction
    pgconn.enter_pipeline_mode()
    pgconn.send_prepare(begin, b"BEGIN READ ONLY")
    pgconn.send_prepare(end, b"COMMIT")
    pgconn.send_query_params(b"BEGIN", None)
    pgconn.send_query_params(b"SHOW transaction_isolation", None)
    pgconn.send_query_prepared(name, params, formats)
    sync(pgconn)


def take(pgconn: pq.abc.PGconn, results: list[pq.abc.PGresult]) -> bool:
    """Add to *results* what has arrived of the answer to what was sent; tell whether that was all."""
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


def taking(pgconn: pq.abc.PGconn) -> Waits[list[pq.abc.PGresult]]:
    """Return the answer to what was sent, as psycopg's generators do.  See `psycopg.generators`."""
    results: list[pq.abc.PGresult] = []
    while pgconn.flush():
        ready = yield Wait.RW
        if ready & Wait.R:
            pgconn.consume_input()
    try:
        while not take(pgconn, results):
            yield Wait.R
    except psycopg.OperationalError:
        if not told_why(results):
            raise
    return results


def told_why(results: list[pq.abc.PGresult]) -> bool:
    """Tell whether the server said why it goes before it went, so that this is the error."""
    return any(result.status == ExecStatus.FATAL_ERROR for result in results)
