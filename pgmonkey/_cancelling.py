"""Ask the server to end what a connection is doing, whatever becomes of whoever asks."""

from __future__ import annotations

import _thread
import logging
from concurrent.futures import Future
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from socket import SHUT_RDWR, socket
from time import monotonic
from typing import Any

import psycopg
from psycopg import pq
from psycopg.pq import PollingStatus

logger = logging.getLogger("pgmonkey")

_TIMEOUT = 10.0


def request_cancel(pgconn: pq.abc.PGconn) -> Future[None]:
    """Send a cancel request for *pgconn* from a thread of its own; return what is done when the server has acted on it.

    The request goes over a connection of its own and goes out even if the caller is interrupted or closes *pgconn*
    at once.  A connection may only be used again when the request is done: it might end what comes next.
    """
    done: Future[None] = Future()
    try:
        safe = psycopg.capabilities.has_cancel_safe()
        request: Any = pgconn.cancel_conn() if safe else pgconn.get_cancel()
        # Not a threading.Thread, whose locks a finalizer that interrupted threading's own code would wait for for ever.
        _thread.start_new_thread(_send, (request, safe, done))
    except (RuntimeError, psycopg.Error) as error:  # the interpreter is ending, or the connection is lost
        logger.debug("a statement could not be cancelled: %s", error)
        done.set_result(None)
    return done


def hang_up(pgconn: pq.abc.PGconn) -> None:
    """Cut *pgconn*, which another thread is using, off from the server: that thread sees the end of the stream."""
    link = socket(fileno=pgconn.socket)
    try:
        link.shutdown(SHUT_RDWR)
    except OSError:
        """It is cut off already."""
    finally:
        link.detach()


def _send(request: Any, safe: bool, done: Future[None]) -> None:
    try:
        if safe:
            _drive(request)
        else:
            request.cancel()
    except Exception as error:
        logger.debug("a statement could not be cancelled: %s", error)
    finally:
        done.set_result(None)


def _drive(request: Any) -> None:
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
