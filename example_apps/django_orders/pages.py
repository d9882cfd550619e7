"""What all pages have, and the pages for what went wrong."""

import json
from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string

from .. import shop


def context(request: HttpRequest) -> dict[str, Any]:
    return shop.context("Django")


class Problems:
    """Shows what went wrong as a page, and to the API as JSON; also the 503 while the database is away."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self._get_response(request)
        if response.status_code in shop.PROBLEMS:
            title, text = shop.PROBLEMS[response.status_code]
            if request.path.startswith("/api/"):
                response.content = json.dumps({"detail": text})
                response["Content-Type"] = "application/json"
            else:
                problem = {"status": response.status_code, "title": title, "text": text}
                response.content = render_to_string("problem.html", problem, request)
                response["Content-Type"] = "text/html; charset=utf-8"
        return response
