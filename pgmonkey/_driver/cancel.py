"""Ask the server to end a running statement, even if the caller is interrupted while it asks."""

from __future__ import annotations

import _thread
import ctypes
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from socket import SHUT_RDWR, socket
from time import monotonic, sleep

import psycopg
from psycopg.pq import ConnStatus, PollingStatus
from psycopg.pq.abc import PGcancelConn, PGconn

from .libpq import LIBPQ

logger = logging.getLogger("pgmonkey")

# Seconds until a cancel request that the server does not answer is given up.
_TIMEOUT = 10.0
# Seconds that the end of the process is held up until the server has its cancel requests; and a caller that has to send
# one itself.
_EXIT = 0.2

_pending: set[Future[None]] = set()
_ending_in: int | None = None
"""The thread in which the process ends; None as long as it does not."""


def request_cancel(pgconn: PGconn) -> Future[None]:
    """Send a cancel request for *pgconn* from a thread of its own; the future is done when the server has acted on it.

    The request uses a connection of its own and goes out even if the caller is interrupted or closes *pgconn* at once.
    Use *pgconn* again only when the future is done: the request might end the next statement.
    """
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()  # from now on, a task that stops waiting cannot cancel it
    _pending.add(done)
    done.add_done_callback(_pending.discard)
    try:
        if psycopg.capabilities.has_cancel_safe():
            send: Callable[[], None] = partial(_drive, pgconn.cancel_conn())
        else:
            send = pgconn.get_cancel().cancel if LIBPQ is None else _Cancel(LIBPQ, pgconn)
        # threading.Thread takes locks.  A finalizer that calls this may have interrupted threading's own code, which
        # holds them, and would wait for ever.
        _thread.start_new_thread(_send, (send, done))
    except RuntimeError:  # no thread can be started: too many run, or the process ends
        _send(partial(_cancel_here, [pgconn], monotonic() + _EXIT), done)
    except psycopg.Error as error:  # the connection is lost
        logger.debug("could not cancel a statement: %s", error)
        done.set_result(None)
    return done


class _Cancel:
    """A cancel request of libpq before 17: a call that waits for as long as the network does, so without the GIL."""

    def __init__(self, libpq: ctypes.CDLL, pgconn: PGconn) -> None:
        self._libpq = libpq
        libpq.PQgetCancel.argtypes, libpq.PQgetCancel.restype = (ctypes.c_void_p,), ctypes.c_void_p
        libpq.PQcancel.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int)
        libpq.PQfreeCancel.argtypes, libpq.PQfreeCancel.restype = (ctypes.c_void_p,), None
        self._request: int | None = libpq.PQgetCancel(pgconn.pgconn_ptr)  # type: ignore[attr-defined]  # as in `begin`
        if self._request is None:
            raise psycopg.OperationalError("the connection is closed")

    def __call__(self) -> None:
        message = ctypes.create_string_buffer(256)
        if not self._libpq.PQcancel(self._request, message, len(message)):
            raise psycopg.OperationalError(message.value.decode(errors="replace"))

    def __del__(self) -> None:
        if self._request is not None:
            self._libpq.PQfreeCancel(self._request)


def cancel_at_exit(pgconns: Iterable[PGconn]) -> None:
    """Have the server end what *pgconns* are doing, which other threads use, without waiting until it has ended.

    Those threads stop where they are, as Python stops them a moment later: their errors would only be printed.
    """
    global _ending_in
    _ending_in = _thread.get_ident()
    deadline = monotonic() + _EXIT
    if psycopg.capabilities.has_cancel_safe():
        _cancel_here(pgconns, deadline, acted=False)
    else:
        for pgconn in pgconns:
            request_cancel(pgconn)
    wait(list(_pending), max(0.0, deadline - monotonic()))


def stop_at_exit() -> None:
    """Never return in a thread that the end of the process has interrupted."""
    while _ending_in not in (None, _thread.get_ident()):
        sleep(_TIMEOUT)


def _cancel_here(pgconns: Iterable[PGconn], deadline: float, *, acted: bool = True) -> None:
    """Send cancel requests from this thread, all at the same time; wait until the server has *acted* on them."""
    if not psycopg.capabilities.has_cancel_safe():
        return  # the older function waits for as long as the network does
    with DefaultSelector() as selector:
        for pgconn in pgconns:
            try:
                request = pgconn.cancel_conn()
                request.start()
                _watch(request, selector, acted=acted)
            except psycopg.Error as error:
                logger.debug("could not cancel a statement: %s", error)
        while selector.get_map() and (left := deadline - monotonic()) > 0:
            for key, _ in selector.select(left):
                selector.unregister(key.fileobj)
                _watch(key.data, selector, acted=acted)


def _watch(request: PGcancelConn, selector: DefaultSelector, *, acted: bool) -> None:
    """Go on with *request* as far as that is possible now, and let *selector* watch what it waits for."""
    status = request.poll()
    if request.status == ConnStatus.AWAITING_RESPONSE and not acted:
        return  # it is sent
    if status == PollingStatus.READING:
        selector.register(request.socket, EVENT_READ, request)
    elif status == PollingStatus.WRITING:
        selector.register(request.socket, EVENT_WRITE, request)


def hang_up(pgconn: PGconn) -> None:
    """Shut down the socket of *pgconn* while somebody else uses it, who sees the end of the stream."""
    try:
        link = socket(fileno=pgconn.socket)
    except (psycopg.OperationalError, OSError):
        return  # it is lost already
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
        logger.debug("could not cancel a statement: %s", error)
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
