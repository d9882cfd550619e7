"""Every undocumented part of Flask and Werkzeug that this extension relies on.

`check` runs when an application is set up.  Where a part is missing or works differently, it raises RuntimeError
before a request is served: otherwise a transaction could lose its end unnoticed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, cast

from flask import Flask, Request, current_app, has_request_context, request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from werkzeug.local import LocalProxy
    from werkzeug.routing import Rule

_TESTED = "Flask 3.0 to 3.1 with Werkzeug 3.0 to 3.1"
# Where Werkzeug keeps the request in its WSGI environment.
_REQUEST = "werkzeug.request"
_CALLED_WITH_ONE_ARGUMENT = ("handle_user_exception", "handle_exception", "make_response", "process_response")
_EXPECTED = {
    "/returns": ["wsgi_app", "preprocess_request /returns", "response 200"],
    "/raises": ["wsgi_app", "preprocess_request /raises", "handle_user_exception", "handler", "response 418"],
}


def _unsupported(difference: str) -> RuntimeError:
    return RuntimeError(
        f"Flask {version('flask')} with Werkzeug {version('werkzeug')}: {difference}; this release of pgmonkey works"
        f" with {_TESTED}: install one of these, or a release of pgmonkey that knows yours"
    )


# -- requests ---------------------------------------------------------------------------------------------------------

try:
    # A proxy looks its object up again for each attribute, so pgmonkey asks for the object once.
    get_app: Callable[[], Flask] = cast("LocalProxy[Flask]", current_app)._get_current_object
    get_request: Callable[[], Request] = cast("LocalProxy[Request]", request)._get_current_object
except (AttributeError, RuntimeError):  # a proxy looks for what it does not have in its object, and has none here
    raise _unsupported("flask.current_app or flask.request has no method _get_current_object()") from None


def route_of(environ: WSGIEnvironment) -> Rule | None:
    """Return the URL rule that the request of *environ* matched."""
    rule: Rule | None = getattr(environ.get(_REQUEST), "url_rule", None)
    return rule


# -- applications -----------------------------------------------------------------------------------------------------


def replace_method(app: Flask, name: str, replacement: Callable[..., object]) -> None:
    """Let Flask call *replacement* in place of the method *name* of *app*."""
    setattr(app, name, replacement)


def has_error_handler(app: Flask, error: type[Exception]) -> bool:
    """Return whether an error handler is registered on *app* for exactly the class *error*."""
    return error in app.error_handler_spec[None][None]


# -- the check --------------------------------------------------------------------------------------------------------


def check(app: Flask) -> None:
    """Raise RuntimeError unless *app* has what this extension uses, and Flask calls its parts as expected."""
    for name in ("wsgi_app", "preprocess_request", *_CALLED_WITH_ONE_ARGUMENT):
        if not callable(getattr(app, name, None)):
            raise _unsupported(f"an application has no method {name}()")
    # Later releases of Flask may pass the context first.
    for name in _CALLED_WITH_ONE_ARGUMENT:
        signature = inspect.signature(getattr(app, name))
        try:
            signature.bind(None)
        except TypeError:
            raise _unsupported(f"{name}{signature} cannot be called with one argument") from None
    try:
        has_error_handler(app, Exception)
    except (AttributeError, KeyError, TypeError):
        raise _unsupported("an application has no mapping error_handler_spec[None][None]") from None
    # That the methods exist does not say that Flask calls them.
    _check_requests()


@lru_cache  # once in a process: Flask does not change
def _check_requests() -> None:
    check = _Check()
    for path, expected in _EXPECTED.items():
        calls = check.serve(path)
        if calls != expected:
            raise _unsupported(f"a request is served in the order {calls}, not in the order {expected}")


class _CheckError(Exception):
    """What a view of the check raises."""


class _Check:
    """A throwaway application that writes down in which order its parts are called."""

    def __init__(self) -> None:
        self._calls: list[str] = []
        self._app = app = Flask(__name__, static_folder=None)
        app.add_url_rule("/returns", "returns", lambda: "")
        app.add_url_rule("/raises", "raises", self._raise)
        app.register_error_handler(_CheckError, self._handler)
        self._wsgi_app = app.wsgi_app
        self._preprocess_request = app.preprocess_request
        self._handle_user_exception = app.handle_user_exception
        for replacement in (self.wsgi_app, self.preprocess_request, self.handle_user_exception):
            replace_method(app, replacement.__name__, replacement)

    def serve(self, path: str) -> list[str]:
        """Return what was called for a request of *path*."""
        self._calls = []
        environ = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": ""}
        environ |= {"SERVER_NAME": "localhost", "SERVER_PORT": "80", "wsgi.url_scheme": "http"}
        self._app(environ, self._start_response)
        return self._calls

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> object:
        self._calls.append("wsgi_app")
        return self._wsgi_app(environ, start_response)

    def preprocess_request(self, *context: object) -> object:
        self._calls.append(f"preprocess_request {route_of(get_request().environ)}")
        return self._preprocess_request(*context)

    def handle_user_exception(self, error: Exception) -> object:
        self._calls.append("handle_user_exception")
        return self._handle_user_exception(error)

    def _raise(self) -> str:
        raise _CheckError

    def _handler(self, error: Exception) -> tuple[str, int]:
        self._calls.append("handler")
        return "", 418

    def _start_response(self, status: str, headers: object, exc_info: object = None) -> Callable[[bytes], object]:
        # The extension commits here, with session values that may come from the request.
        self._calls.append(f"response {status[:3]}" if has_request_context() else "response outside of the request")
        return len
