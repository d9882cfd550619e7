"""Ask the server to end a running statement, even if the caller is interrupted while it asks."""

from __future__ import annotations

import _thread
import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from socket import SHUT_RDWR, socket
from time import monotonic

import psycopg
from psycopg.pq import PollingStatus
from psycopg.pq.abc import PGcancelConn, PGconn

logger = logging.getLogger("pgmonkey")

# Seconds until a cancel request that the server does not answer is given up.
_TIMEOUT = 10.0


def request_cancel(pgconn: PGconn) -> Future[None]:
    """Send a cancel request for *pgconn* from a thread of its own; the future is done when the server has acted on it.

    The request uses a connection of its own and goes out even if the caller is interrupted or closes *pgconn* at once.
    Use *pgconn* again only when the future is done: the request might end the next statement.
    """
    done: Future[None] = Future()
    try:
        if psycopg.capabilities.has_cancel_safe():
            send: Callable[[], None] = partial(_drive, pgconn.cancel_conn())
        else:
            send = pgconn.get_cancel().cancel
        # threading.Thread takes locks.  A finalizer that calls this may have interrupted threading's own code, which
        # holds them, and would wait for ever.
        _thread.start_new_thread(_send, (send, done))
    except (RuntimeError, psycopg.Error) as error:  # the interpreter is ending, or the connection is lost
        logger.debug("a statement could not be cancelled: %s", error)
        done.set_result(None)
    return done


def hang_up(pgconn: PGconn) -> None:
    """Shut down the socket of *pgconn* while another thread uses it; that thread sees the end of the stream."""
    link = socket(fileno=pgconn.socket)
    try:
        link.shutdown(SHUT_RDWR)
    except OSError:
        pass  # it is shut down already
    finally:
        link.detach()


def _send(send: Callable[[], None], done: Future[None]) -> None:
    try:
        send()
    except Exception as error:
        logger.debug("a statement could not be cancelled: %s", error)
    finally:
        done.set_result(None)


def _drive(request: PGcancelConn) -> None:
    deadline = monotonic() + _TIMEOUT
    request.start()
    while monotonic() < deadline:
        status = request.poll()
        if status == PollingStatus.OK:
            return
        if status == PollingStatus.FAILED:
            raise psycopg.OperationalError(request.get_error_message())
        with DefaultSelector() as selector:
            selector.register(request.socket, EVENT_READ if status == PollingStatus.READING else EVENT_WRITE)
            selector.select(_TIMEOUT)
    raise psycopg.OperationalError("the server did not answer")
