"""Pure ASGI middleware: a request's transaction ends just before its response begins."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ._app import PGMonkey


class Refused(Exception):
    """Why a unit of work is rolled back that no exception ended: the status that was returned."""


class _CommitFailed(Exception):
    """Carries a failed COMMIT past the application, whose handlers would take the response for started."""


class TransactionMiddleware:
    """Commit or roll back what a request did when its status is known, before the client learns of it."""

    def __init__(self, app: ASGIApp, pgmonkey: PGMonkey) -> None:
        self._app = app
        self._pgmonkey = pgmonkey

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        units = self._pgmonkey.begin()
        failure: Exception | None = None

        async def send_after_commit(message: Message) -> None:
            nonlocal failure
            if message["type"] == "http.response.start":
                try:
                    await units.finish(Refused(message["status"]) if message["status"] >= 400 else None)
                except Exception as error:
                    failure = error
                    raise _CommitFailed from error
            await send(message)

        try:
            await self._app(scope, receive, send_after_commit)
        except _CommitFailed:
            if failure is None:  # of another database's middleware further out
                raise
        except BaseException as error:
            await units.finish(error)
            raise
        else:
            await units.finish(Refused("no response"))
            return
        await _answer(failure, scope, receive, send)


async def _answer(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer *error* as the application's own handlers do, or raise it where it has none."""
    handlers: dict[Any, Callable[..., Any]] = scope.get("starlette.exception_handlers", ({}, {}))[0]
    handler = next((handlers[cls] for cls in type(error).__mro__ if cls in handlers), None)
    if handler is None:
        raise error
    request = Request(scope, receive)
    if inspect.iscoroutinefunction(handler):
        response = await handler(request, error)
    else:
        response = await run_in_threadpool(handler, request, error)
    answer: Callable[[Scope, Receive, Send], Awaitable[None]] = response
    await answer(scope, receive, send)
