"""libpq's protocol, without waiting: read the answer to what was sent, and raise the errors in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import TypeAlias

import psycopg
from psycopg import Notify, pq
from psycopg.abc import Buffer, PQGen
from psycopg.errors import error_from_result
from psycopg.pq import DiagnosticField, ExecStatus, PipelineStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.pq.misc import PGnotify
from psycopg.waiting import Wait

from ..errors import CommitUnknownError
from .psycopg_types import AnyConnection

_Params: TypeAlias = Sequence[Buffer | None] | None
# As plain numbers, which are faster to compare than members of an enumeration.
_FATAL, _SYNC, _OFF = int(ExecStatus.FATAL_ERROR), int(ExecStatus.PIPELINE_SYNC), int(PipelineStatus.OFF)


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


def check_answered(error: psycopg.Error) -> None:
    """Raise `CommitUnknownError` if *error*, which came for a COMMIT, leaves open whether the server has done it.

    With an SQLSTATE it is the server's answer that it has not; but a server that panics may have done it, and of class
    08 is what PgBouncer says when it has lost the server.
    """
    state, severity = error.sqlstate or "", error.diag.severity_nonlocalized
    if not state or severity == "PANIC" or (severity == "FATAL" and state.startswith("08")):
        raise CommitUnknownError(error) from error


def check_commit(results: list[PGresult], connection: AnyConnection) -> None:
    """Raise unless *results* begin with the server's answer to a COMMIT, which may be ROLLBACK."""
    answer = results[0] if results else None
    if answer is not None and answer.status == _FATAL:
        error = error_from_result(answer, encoding=connection.info.encoding)
        check_answered(error)
        raise error
    if answer is None or answer.command_status not in (b"COMMIT", b"ROLLBACK"):
        stray = psycopg.OperationalError("another answer came in its place")
        raise CommitUnknownError(stray) from stray


def check_results(results: list[PGresult], connection: AnyConnection) -> None:
    """Raise the error among *results*, if there is one, and pass on the notifications that came with them."""
    for result in results:
        if result.status == _FATAL:
            raise error_from_result(result, encoding=connection.info.encoding)
    pass_on_notifications(connection.pgconn)


class Arriving:
    """The notifications that come on a connection, whatever reads it."""

    def __init__(self) -> None:
        self._found: deque[PGnotify] = deque()
        self.last_words = ""
        """What the server said before it closed the connection: to libpq, that is a notice."""

    def attach(self, pgconn: PGconn) -> None:
        """Keep those that come with the answers of *pgconn*, too."""
        self.last_words = ""
        pgconn.notify_handler, pgconn.notice_handler = self._found.append, self._hear

    def _hear(self, notice: PGresult) -> None:
        self.last_words = (notice.error_field(DiagnosticField.MESSAGE_PRIMARY) or b"").decode(errors="replace")

    def read(self, pgconn: PGconn) -> bool:
        """Read what has arrived; tell whether there is something to take."""
        try:
            pgconn.consume_input()
        finally:  # what came before the end of the stream is in libpq's buffer
            while notification := pgconn.notifies():
                self._found.append(notification)
        return bool(self._found)

    def take(self) -> list[Notify]:
        """Return those that were not taken yet."""
        found = [self._found.popleft() for _ in range(len(self._found))]
        # They are in the client's encoding, which is UTF-8 on a connection that listens.
        return [Notify(each.relname.decode(), each.extra.decode(errors="replace"), each.be_pid) for each in found]


def arriving(pgconn: PGconn, into: Arriving, until: float) -> PQGen[None]:
    """Wait for notifications, at most until the time that `time.monotonic` gives."""
    while not into.read(pgconn) and monotonic() < until:
        yield Wait.R


def pass_on_notifications(pgconn: PGconn) -> None:
    """Pass on the notifications that came with an answer to the borrower of *pgconn*."""
    while notification := pgconn.notifies():
        if pgconn.notify_handler is not None:
            pgconn.notify_handler(notification)
