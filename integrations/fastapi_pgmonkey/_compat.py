"""Every undocumented part of FastAPI and Starlette that this integration relies on.

Where a part is missing or works differently, `check` raises RuntimeError when an application is set up: otherwise a
transaction could lose its end unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from functools import lru_cache
from importlib.abc import InspectLoader
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import fastapi
import starlette
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.routing import Mount

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    class CoroutineApp(Protocol):
        """An ASGI application that is a coroutine function, as a router is."""

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


_TESTED = "FastAPI 0.121 to 0.165 with Starlette 0.49 to 1.10"
# Where FastAPI keeps the exit stack of the dependencies of the scope "function".
_FUNCTION_STACK = "fastapi_function_astack"

EXCEPTION_HANDLERS = "starlette.exception_handlers"
"""The key in the ASGI scope under which Starlette looks for the exception handlers of the application."""

# What their sources contain as long as they use what the functions below replace and read.
_SOURCES = {
    "fastapi.routing": (f'"{_FUNCTION_STACK}"', "wrap_app_handling_exceptions("),
    "starlette._exception_handler": (f'"{EXCEPTION_HANDLERS}"',),
    "starlette.middleware.exceptions": (f'"{EXCEPTION_HANDLERS}"',),
    "starlette.applications": ("self.middleware_stack(",),
    "starlette.routing": ("self.middleware_stack(",),
}

# What a handler returns is a response, None for a WebSocket, or something to await for either.
Handler = Callable[[HTTPConnection, Exception], object]
HandlersByKey = Mapping[object, Handler]
Handlers = tuple[HandlersByKey, HandlersByKey]
"""The exception handlers of an application: first those for classes, then those for status codes."""


def unsupported(difference: str) -> RuntimeError:
    """Return the error that says in which way the installed frameworks differ from those that were tested."""
    return RuntimeError(
        f"FastAPI {fastapi.__version__} with Starlette {starlette.__version__}: {difference}; this release of pgmonkey"
        f" works with {_TESTED}: install one of these, or a release of pgmonkey that knows yours"
    )


try:
    from starlette._utils import is_async_callable as is_async_callable
except ImportError:
    raise unsupported("starlette._utils has no is_async_callable") from None


# -- requests ---------------------------------------------------------------------------------------------------------


def end_of_function(scope: Scope) -> AsyncExitStack:
    """Return the stack that FastAPI closes when the endpoint has returned, before it sends the response."""
    stack = scope.get(_FUNCTION_STACK)
    if not isinstance(stack, AsyncExitStack):
        raise unsupported(f"the scope of a request has no AsyncExitStack {_FUNCTION_STACK!r}")
    return stack


# -- applications -----------------------------------------------------------------------------------------------------


def with_mounted(app: Starlette) -> Iterator[Starlette]:
    """Yield *app* and the applications that are mounted on it, on these, and so on."""
    yield app
    for route in app.routes:
        if isinstance(route, Mount):
            if not hasattr(route, "app"):
                raise unsupported("starlette.routing.Mount has no attribute 'app'")
            if isinstance(route.app, Starlette):
                yield from with_mounted(route.app)


def add_innermost(app: Starlette, middleware: Callable[[ASGIApp], CoroutineApp]) -> None:
    """Put *middleware* between *app* and its router, inside of the middleware that handles exceptions."""
    app.router.middleware_stack = middleware(app.router.middleware_stack)


def has_innermost(app: Starlette, kind: type) -> bool:
    """Return whether `add_innermost` put a middleware of the class *kind* there."""
    return isinstance(app.router.middleware_stack, kind)


def add_outermost(app: Starlette, middleware: Middleware) -> None:
    """Put *middleware* around *app*, also when its lifespan is running already."""
    # Not add_middleware(), which refuses once the stack is built.
    app.user_middleware.insert(0, middleware)
    if app.middleware_stack is not None:
        app.middleware_stack = app.build_middleware_stack()


def has_middleware(app: Starlette, argument: str, value: object) -> bool:
    """Return whether *app* has a middleware that is given *value* as *argument*."""
    return any(middleware.kwargs.get(argument) is value for middleware in app.user_middleware)


# -- the check --------------------------------------------------------------------------------------------------------


def check(app: Starlette) -> None:
    """Raise RuntimeError unless *app* has what this integration uses, and the frameworks' sources use it too."""
    if not isinstance(getattr(app, "exception_handlers", None), dict):
        raise unsupported("an application has no dict 'exception_handlers'")
    # has_middleware() finds by kwargs what was installed before.
    middleware = getattr(app, "user_middleware", None)
    if not isinstance(middleware, list) or not all(hasattr(each, "kwargs") for each in middleware):
        raise unsupported("an application has no list 'user_middleware' of starlette.middleware.Middleware")
    if not hasattr(app, "middleware_stack") or not callable(getattr(app, "build_middleware_stack", None)):
        raise unsupported("an application has no 'middleware_stack' or no 'build_middleware_stack()'")
    if not callable(getattr(app.router, "middleware_stack", None)):
        raise unsupported("the router of an application has no 'middleware_stack'")
    # That the attributes exist does not say that the frameworks use them.
    _check_sources()


@lru_cache  # once in a process: the frameworks do not change
def _check_sources() -> None:
    for name, texts in _SOURCES.items():
        source = _source(name)
        for text in texts:
            if source is not None and text not in source:
                raise unsupported(f"the source of {name} does not contain {text}")


def _source(name: str) -> str | None:
    """Return the text of the module *name*; None where it was frozen or compiled, or cannot be read."""
    spec = find_spec(name)
    if spec is None:
        raise unsupported(f"there is no module {name}")
    try:
        return spec.loader.get_source(name) if isinstance(spec.loader, InspectLoader) else None
    except ImportError:
        return None
