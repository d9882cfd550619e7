"""Every undocumented part of FastAPI and Starlette that this integration relies on.

`check_application` and `check_requests` run when an application is set up.  Where a part is missing or works
differently, they raise RuntimeError before a request is served: otherwise a transaction could lose its end unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Protocol

import fastapi
import starlette
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import Mount

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    class CoroutineApp(Protocol):
        """An ASGI application that is a coroutine function, as a router is."""

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


_TESTED = "FastAPI 0.121 to 0.165 with Starlette 0.49 to 1.10"
# Where FastAPI keeps the exit stack of the dependencies of the scope "function".
_FUNCTION_STACK = "fastapi_function_astack"

EXCEPTION_HANDLERS = "starlette.exception_handlers"
"""The key in the ASGI scope under which Starlette looks for the exception handlers of the application."""

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


def check_application(app: Starlette) -> None:
    """Raise RuntimeError unless *app* has the attributes that the functions above use."""
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


class _CheckError(Exception):
    """What the endpoint of the check raises."""


class _Check:
    """A throwaway application that writes down in which order its parts are called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.app = FastAPI(openapi_url=None)
        self.app.add_api_route("/returns", self._returns)
        self.app.add_api_route("/raises", self._raises)
        self.app.add_exception_handler(_CheckError, self._replaced)
        # Only to be found: no request is sent to it.
        self.mounted = FastAPI(openapi_url=None)
        self.app.mount("/mounted", self.mounted)
        check_application(self.app)
        add_innermost(self.app, self._innermost)
        add_outermost(self.app, Middleware(self._outermost))

    async def serve(self, path: str) -> list[str]:
        """Return what was called for a request of *path*."""
        self.calls = []
        # What the ASGI specification requires of the scope of a request.
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http"}
        where = {"path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": []}
        await self.app({**scope, **where, "client": None, "server": None}, self._receive, self._send)
        return self.calls

    async def _receive(self) -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def _send(self, message: Message) -> None:
        pass  # `_outermost` has seen it

    def _outermost(self, app: ASGIApp) -> ASGIApp:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            async def note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self.calls.append(f"response {message['status']}")
                await send(message)

            await app(scope, receive, note)

        return middleware

    def _innermost(self, app: ASGIApp) -> CoroutineApp:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                by_class, by_status = scope[EXCEPTION_HANDLERS]
                scope[EXCEPTION_HANDLERS] = ({**by_class, _CheckError: self._handle}, {**by_status})
            except (KeyError, TypeError, ValueError):
                raise unsupported(f"the scope of a request has no exception handlers {EXCEPTION_HANDLERS!r}") from None
            await app(scope, receive, send)

        return middleware

    async def _returns(self, request: Request) -> Response:
        end_of_function(request.scope).callback(self.calls.append, "end of function")
        return PlainTextResponse("")

    async def _raises(self, request: Request) -> None:
        end_of_function(request.scope).callback(self.calls.append, "end of function")
        raise _CheckError

    async def _handle(self, request: HTTPConnection, error: Exception) -> Response:
        self.calls.append("handler")
        return PlainTextResponse("", 418)

    async def _replaced(self, request: Request, error: Exception) -> Response:
        self.calls.append("replaced handler")
        return PlainTextResponse("", 500)


_checked = False


async def check_requests() -> None:
    """Serve two requests of a throwaway application; raise RuntimeError unless its parts are called as expected.

    Done once in a process: the frameworks do not change.
    """
    global _checked
    if _checked:
        return
    check = _Check()
    if list(with_mounted(check.app)) != [check.app, check.mounted]:
        raise unsupported("a mounted application is not found among the routes")
    for path, expected in (
        # What ends with the function can still fail, and must do so before a response says success.
        ("/returns", ["end of function", "response 200"]),
        # The handler that is called is the one that the innermost middleware put into the scope.
        ("/raises", ["end of function", "handler", "response 418"]),
    ):
        calls = await check.serve(path)
        if calls != expected:
            raise unsupported(f"a request is served in the order {calls}, not in the order {expected}")
    _checked = True
