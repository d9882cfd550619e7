"""One request: what it does in its databases, how its transactions end, and who answers when that fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING

from pgmonkey import CommitUnknownError, Deadline

from ._compat import (
    HandleExceptions,
    Handler,
    call_handler,
    handle_exceptions,
    handler_for_everything,
    handlers_by_class,
    is_entered_by_dependency,
)
from ._disconnect import DisconnectWatch, MessageBuffer
from ._overload import answer_overload
from ._overrides import follow_overrides
from ._types import RequestDatabases
from ._units import RefusedError, RequestUnits, is_answer, route_of

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection
    from starlette.responses import JSONResponse, Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("pgmonkey")

REQUEST = "pgmonkey"
"""The key in the ASGI scope under which the `RequestState` is."""
_DECISION = "pgmonkey.decision"
"""The key in the ASGI scope under which the handler for Exception finds what was decided before."""

current_request: ContextVar[RequestState | None] = ContextVar("pgmonkey_request", default=None)
"""The request, or the WebSocket, that the current context serves."""


class RequestState:
    """A request in the databases of its application *app*; of a WebSocket only which they are.

    Its units of work end when the status that leaves is known, before the client learns of it.
    """

    def __init__(self, app: Starlette, scope: Scope, databases: Iterable[RequestDatabases]) -> None:
        self.scope = scope
        self.databases: dict[RequestDatabases, RequestUnits | None] = {}
        """Each with its units of work; None where each statement is its own transaction."""
        self._deadlines: dict[RequestDatabases, Deadline | None] = {}
        self._app = app
        self._ended = False
        # What keep_request() or rollback_request() decided; None: the status decides.
        self._keep: bool | None = None
        self._messages: MessageBuffer | None = None
        self._watch: DisconnectWatch | None = None
        self.connection: HTTPConnection | None = None
        """The innermost one that has exception handlers, which answer a COMMIT that fails."""
        self.at_endpoint = False
        """Whether that is an endpoint's."""
        # A COMMIT that failed, until somebody has answered it.
        self._failure: Exception | None = None
        self.answered: Exception | None = None
        """A COMMIT that failed, when a handler has answered it: nothing is sent of the response that it replaces."""
        self._raised_afterwards: Exception | None = None
        self.unfinished = False
        """Whether an endpoint has begun and not answered: a middleware may answer before it, or cancel it."""
        # Whether the answer to a COMMIT was lost: nobody may be told to try again.
        self._may_be_stored = False
        self._several = False
        # Where a request is no transaction: the places for those that its dependencies open in threads.
        self._places: list[object] = []
        self._place: object = None
        """The place for its units of work in the context that serves it."""
        self.join(databases)

    def join(self, databases: Iterable[RequestDatabases]) -> None:
        """Take *databases* in, also those of a mounted application."""
        for each in databases:
            if each not in self.databases:
                self._several = bool(self.databases)
                if each.deadlines is not None and self.scope["type"] == "http":
                    self._deadlines[each] = each.deadlines.begin(_header(self.scope, each.deadlines.header))
                if each.transaction == "request" and self.scope["type"] == "http" and not self._ended:
                    self.databases[each] = RequestUnits(each, self.scope, self._watch_client)
                    self._place = self._place or each.async_database.begin_on_demand(self._begin)
                else:
                    self.databases[each] = None
                    self._places.append(each.sync_database.share(is_entered_by_dependency))

    def deadline(self, databases: RequestDatabases) -> Deadline | None:
        """Return when the statements in *databases* must have ended; None is never, and once the response starts."""
        return None if self._ended else self._deadlines.get(databases)

    def _begin(self, database: object) -> object:
        """Return the request's unit of work in *database*; None where it has none, or has ended."""
        if self._ended:
            return None
        for units in self.databases.values():
            if units is not None and (unit := units.begin(database)) is not None:
                return unit
        return None

    def decide(self, *, keep: bool) -> None:
        """Commit, or roll back, whatever the status says.  Raises RuntimeError where no transaction is left to end."""
        if self._ended or not any(self.databases.values()):
            raise RuntimeError("this request has no transaction, or has ended it: its response has started")
        self._keep = keep

    # -- serving ----------------------------------------------------------------------------------------------------

    async def serve(self, app: ASGIApp, receive: Receive, send: Send) -> None:
        """Let *app* serve the request, and end its units of work before the response starts."""
        for each in self.databases:
            if each.cancel_on_disconnect and self._messages is None:
                self._loop = asyncio.get_running_loop()
                self._messages = receive = MessageBuffer(receive)

        async def send_after_commit(message: Message) -> None:
            # Of a response whose COMMIT failed nothing is sent, and nothing once that is answered.
            if message["type"] == "http.response.start" and not self._ended:
                self._failure = None  # the application answers an earlier failure itself
                if self._watch is not None:
                    await self._watch.stop()  # a cancellation that has begun could hit the COMMIT
                status = message["status"]
                try:
                    await self._finish(None if status < 400 else _refusal(status))
                except Exception as error:
                    if not await self._answer_failure(error, receive, send):
                        raise
            if self._failure is None and self.answered is None:
                await send(message)

        try:
            await app(self.scope, receive, send_after_commit)
            if not self._ended:
                if self._watch is not None:
                    await self._watch.stop()
                await self._finish(RefusedError("no response"))
            if (unanswered := self._failure or self._raised_afterwards) is not None:
                raise unanswered
        except Exception as error:
            await self._leave(self._failure or error, receive, send)
        except BaseException as error:
            await self._leave(error, receive, send)
        finally:
            # Each is part of a reference cycle.
            self.connection = self._messages = self._watch = self._place = None
            self.databases = {}
            self._places = []

    async def _leave(self, error: BaseException, receive: Receive, send: Send) -> None:
        """End the units of work after *error*, which the application did not answer; answer it, or raise it."""
        if self._watch is not None:
            await self._watch.stop()
        started = self._ended
        await self._finish_after(error)
        if isinstance(error, Exception):
            # The error follows from the cancellation, and there is no client left to answer.
            if self._watch is not None and self._watch.client_gone:
                logger.info("client disconnected before the response; its request was rolled back: %s", error)
                return
            if not started and (response := self._answer_overload(error)) is not None:
                await response(self.scope, receive, send)
                return
        if self._keep is not None:
            self.scope[_DECISION] = self._keep
        raise error

    async def answer_by(self, handler: Handler, connection: HTTPConnection, error: Exception) -> Response:
        """Return what *handler* answers to *error*; what it does in the databases is committed as that status says."""
        self._keep = self.scope.pop(_DECISION, None)
        self._may_be_stored = CommitUnknownError.precedes(error)
        try:
            response = await call_handler(handler, connection, error)
            await self._finish(_refusal(response.status_code))
        except BaseException as failure:
            await self._finish_after(failure)
            busy = self._answer_overload(failure)
            if busy is None:
                raise
            return busy
        finally:
            self._place, self.databases = None, {}  # each is part of a reference cycle
        return response

    # -- errors -----------------------------------------------------------------------------------------------------

    async def refuse(self, error: Exception, connection: HTTPConnection) -> Response | None:
        """Roll back after *error*, unless it is an answer whose status commits; return the answer if it is overload."""
        if self._ended or error is self._failure:
            return None
        await self.undo(error)
        return self._answer_overload(error, handlers_by_class(connection.scope))

    async def undo(self, error: Exception) -> None:
        """Roll back after *error*, unless it is an answer whose status commits."""
        if not self._ended and not is_answer(error):
            await self._roll_back(error)

    def _answer_overload(
        self, error: BaseException, handlers: Mapping[object, object] | None = None
    ) -> JSONResponse | None:
        self._may_be_stored = self._may_be_stored or CommitUnknownError.precedes(error)
        return None if self._may_be_stored else answer_overload(error, handlers)

    async def _answer_failure(self, error: Exception, receive: Receive, send: Send) -> bool:
        """Let the application's handlers answer a COMMIT that failed with *error*; return whether that is all.

        At once: behind Starlette's back, for which the response has started.  They get a new transaction.
        """
        connection, at_endpoint = self.connection, self.at_endpoint
        if connection is None:
            return False

        async def fail(scope: Scope, receive: Receive, send: Send) -> None:
            raise error

        async def send_answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._finish(_refusal(message["status"]))
                self._failure, self.answered = None, error
            await send(message)

        # Twice, as Starlette does: around the endpoint, and around that for what a handler raises.
        handle = guarding(handle_exceptions, at_endpoint=False)
        handled = handle(handle_exceptions(fail, connection), connection)
        self.at_endpoint = at_endpoint
        try:
            await handled(connection.scope, receive, send_answer)
        except Exception as failure:
            if failure is not error:
                self._failure = failure
                raise
            # The handler for Exception of this application is called by Starlette, those of mounted ones are not.
            inner = connection.scope["app"]
            handler = handler_for_everything(inner) if inner is not self._app else None
            if handler is None:
                return False
            response = await call_handler(handler, connection, error)
            self._raised_afterwards = error  # as Starlette does, so that the server logs it
            await response(connection.scope, receive, send_answer)
        # An endpoint is ended where it sends, so that no middleware sees an error that was answered.
        return at_endpoint

    # -- the units of work ------------------------------------------------------------------------------------------

    async def _finish(self, error: BaseException | None) -> None:
        """End all units of work: commit, or roll back when there is an *error*; raise what makes a COMMIT fail.

        After that, new ones are open, for whoever answers the failure.
        """
        self._ended = True
        if error is None and self.unfinished:
            error = RefusedError("the endpoint had not ended")
        interruption: BaseException | None = None
        if self._keep is not None:
            try:
                error = await self._why(error)
            except BaseException as reason:
                error = interruption = reason
        if error is not None:
            self._log(error)
        failure = error
        # All are ended, to give their connections back.  After a COMMIT that failed, the others roll back.
        for databases in await self._in_order() if self._several and error is None else self.databases:
            units = self.databases[databases]
            if units is not None:
                try:
                    await units.finish(failure)
                except BaseException as reason:
                    failure = failure or reason
        if failure is not None and failure is not error:
            outcome = "rolled back"
            if any(units is not None and units.committed for units in self.databases.values()):
                outcome = "committed in part"
            if isinstance(failure, CommitUnknownError):
                outcome, self._may_be_stored = "outcome unknown", True
            self._log(failure, outcome)
            if isinstance(failure, Exception):
                self._begin_again(failure)
            raise failure
        if interruption is not None:
            raise interruption

    async def _in_order(self) -> list[RequestDatabases]:
        """Return the databases, first those in which nothing can be committed, which take the others with them."""
        failed = [each for each, units in self.databases.items() if units is not None and not await units.can_commit()]
        return [*failed, *(each for each in self.databases if each not in failed)]

    async def _why(self, error: BaseException | None) -> BaseException | None:
        """Return why to roll back after *error*, None where what was done is to be kept."""
        if self._keep is None:
            return error
        if not self._keep:
            return error or RefusedError("rollback_request()")
        if error is None or isinstance(error, RefusedError):
            return None  # what cannot be committed then is the error of the COMMIT
        if not isinstance(error, Exception):
            return error
        return None if all([await units.can_commit() for units in self.databases.values() if units]) else error

    def _begin_again(self, failure: Exception) -> None:
        self._failure, self._ended = failure, False
        if self._keep:
            self._keep = None  # what it would have kept is gone
        for databases, units in self.databases.items():
            if units is not None:
                self.databases[databases] = RequestUnits(databases, self.scope, None)

    async def _finish_after(self, error: BaseException) -> None:
        """End all units of work after *error*, which is more important than what happens meanwhile."""
        if not self._ended:
            try:
                await self._finish(error)
            except Exception as failure:  # what was to be kept cannot be committed
                await self._finish(failure)

    async def _roll_back(self, error: Exception) -> None:
        """Roll back after *error* what is not to be kept; the units of work go on."""
        if await self._why(error) is not None:
            if self._keep:
                self._keep = None  # what it would have kept is gone
            self._log(error)
            for units in self.databases.values():
                if units is not None:
                    await units.roll_back(error)

    def _log(self, why: BaseException, outcome: str = "rolled back") -> None:
        used = [units for units in self.databases.values() if units is not None and units.borrowed]
        if used and logger.isEnabledFor(logging.DEBUG):
            reason = str(why) if isinstance(why, RefusedError) else type(why).__name__
            statements = sum(units.statements for units in used)
            logger.debug("%s: %s: %s (statements: %d)", route_of(self.scope), outcome, reason, statements)

    # -- a client that leaves -----------------------------------------------------------------------------------------

    def _watch_client(self) -> None:
        """Watch for the client's end, called with each connection that is borrowed, in any thread."""
        if self._messages is not None and self._watch is None:
            try:
                here = asyncio.get_running_loop() is self._loop
            except RuntimeError:
                here = False
            # Timers of the event loop may be set only in its own thread.
            if here:
                self._start_watch()
            else:
                self._loop.call_soon_threadsafe(self._start_watch)

    def _start_watch(self) -> None:
        if self._messages is not None and self._watch is None and not self._ended:
            self._watch = DisconnectWatch(self._messages, self._cancel)

    async def _cancel(self, reason: str) -> None:
        for databases, units in self.databases.items():
            if units is not None and databases.cancel_on_disconnect:
                await units.cancel(reason)


async def undo_raised(scope: Scope, error: Exception) -> None:
    """Roll back what the request of *scope* did, whose endpoint has raised *error*."""
    if REQUEST in scope:
        await scope[REQUEST].undo(error)


def guarding(handle: HandleExceptions, *, at_endpoint: bool) -> HandleExceptions:
    """Return *handle*, which puts exception handlers around an application, with a guard on both sides of them.

    What is raised rolls back before a handler answers it, and so does what a handler raises, which a middleware may
    answer.  *at_endpoint*: nothing but an endpoint is inside.
    """

    def handle_after_guard(app: ASGIApp, conn: HTTPConnection) -> ASGIApp:
        if REQUEST not in conn.scope:
            return handle(app, conn)
        request: RequestState = conn.scope[REQUEST]
        serving = conn.scope["app"]
        try:
            overridden = serving.dependency_overrides
        except AttributeError:  # an application of Starlette
            overridden = None
        if overridden:
            follow_overrides(serving, request.databases)
        if conn.scope["type"] != "http":
            return handle(app, conn)
        request.connection, request.at_endpoint = conn, at_endpoint

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_unless_replaced(message: Message) -> None:
                request.unfinished = False
                await send(message)
                if request.answered is not None:
                    raise request.answered  # before the background tasks of the response that was replaced

            request.unfinished = at_endpoint
            try:
                await app(scope, receive, send_unless_replaced if at_endpoint else send)
            except Exception as error:
                request.unfinished = False
                if request.answered is not None:
                    return
                response = await request.refuse(error, conn)
                if response is None:
                    raise
                await response(scope, receive, send)

        handled = handle(guarded, conn)

        async def guarded_outside(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await handled(scope, receive, send)
            except Exception as error:
                response = await request.refuse(error, conn)
                if response is None:
                    raise
                await response(scope, receive, send)

        return guarded_outside

    return handle_after_guard


def _header(scope: Scope, name: str | None) -> str | None:
    wanted = (name or "").lower().encode()
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == wanted), None)


def _refusal(status: int) -> RefusedError | None:
    return RefusedError(f"status {status}") if status >= 400 else None
