"""Every undocumented part of FastAPI and Starlette that this integration relies on.

Where a part is missing or works differently, `check` raises RuntimeError when an application is set up: otherwise a
transaction could lose its end unnoticed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from functools import lru_cache, wraps
from importlib import import_module
from importlib.abc import InspectLoader
from importlib.util import find_spec
from inspect import CO_GENERATOR, isasyncgenfunction
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, cast

import fastapi
import starlette
from fastapi import routing
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import HTTPConnection, Request

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Scope

_TESTED = "FastAPI 0.121 to 0.165 with Starlette 0.49 to 1.10"
# Where FastAPI keeps the exit stack of the dependencies of the scope "function".
_FUNCTION_STACK = "fastapi_function_astack"
# The key in the ASGI scope under which Starlette looks for the exception handlers of the application.
_EXCEPTION_HANDLERS = "starlette.exception_handlers"
# What applies them, in each module that does: around an endpoint, and around all that is inside of the middlewares.
_HANDLE_EXCEPTIONS = "wrap_app_handling_exceptions"
_HANDLING = ("starlette.middleware.exceptions", "starlette.routing", "fastapi.routing")

# What makes the function that calls an endpoint, with its dependencies.
_MAKE_CALL = "get_request_handler"

# What enters the generator of a dependency, and what is nested in it.
_ENTERING = ("__enter__", "enter_context")

# What their sources contain as long as they use what the functions below replace and read.
_SOURCES = {
    "fastapi.routing": (f'"{_FUNCTION_STACK}"', f"{_HANDLE_EXCEPTIONS}(app, request)(", f"return {_MAKE_CALL}("),
    "starlette.routing": (f"{_HANDLE_EXCEPTIONS}(app, request)(",),
    "starlette.middleware.exceptions": (f'"{_EXCEPTION_HANDLERS}"', f"{_HANDLE_EXCEPTIONS}(self.app, conn)("),
    "starlette._exception_handler": (f'"{_EXCEPTION_HANDLERS}"',),
    "starlette.middleware.errors": ("self.app(", "self.handler("),
    "starlette.applications": ("self.build_middleware_stack()", "self.middleware_stack("),
}

# What a handler returns is a response, None for a WebSocket, or something to await for either.
Handler = Callable[[HTTPConnection, Exception], object]


HandleExceptions = Callable[["ASGIApp", HTTPConnection], "ASGIApp"]
"""Puts the exception handlers in the scope of the connection around the application."""


_Call = Callable[[Request], Coroutine[Any, Any, "Response"]]


class Guarding(Protocol):
    """Makes of a `HandleExceptions` another one."""

    def __call__(self, handle: HandleExceptions, *, at_endpoint: bool) -> HandleExceptions: ...


def unsupported(difference: str) -> RuntimeError:
    """Return the error that says in which way the installed frameworks differ from those that were tested."""
    return RuntimeError(
        f"FastAPI {fastapi.__version__} with Starlette {starlette.__version__}: {difference}; this release of pgmonkey"
        f" works with {_TESTED}: install one of these, or a release of pgmonkey that knows yours"
    )


try:
    from starlette._exception_handler import wrap_app_handling_exceptions
except ImportError:
    raise unsupported(f"starlette._exception_handler has no {_HANDLE_EXCEPTIONS}") from None
try:
    from starlette._utils import is_async_callable
except ImportError:
    raise unsupported("starlette._utils has no is_async_callable") from None


# -- requests ---------------------------------------------------------------------------------------------------------


def end_of_function(scope: Scope) -> AsyncExitStack:
    """Return the stack that FastAPI closes when the endpoint has returned, before it sends the response."""
    stack = scope.get(_FUNCTION_STACK)
    if not isinstance(stack, AsyncExitStack):
        raise unsupported(f"the scope of a request has no AsyncExitStack {_FUNCTION_STACK!r}")
    return stack


def gives_to_plain_endpoint(scope: Scope, dependency: object) -> bool:
    """Return whether a ``def`` endpoint serves *scope*, and itself asks for *dependency*, a coroutine function."""
    dependant = getattr(scope.get("route"), "dependant", None)
    endpoint = scope.get("endpoint")
    if dependant is None or is_async_callable(endpoint) or isasyncgenfunction(endpoint):
        return False
    # Those in a list of dependencies have no name: nothing of them gets to the endpoint.
    return any(each.call is dependency and each.name is not None for each in dependant.dependencies)


def is_entered_by_dependency(frame: FrameType) -> bool:
    """Return whether the ``with`` statement in *frame* is one that a ``def`` dependency yields in.

    FastAPI enters such a dependency in a thread, as the only thing that it does there.
    """
    above: FrameType | None = frame
    while above is not None and (above.f_code.co_flags & CO_GENERATOR or above.f_code.co_name in _ENTERING):
        above = above.f_back
    below = None if above is None or above is frame else above.f_back
    return below is not None and below.f_code.co_name == "_bootstrap_inner"  # of threading.Thread


# -- exceptions -------------------------------------------------------------------------------------------------------


def handle_exceptions(app: ASGIApp, connection: HTTPConnection) -> ASGIApp:
    """Return *app* inside of the exception handlers that are in the scope of *connection*, as Starlette does."""
    return wrap_app_handling_exceptions(app, cast("Request", connection))


def guard_exceptions(guarding: Guarding) -> None:
    """Replace how exception handlers are put around whatever serves a request in this process, by *guarding*.

    An application may be mounted where nothing leads to it, inside of a function: only the way that they all handle
    exceptions is common to them.
    """
    for name in _HANDLING:
        module = import_module(name)
        handle: HandleExceptions = getattr(module, _HANDLE_EXCEPTIONS)
        if not hasattr(handle, "guards"):
            guarded = wraps(handle)(guarding(handle, at_endpoint=name.endswith(".routing")))
            guarded.__dict__["guards"] = True
            setattr(module, _HANDLE_EXCEPTIONS, guarded)


def watch_endpoints(note: Callable[[Scope, Exception], Awaitable[None]]) -> None:
    """Let *note* hear what the endpoints of routes that are made from now on raise, before anybody can answer that.

    A class of routes may answer it, or a dependency that yields: neither leads to the exception handlers.
    """
    make_call: Callable[..., _Call] | None = getattr(routing, _MAKE_CALL, None)
    if make_call is None or hasattr(make_call, "watches"):
        return  # `check` refuses a FastAPI without it

    @wraps(make_call)
    def make_watched(*arguments: Any, **options: Any) -> _Call:
        call = make_call(*arguments, **options)

        async def watched(request: Request) -> Response:
            try:
                return await call(request)
            except Exception as error:
                await note(request.scope, error)
                raise

        return watched

    make_watched.__dict__["watches"] = True
    setattr(routing, _MAKE_CALL, make_watched)


def handlers_by_class(scope: Scope) -> Mapping[object, Handler]:
    """Return the exception handlers of the application that serves *scope*, but for those by status."""
    # Those are for HTTPException, which neither a COMMIT raises nor a pool.
    found: Mapping[object, Handler] = scope.get(_EXCEPTION_HANDLERS, ({}, {}))[0]
    return found


def handler_for_everything(app: Starlette) -> Handler | None:
    """Return the handler of *app* for Exception; None where the debug page replaces it."""
    handlers = cast("Mapping[object, Handler]", app.exception_handlers)
    found = [handlers[key] for key in handlers if key in (500, Exception)]
    return found[-1] if found and not app.debug else None


async def call_handler(handler: Handler, connection: HTTPConnection, error: Exception) -> Response:
    """Call *handler* as Starlette does."""
    if is_async_callable(handler):
        awaited = cast("Awaitable[Response]", handler(connection, error))
        return await awaited
    return cast("Response", await run_in_threadpool(handler, connection, error))


# -- applications -----------------------------------------------------------------------------------------------------


def server_errors(stack: ASGIApp) -> ServerErrorMiddleware:
    """Return the outermost of the middlewares *stack*, or the one that another library has wrapped."""
    found: object = stack
    while not isinstance(found, ServerErrorMiddleware):
        found = getattr(found, "app", None)
        if found is None:
            raise unsupported("the middlewares of an application have no ServerErrorMiddleware")
    return found


# -- the check --------------------------------------------------------------------------------------------------------


def check(app: Starlette) -> None:
    """Raise RuntimeError unless *app* has what this integration uses, and the frameworks' sources use it too."""
    if not isinstance(getattr(app, "exception_handlers", None), dict):
        raise unsupported("an application has no dict 'exception_handlers'")
    if not hasattr(app, "middleware_stack") or not callable(getattr(app, "build_middleware_stack", None)):
        raise unsupported("an application has no 'middleware_stack' or no 'build_middleware_stack()'")
    for name in _HANDLING:
        if not callable(getattr(import_module(name), _HANDLE_EXCEPTIONS, None)):
            raise unsupported(f"{name} has no {_HANDLE_EXCEPTIONS}()")
    if not callable(getattr(routing, _MAKE_CALL, None)):
        raise unsupported(f"fastapi.routing has no {_MAKE_CALL}()")
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
