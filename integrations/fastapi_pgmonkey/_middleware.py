"""ASGI middleware that ends the transaction of a request just before its response starts."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, cast

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request

from ._compat import EXCEPTION_HANDLERS, Handler, Handlers, HandlersByKey, is_async_callable, unsupported
from ._disconnect import DisconnectWatch, MessageBuffer
from ._types import RequestDatabases
from ._units import DATABASES, RequestUnits, current_scope

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    # The handlers that `RollbackBeforeHandlers` has wrapped.
    AsyncHandler = Callable[[HTTPConnection, Exception], Awaitable[Response]]
    UnitsByDatabase = dict[RequestDatabases, RequestUnits | None]

logger = logging.getLogger("pgmonkey")


class RefusedError(Exception):
    """Why a unit of work is rolled back although nothing was raised: the status of the response, or none was sent."""


class _CommitFailedError(Exception):
    """Carries a failed COMMIT past the application.

    The application's own handlers would not answer it: for them the response has started.
    """


class TransactionMiddleware:
    """Commits or rolls back what a request did when its status is known, before the client learns of it."""

    def __init__(self, app: ASGIApp, pgmonkey: RequestDatabases) -> None:
        self._app = app
        self._pgmonkey = pgmonkey

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or one WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        # Each database of an application has a middleware of its own; they share this mapping.
        databases: UnitsByDatabase = scope.setdefault(DATABASES, {})
        databases[self._pgmonkey] = None
        token = current_scope.set(scope)
        try:
            if scope["type"] == "http" and self._pgmonkey.transaction == "request":
                await self._serve_in_transaction(scope, receive, send, databases)
            else:
                await self._app(scope, receive, send)
        finally:
            current_scope.reset(token)
            databases.pop(self._pgmonkey, None)

    async def _serve_in_transaction(
        self, scope: Scope, receive: Receive, send: Send, databases: UnitsByDatabase
    ) -> None:
        messages = MessageBuffer(receive)
        watch = DisconnectWatch(messages)
        watched = self._pgmonkey.cancel_on_disconnect
        units = databases[self._pgmonkey] = RequestUnits(self._pgmonkey, scope, watch.start if watched else None)
        watch.over(units)
        failure: Exception | None = None

        async def send_after_commit(message: Message) -> None:
            nonlocal failure
            if message["type"] == "http.response.start":
                failure = None  # the application answers an earlier failure itself
                # A cancellation that has begun must end first, or it could hit the COMMIT.
                if watch.stop():
                    await watch.stopped()
                try:
                    await units.finish(_refusal(message["status"]))
                except Exception as error:
                    failure = error
                    raise _CommitFailedError from error
            await send(message)

        try:
            await self._app(scope, messages if watched else receive, send_after_commit)
        except _CommitFailedError:
            if failure is None:  # raised by the middleware of another database, further out
                raise
        except BaseException as error:
            if watch.stop():
                await watch.stopped()
            await units.finish(error)
            # The error follows from the cancellation, and there is no client left to answer.
            if watch.client_gone and isinstance(error, Exception):
                logger.info("a client disconnected before it was answered; its request was rolled back: %s", error)
                return
            raise
        finally:
            if watch.stop():
                await watch.stopped()
        # The application returned without a response.
        if not units.finished:
            await units.finish(RefusedError("no response"))
        if failure is not None and not watch.client_gone:
            # The handler gets a new transaction, which the status of its response decides.
            databases[self._pgmonkey] = units = RequestUnits(self._pgmonkey, scope, None)
            await _answer(failure, units, scope, receive, send)


class RollbackBeforeHandlers:
    """Rolls a failed request back before the application's exception handlers run, which may use the database too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._known: Handlers = ({}, {})
        self._wrapped: Handlers = ({}, {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve whatever the router serves."""
        handlers: Handlers | None = scope.get(EXCEPTION_HANDLERS)
        if handlers is not None:
            # Starlette makes a new pair for each request, of the same two dictionaries.
            if handlers[0] is not self._known[0] or handlers[1] is not self._known[1]:
                self._known = handlers
                self._wrapped = _wrap(handlers[0]), _wrap(handlers[1])
            scope[EXCEPTION_HANDLERS] = self._wrapped
        elif DATABASES in scope:
            raise unsupported(f"the scope of a request has no exception handlers {EXCEPTION_HANDLERS!r}")
        await self.app(scope, receive, send)


def _wrap(handlers: HandlersByKey) -> HandlersByKey:
    return {key: _after_rollback(handler) for key, handler in handlers.items()}


def _after_rollback(handler: Handler) -> Handler:
    async def handle(connection: HTTPConnection, error: Exception) -> object:
        databases: Mapping[RequestDatabases, RequestUnits | None] = connection.scope.get(DATABASES, {})
        for units in databases.values():
            if units is not None:
                await units.roll_back(error)
        # As Starlette does with the handlers that are wrapped here.
        if is_async_callable(handler):
            return await cast("AsyncHandler", handler)(connection, error)
        return await run_in_threadpool(handler, connection, error)

    return handle


def _refusal(status: int) -> RefusedError | None:
    return RefusedError(status) if status >= 400 else None


async def _answer(error: Exception, units: RequestUnits, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer *error* as the application's own exception handlers do; raise it where there is none for it."""
    # Not those by status: they are for HTTPException, which no COMMIT raises.
    by_class: Mapping[object, AsyncHandler] = scope.get(EXCEPTION_HANDLERS, ({}, {}))[0]
    handler = next((by_class[cls] for cls in type(error).__mro__ if cls in by_class), None)
    if handler is None:
        raise error
    try:
        response = await handler(Request(scope, receive), error)
    except BaseException as failure:
        await units.finish(failure)
        raise
    await units.finish(_refusal(response.status_code))
    await response(scope, receive, send)
