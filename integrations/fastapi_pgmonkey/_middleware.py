"""ASGI middleware that serves each request of an application with its transactions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from ._compat import guard_exceptions, server_errors, watch_endpoints
from ._request import REQUEST, RequestState, current_request, guarding, undo_raised
from ._sandboxes import find_sandbox
from ._types import RequestDatabases

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ._compat import Handler


class TransactionMiddleware:
    """Serves the requests of *owner* by *app*, its middlewares; *databases* may still grow."""

    def __init__(self, app: ASGIApp, owner: Starlette, databases: list[RequestDatabases]) -> None:
        self.app = app
        self._owner = owner
        self._databases = databases

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or one WebSocket."""
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if REQUEST in scope:  # this application is mounted in one that ends the transactions
            outer: RequestState = scope[REQUEST]
            outer.join(self._databases)
            await self.app(scope, receive, send)
            return
        if find_sandbox is not None and (refusal := find_sandbox(scope)) is not None:
            await refusal(scope, receive, send)
            return
        request = scope[REQUEST] = RequestState(self._owner, scope, self._databases)
        token = current_request.set(request)
        try:
            if kind == "http":
                await request.serve(self.app, receive, send)
            else:
                await self.app(scope, receive, send)
        finally:
            current_request.reset(token)
            del scope[REQUEST]  # breaks a reference cycle

    def in_transaction(self, handler: Handler) -> Handler:
        """Return *handler*, which Starlette calls outside of this middleware, so that it runs in a transaction, too."""

        async def handle(connection: HTTPConnection, error: Exception) -> Response:
            scope = connection.scope
            request = scope[REQUEST] = RequestState(self._owner, scope, self._databases)
            token = current_request.set(request)
            try:
                return await request.answer_by(handler, connection, error)
            finally:
                current_request.reset(token)
                del scope[REQUEST]

        return handle


class TransactionStack:
    """Builds the middlewares of *app*, and puts `TransactionMiddleware` around them all.

    As ``app.build_middleware_stack`` it does so whatever is added to the application before it starts, in any order.
    """

    def __init__(self, app: Starlette, databases: RequestDatabases) -> None:
        self.databases = [databases]
        self._app = app
        self._build = app.build_middleware_stack

    def __call__(self) -> ASGIApp:
        """Build them."""
        stack = self._build()
        self.surround(stack)
        return stack

    def surround(self, stack: ASGIApp) -> None:
        """Do so with middlewares that were built already."""
        # Starlette's own stays around: it answers what nobody does, and other libraries look for it.
        errors = server_errors(stack)
        middleware = errors.app = TransactionMiddleware(errors.app, self._app, self.databases)
        if errors.handler is not None:
            errors.handler = cast("Any", middleware.in_transaction(cast("Handler", errors.handler)))


def install(app: Starlette, databases: RequestDatabases) -> None:
    """Let the requests of *app* be transactions on *databases*; once is enough."""
    guard_exceptions(guarding)
    stack = app.__dict__.get("build_middleware_stack")
    if isinstance(stack, TransactionStack):
        if databases not in stack.databases:
            stack.databases.append(databases)
        return
    stack = app.__dict__["build_middleware_stack"] = TransactionStack(app, databases)
    # Built already when it is a lifespan that sets the application up: a second time would make each middleware twice.
    if app.middleware_stack is not None:
        stack.surround(app.middleware_stack)


# When this is imported, as routes that use a database are made later.
watch_endpoints(undo_raised)
