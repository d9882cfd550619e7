"""Tell whether an idle connection is still alive, without asking the server."""

from __future__ import annotations

import select
from collections.abc import Callable

import psycopg
from psycopg import pq


def watch(socket: int) -> Callable[[int], object]:
    """Return what tells, waiting for as many milliseconds as it is given, whether something has arrived on *socket*."""
    if not hasattr(select, "poll"):  # Windows, whose select() can watch any number
        return lambda timeout: select.select([socket], [], [], timeout / 1000)[0]
    poller = select.poll()
    poller.register(socket, select.POLLIN)
    return poller.poll


def is_alive(pgconn: pq.abc.PGconn, arrived: Callable[[int], object]) -> bool:
    """Tell whether the idle connection *pgconn* can be lent, at the cost of one ``poll`` when nothing has arrived.

    What the server sent meanwhile is read and parsed: notifications and changed parameters are fine, the end of the
    stream or a FATAL error (57P01, a time-out of the session) is not.
    """
    if pgconn.status != pq.ConnStatus.OK:
        return False
    if not arrived(0):
        return True
    fatal = False

    def notice(result: pq.abc.PGresult) -> None:
        nonlocal fatal
        fatal = fatal or result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED) in (b"FATAL", b"PANIC")

    previous, pgconn.notice_handler = pgconn.notice_handler, notice
    try:
        while not fatal and arrived(0):
            pgconn.consume_input()
            if pgconn.is_busy():  # also what makes libpq parse what it read
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


def tells_of_a_lost_server(error: psycopg.Error, pgconn: pq.abc.PGconn) -> bool:
    """Tell whether *error*, of *pgconn*, means that the server is going away, is lost, or is no longer the primary."""
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return pgconn.status == pq.ConnStatus.OK and pgconn.parameter_status(b"in_hot_standby") == b"on"
    sqlstate = error.sqlstate or ""
    return sqlstate in _GOING_AWAY or sqlstate.startswith("08")
