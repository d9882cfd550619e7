"""Middleware that makes a request one transaction, and answers 503 when the pool is exhausted."""

from __future__ import annotations

import logging
from collections.abc import Callable

from django.db import connections
from django.db.utils import OperationalError
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from pgmonkey import PoolFullError, PoolTimeoutError

from .base import DatabaseWrapper

logger = logging.getLogger("pgmonkey")

_RETRY_AFTER = "1"  # seconds


class TransactionMiddleware:
    """Make a request one transaction on each database that it uses, begun by its first query.

    It is committed before the response leaves when the status is below 400, and rolled back otherwise; a COMMIT that
    fails is an exception like one of the view.  ATOMIC_REQUESTS borrows for each request, and commits a returned error.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Serve one request."""
        # All of them, because which ones the view will use is not known.  Nothing is borrowed here.
        wrappers = [connection for connection in connections.all() if isinstance(connection, DatabaseWrapper)]
        for wrapper in wrappers:
            wrapper.begin_request(lambda: _route(request))
        commit = False
        try:
            response = self._get_response(request)
            commit = response.status_code < 400
        finally:
            _end(wrappers, commit)
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Answer 503 when no connection came free in time."""
        # Django raises its own error classes; the error of pgmonkey is their cause.
        cause = exception.__cause__
        if isinstance(exception, OperationalError) and isinstance(cause, (PoolTimeoutError, PoolFullError)):
            logger.warning("%s", cause)
            return HttpResponse(
                "The database is busy, please try again.", status=503, headers={"Retry-After": _RETRY_AFTER}
            )
        return None


def _end(wrappers: list[DatabaseWrapper], commit: bool) -> None:
    """Commit one after the other, or roll all back; raise what makes a COMMIT fail."""
    failure: BaseException | None = None
    for wrapper in wrappers:
        # All must be ended, or this thread could not use them again.  After a COMMIT that failed, the others roll back.
        try:
            wrapper.end_request(commit=commit and failure is None)
        except BaseException as error:
            failure = failure or error
    if failure is not None:
        raise failure


def _route(request: HttpRequest) -> str:
    """Return the method and the route, ``GET orders/<int:id>``, never the path: that may contain personal data."""
    match = request.resolver_match
    return f"{request.method} {match.route if match is not None else '(no route)'}"
