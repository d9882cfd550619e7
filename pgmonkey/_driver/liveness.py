"""Tell whether an idle connection is still alive, without asking the server."""

from __future__ import annotations

import select
from collections.abc import Callable

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGconn, PGresult

Arrived = Callable[[int], object]
"""Tells, waiting at most as many milliseconds as it is given, whether something has arrived on a socket."""


def make_poller(socket: int) -> Arrived:
    """Return what tells whether something has arrived on *socket*, without reading it."""
    if not hasattr(select, "poll"):  # Windows, whose select() is not limited to small descriptors
        return lambda timeout: select.select([socket], [], [], timeout / 1000)[0]
    poller = select.poll()
    poller.register(socket, select.POLLIN)
    return poller.poll


def is_alive(pgconn: PGconn, arrived: Arrived) -> bool:
    """Tell whether the idle connection *pgconn* can be lent; costs one ``poll`` when nothing has arrived.

    What the server sent meanwhile is read and parsed: notifications and changed parameters are fine; the end of the
    stream and a FATAL error (57P01, a time-out of the session) are not.
    """
    if pgconn.status != pq.ConnStatus.OK:
        return False
    if not arrived(0):
        return True
    fatal = False

    def notice(result: PGresult) -> None:
        nonlocal fatal
        fatal = fatal or result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED) in (b"FATAL", b"PANIC")

    previous, pgconn.notice_handler = pgconn.notice_handler, notice
    try:
        while not fatal and arrived(0):
            pgconn.consume_input()
            if pgconn.is_busy():  # also makes libpq parse what it has read
                return False
            while pgconn.notifies():
                pass
    except psycopg.OperationalError:
        return False
    finally:
        pgconn.notice_handler = previous
    return not fatal and pgconn.status == pq.ConnStatus.OK


# The server is being shut down, has crashed, or is starting: class 57 of the manual's appendix A.
_GOING_AWAY = ("57P01", "57P02", "57P03")


def is_lost_server(error: psycopg.Error, pgconn: PGconn) -> bool:
    """Tell whether *error*, of *pgconn*, means that the server is going away, is lost, or is no longer the primary."""
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return pgconn.status == pq.ConnStatus.OK and pgconn.parameter_status(b"in_hot_standby") == b"on"
    # An ordinary ERROR with such a code is somebody else's: of a foreign server, or of a function that raises it.
    fatal = (error.diag.severity_nonlocalized or error.diag.severity) in ("FATAL", "PANIC")
    sqlstate = error.sqlstate or ""
    return fatal and (sqlstate in _GOING_AWAY or sqlstate.startswith("08"))
