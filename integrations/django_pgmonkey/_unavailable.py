"""The answer while the database cannot be used."""

from __future__ import annotations

from typing import TypeVar

from django.http import HttpResponse

Response = TypeVar("Response", bound=HttpResponse)

_RETRY_AFTER = "1"  # seconds


def unavailable(response: Response) -> Response:
    """Make *response* a 503 with ``Retry-After``; who calls this logs why."""
    response.status_code = 503
    response["Retry-After"] = _RETRY_AFTER
    # Or Django logs it once more, as an error, which its default settings send by mail.
    vars(response)["_has_been_logged"] = True
    return response
