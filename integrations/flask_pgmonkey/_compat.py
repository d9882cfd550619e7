"""Every undocumented part of Flask and Werkzeug that this extension relies on.

Where a part is missing or works differently, `check` raises RuntimeError when an application is set up: otherwise a
transaction could lose its end unnoticed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from importlib.abc import InspectLoader
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from flask import Flask, Request, current_app, request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from werkzeug.local import LocalProxy

_TESTED = "Flask 3.0 to 3.1 with Werkzeug 3.0 to 3.1"
_CALLED = ("wsgi_app", "preprocess_request", "dispatch_request", "full_dispatch_request")
_CALLED_WITH_ONE_ARGUMENT = (
    "handle_user_exception",
    "handle_exception",
    "finalize_request",
    "process_response",
    "log_exception",
    "do_teardown_request",
    "do_teardown_appcontext",
)
# What their sources contain as long as they use what the functions below replace and read.
_SOURCES = {
    "flask.app": (
        *("self.wsgi_app(", "self.preprocess_request(", "self.dispatch_request(", "self.full_dispatch_request("),
        *("self.handle_user_exception(", "self.handle_exception(", "self.process_response("),
    ),
    "flask.ctx": ("app.do_teardown_request(", "app.do_teardown_appcontext("),
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


# -- applications -----------------------------------------------------------------------------------------------------


def replace_method(app: Flask, name: str, replacement: Callable[..., object]) -> None:
    """Let Flask call *replacement* in place of the method *name* of *app*."""
    setattr(app, name, replacement)


def replace_call(
    app: Flask, replacement: Callable[[WSGIApplication, WSGIEnvironment, StartResponse], Iterable[bytes]]
) -> None:
    """Let *replacement* be called in place of *app*, with what would be called, and the arguments.

    That is outside of what is put around ``app.wsgi_app``, whenever it is.  Python looks a ``__call__`` up in the
    class, so the application gets a class of its own, derived from the one it had.
    """
    base = type(app)

    def __call__(self: Flask, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return replacement(partial(base.__call__, self), environ, start_response)

    members = {"__call__": __call__, "__module__": base.__module__, "__qualname__": base.__qualname__}
    app.__class__ = type(base.__name__, (base,), members)


def has_error_handler(app: Flask, error: type[Exception]) -> bool:
    """Return whether an error handler is registered on *app* for exactly the class *error*."""
    return error in app.error_handler_spec[None][None]


# -- the check --------------------------------------------------------------------------------------------------------


def check(app: Flask) -> None:
    """Raise RuntimeError unless *app* has what this extension uses, and Flask's sources use it too."""
    for name in (*_CALLED, *_CALLED_WITH_ONE_ARGUMENT):
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
    _check_sources()


@lru_cache  # once in a process: Flask does not change
def _check_sources() -> None:
    for name, texts in _SOURCES.items():
        source = _source(name)
        for text in texts:
            if source is not None and text not in source:
                raise _unsupported(f"the source of {name} does not contain {text}")


def _source(name: str) -> str | None:
    """Return the text of the module *name*; None where it was frozen or compiled, or cannot be read."""
    spec = find_spec(name)
    if spec is None:
        raise _unsupported(f"there is no module {name}")
    try:
        return spec.loader.get_source(name) if isinstance(spec.loader, InspectLoader) else None
    except ImportError:
        return None
