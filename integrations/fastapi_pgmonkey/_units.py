"""The units of work of a request: one for coroutines, one for threads, ended together."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from ._types import RequestDatabases

if TYPE_CHECKING:
    from starlette.types import Scope

DATABASES = "pgmonkey"
"""The key in the ASGI scope under which the databases of the application are, each with its `RequestUnits`."""

current_scope: ContextVar[Scope | None] = ContextVar("pgmonkey_request", default=None)
"""The ASGI scope of the request, or of the WebSocket, that the current context serves."""


class RequestUnits:
    """The two units of work of a request in one database."""

    def __init__(self, databases: RequestDatabases, scope: Scope, on_borrow: Callable[[], None] | None) -> None:
        # Called only when the pool reports who holds its connections: most requests never need the text.
        def label() -> str:
            return _route(scope)

        self.finished = False
        self._threads = databases.threads
        self._in_loop = databases.async_database.begin(label=label, on_borrow=on_borrow)
        self._in_threads = databases.sync_database.begin(label=label, on_borrow=on_borrow)

    async def finish(self, error: BaseException | None) -> None:
        """Commit both, or roll both back when there is an *error*; raise what makes a COMMIT fail.

        A second call does nothing.
        """
        if self.finished:
            return
        # Before the first await: the middleware may call again while this call waits.
        self.finished = True
        try:
            await self._in_loop.finish(error)
        except BaseException as failure:
            # What the threads did must not be committed without what the coroutines did.
            await self._threads.end(self._in_threads, self._in_threads.finish, failure)
            raise
        # Without a connection there is nothing to wait for, and no thread is needed.
        if self._in_threads.borrowed:
            await self._threads.end(self._in_threads, self._in_threads.finish, error)
        else:
            self._in_threads.finish(error)

    async def roll_back(self, error: BaseException) -> None:
        """Roll both back; the next statement starts a new transaction."""
        await self._in_loop.roll_back(error)
        await self._threads.end(self._in_threads, self._in_threads.roll_back, error)

    async def cancel(self, reason: str) -> None:
        """Cancel the running statement, roll both back, and refuse further statements."""
        await self._in_loop.cancel(reason)
        await self._threads.end(self._in_threads, self._in_threads.cancel, reason)


def _route(scope: Scope) -> str:
    """Return the route and the endpoint, never the path of the URL: that may contain personal data."""
    path = getattr(scope.get("route"), "path", None)
    name = f"{scope['method']} {path or '(no route)'}"
    code = getattr(scope.get("endpoint"), "__code__", None)
    if code is None:
        return name
    return f"{name}, {_relative(code.co_filename)}:{code.co_firstlineno} ({code.co_name})"


def _relative(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
