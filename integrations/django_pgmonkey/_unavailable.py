"""The answer while the database cannot be used."""

from __future__ import annotations

from typing import TypeVar

from django.http import HttpResponse

Response = TypeVar("Response", bound=HttpResponse)

_RETRY_AFTER = "1"  # seconds


def unavailable(response: Response) -> Response:
    """Make *response* a 503 with ``Retry-After``; who calls this logs why."""
    response["Retry-After"] = _RETRY_AFTER
    return answered(response, 503)


def answered(response: Response, status: int) -> Response:
    """Give *response* the *status* of an error that is logged already."""
    response.status_code = status
    # Or Django logs it once more, as an error, which its default settings send by mail.
    vars(response)["_has_been_logged"] = True
    return response
