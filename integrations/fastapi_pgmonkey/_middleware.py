"""Pure ASGI middleware: a request's transaction ends just before its response begins."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from starlette._utils import is_async_callable
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request

from ._requests import Receiver, RequestUnits, Watch, current

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ._app import PGMonkey

logger = logging.getLogger("pgmonkey")

UNITS = "pgmonkey"
"""Where in the scope the databases of the application are, each with the units of work of the request."""
_HANDLERS = "starlette.exception_handlers"

Handler = Callable[..., Any]


class Refused(Exception):
    """Why a unit of work is rolled back that no exception ended: the status that was returned."""


class _CommitFailed(Exception):
    """Carries a failed COMMIT past the application, whose handlers would take the response for started."""


class TransactionMiddleware:
    """Commit or roll back what a request did when its status is known, before the client learns of it."""

    def __init__(self, app: ASGIApp, pgmonkey: PGMonkey[Any]) -> None:
        self._app = app
        self._pgmonkey = pgmonkey

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request, or one WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        databases: dict[PGMonkey[Any], RequestUnits | None] = scope.setdefault(UNITS, {})
        databases[self._pgmonkey] = None
        token = current.set(scope)
        try:
            if scope["type"] == "http" and self._pgmonkey.transaction == "request":
                await self._request(scope, receive, send, databases)
            else:
                await self._app(scope, receive, send)
        finally:
            current.reset(token)
            databases.pop(self._pgmonkey, None)

    async def _request(
        self, scope: Scope, receive: Receive, send: Send, databases: dict[PGMonkey[Any], RequestUnits | None]
    ) -> None:
        receiver = Receiver(receive)
        watch = Watch(receiver)
        watched = self._pgmonkey.cancel_on_disconnect
        units = databases[self._pgmonkey] = RequestUnits(self._pgmonkey, scope, watch.start if watched else None)
        watch.over(units)
        failure: Exception | None = None

        async def send_after_commit(message: Message) -> None:
            nonlocal failure
            if message["type"] == "http.response.start":
                failure = None  # if there was one, something in the application answers it
                if watch.stop():
                    await watch.stopped()
                try:
                    await units.finish(_refusal(message["status"]))
                except Exception as error:
                    failure = error
                    raise _CommitFailed from error
            await send(message)

        try:
            await self._app(scope, receiver if watched else receive, send_after_commit)
        except _CommitFailed:
            if failure is None:  # of another database's middleware further out
                raise
        except BaseException as error:
            if watch.stop():
                await watch.stopped()
            await units.finish(error)
            if watch.client_gone and isinstance(error, Exception):
                logger.info("a client left before it was answered; what its request did was undone: %s", error)
                return
            raise
        finally:
            if watch.stop():
                await watch.stopped()
        if not units.finished:
            await units.finish(Refused("no response"))
        if failure is not None and not watch.client_gone:
            databases[self._pgmonkey] = units = RequestUnits(self._pgmonkey, scope, None)
            await _answer(failure, units, scope, receive, send)


class RollBackFirst:
    """Let an application's exception handlers find what the request did undone, and begin anew."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._known: tuple[Any, Any] = (None, None)
        self._wrapped: tuple[dict[Any, Handler], ...] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request, or whatever else there is."""
        handlers = scope.get(_HANDLERS)
        if handlers is not None:
            if handlers[0] is not self._known[0] or handlers[1] is not self._known[1]:
                self._known = handlers
                self._wrapped = tuple({key: _after_roll_back(each) for key, each in kind.items()} for kind in handlers)
            scope[_HANDLERS] = self._wrapped
        await self.app(scope, receive, send)


def _after_roll_back(handler: Handler) -> Handler:
    async def handle(connection: HTTPConnection, error: Exception) -> Any:
        databases: Mapping[PGMonkey[Any], RequestUnits | None] = connection.scope.get(UNITS, {})
        for units in databases.values():
            if units is not None:
                await units.roll_back(error)
        if is_async_callable(handler):
            return await handler(connection, error)
        return await run_in_threadpool(handler, connection, error)

    return handle


def _refusal(status: int) -> Refused | None:
    return Refused(status) if status >= 400 else None


async def _answer(error: Exception, units: RequestUnits, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer *error* as the application's own handlers do, or raise it where it has none."""
    handlers: Mapping[Any, Handler] = scope.get(_HANDLERS, ({}, {}))[0]
    handler = next((handlers[cls] for cls in type(error).__mro__ if cls in handlers), None)
    if handler is None:
        raise error
    try:
        response: Any = await handler(Request(scope, receive), error)
    except BaseException as failure:
        await units.finish(failure)
        raise
    await units.finish(_refusal(response.status_code))
    answer: Callable[[Scope, Receive, Send], Awaitable[None]] = response
    await answer(scope, receive, send)
