"""Middleware that makes a request one transaction and answers 503 if no connection is available."""

from __future__ import annotations

import logging
from collections.abc import Callable

from django.conf import settings
from django.core.handlers.exception import response_for_exception
from django.db.utils import OperationalError
from django.http import HttpRequest, HttpResponse, HttpResponseServerError
from django.http.response import HttpResponseBase
from django.template.response import SimpleTemplateResponse
from psycopg.errors import ConnectionTimeout

from pgmonkey import (
    CommitUnknownError,
    Deadline,
    DeadlineExceededError,
    PoolFullError,
    PoolTimeoutError,
    ServerUnavailableError,
)

from ._deadline import read_deadline
from ._requests import RequestTransactions, watch_rendering
from ._unavailable import answered, unavailable

logger = logging.getLogger("pgmonkey")


class TransactionMiddleware:
    """Make a request one transaction on each database that it uses; it starts with the first query.

    It is committed before the response leaves if the status is below 400, and rolled back otherwise.  An exception in
    the view rolls back immediately, whatever turns it into a response.  A COMMIT that fails is answered by
    ``handler500``.  ATOMIC_REQUESTS, by contrast, borrows for each request and commits when a view returns an error.

    ``PGMONKEY_DEADLINE`` is how many seconds a request has until its response starts, ``PGMONKEY_DEADLINE_HEADER`` the
    name of a header in which a request may give itself less: what has not ended then is cancelled, and answered by 504.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response
        self._deadlines = read_deadline()

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Serve one request."""
        deadline: Deadline | None = None
        if self._deadlines is not None:
            deadline = self._deadlines.begin(request.headers.get(self._deadlines.header or ""))
        transactions = RequestTransactions(request, deadline)
        try:
            response = transactions.serve(lambda: self._get_response(request))
        except Exception as error:
            late = isinstance(error.__cause__, DeadlineExceededError)  # the COMMIT, which was not sent
            return (self.process_exception(request, error) if late else None) or _answer(request, error)
        # Raised by another middleware, or answered by a handler of django-ninja or Django REST framework: not seen by
        # process_exception().
        if response.status_code == 500:
            answers = (self.process_exception(request, error) for error in transactions.errors)
            return next(filter(None, answers), response)
        return response

    def process_template_response(
        self, request: HttpRequest, response: SimpleTemplateResponse
    ) -> SimpleTemplateResponse:
        """Let what rendering *response* raises roll back, whoever answers it: that comes behind the view."""
        watch_rendering(response)
        return response

    def process_exception(self, request: HttpRequest, exception: BaseException) -> HttpResponse | None:
        """Answer 503 if no connection came free in time, or none could be made, and 504 if it took too long."""
        # The ORM raises Django's error classes, whose cause is the error of pgmonkey; database() raises that itself.
        cause = exception.__cause__ if isinstance(exception, OperationalError) else exception
        if isinstance(cause, (PoolTimeoutError, PoolFullError)):
            text = "The database is busy, please try again."
        elif isinstance(cause, (ServerUnavailableError, ConnectionTimeout)):
            text = "The database is not available, please try again."
        elif isinstance(cause, DeadlineExceededError):
            text = "The request took too long."
        else:
            return None
        if CommitUnknownError.precedes(cause):
            return None  # it must not be tried again, as what was done may be stored
        logger.warning("%s", " ".join(str(cause).split()))
        response = HttpResponse(text)
        return answered(response, 504) if isinstance(cause, DeadlineExceededError) else unavailable(response)


def _answer(request: HttpRequest, error: Exception) -> HttpResponseBase:
    """Return the answer of handler500 to a COMMIT that failed, or to what handler500 itself has raised.

    As Django does around each middleware, but in transactions: what handler500 writes follows its status.
    """
    try:
        return RequestTransactions(request).serve(lambda: response_for_exception(request, error))
    except Exception as second:
        if settings.DEBUG_PROPAGATE_EXCEPTIONS:
            raise
        # Django would call it once more, outside of any transaction.
        logging.getLogger("django.request").error("handler500 failed: %s", request.path, exc_info=second)
        return HttpResponseServerError()
