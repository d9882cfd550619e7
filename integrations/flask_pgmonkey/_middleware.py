"""WSGI middleware that ends the transaction of a request just before its response starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from contextvars import ContextVar
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from flask import Flask, Response, has_request_context, request
from werkzeug.exceptions import HTTPException
from werkzeug.wsgi import ClosingIterator

from pgmonkey import CommitUnknownError, Database, Deadline, RequestDeadline

from ._compat import get_request, replace_call, replace_method
from ._database import EXTENSION, choices_of
from ._settings import Scope
from ._unavailable import UNAVAILABLE
from ._units import RefusedError, RequestUnits

if TYPE_CHECKING:
    from types import TracebackType

    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from flask.typing import ResponseReturnValue

    ExceptionInfo = tuple[type, BaseException, TracebackType] | tuple[None, None, None]

# The key in the WSGI environment under which the units of work of the request are.
_UNITS = "flask_pgmonkey.units"
# Those of the request that this thread serves, for what has no request any more.
_served: ContextVar[RequestUnits | None] = ContextVar("flask_pgmonkey.served", default=None)


def current_deadline() -> Deadline | None:
    """Return when the statements of the request that this thread serves must have ended; None is never."""
    units = _served.get()
    return None if units is None else units.deadline


def current_units() -> RequestUnits | None:
    """Return the units of work of the current request; None outside of one, and after it."""
    units: RequestUnits | None = request.environ.get(_UNITS) if has_request_context() else None
    return units


class TransactionMiddleware:
    """Makes each request of *app* a transaction on each of its databases that is set to one.

    It commits when the response starts, outside of all other middleware: ``after_request`` functions and the session
    may fail before, and whoever changes the status decides.
    """

    def __init__(self, app: Flask, scopes: dict[str | None, Scope], deadlines: RequestDeadline | None) -> None:
        self._app = app
        self._wsgi_app = app.wsgi_app
        self._scopes = scopes
        self._deadlines = deadlines
        self._databases: dict[str | None, Database[object]] = app.extensions[EXTENSION]
        self._watch_exceptions()
        preprocess_request = app.preprocess_request

        # A before_request function would run after those that look at the URL, and take longer to call.
        def preprocess_after_choice(*context: object) -> object:
            self._apply_choices()
            return preprocess_request(*context)

        replace_method(app, "preprocess_request", preprocess_after_choice)
        for name in ("do_teardown_request", "do_teardown_appcontext"):
            replace_method(app, name, self._tearing_down(getattr(app, name)))
        replace_method(app, "wsgi_app", self)
        replace_call(app, self.serve)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request, also where ``app.wsgi_app`` is called and not ``app``, as when it is mounted."""
        units: RequestUnits | None = environ.get(_UNITS)
        if units is not None and units.owner is self:
            return self._wsgi_app(environ, start_response)
        return self.serve(self._wsgi_app, environ, start_response)

    def serve(
        self, wsgi_app: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Serve one request by *wsgi_app*."""
        around: RequestUnits | None = environ.get(_UNITS)  # of an application that this one is mounted in
        method = environ["REQUEST_METHOD"]
        # The route, never the path: that may contain personal data.
        units = environ[_UNITS] = RequestUnits(self, lambda units: f"{method} {units.route or '(no route)'}")
        if self._deadlines is not None:
            units.deadline = self._deadlines.begin(environ.get(_environ_key(self._deadlines.header)))
        token = _served.set(units)
        self._begin(units)
        started = False
        answer: Iterable[bytes] | None = None

        def start_after_commit(
            status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None
        ) -> Callable[[bytes], object]:
            nonlocal started, answer
            started = True
            try:
                units.answer(int(status[:3]))
                units.deadline = None
            except Exception as error:
                answer = self._answer(error, units, environ)(environ, start_response)
                return _discard
            return start_response(status, headers, exc_info)

        try:
            body = wsgi_app(environ, start_after_commit)
            if not started:
                body = _read_until(lambda: started, body)
        except BaseException as error:
            units.fail(error)
            raise
        else:
            # Does nothing where the response has started, which is when the units are finished.
            units.fail(RefusedError("no response"))
        finally:
            _served.reset(token)
            # Deleted, because it would be a reference cycle.
            if around is None:
                del environ[_UNITS]
            else:
                environ[_UNITS] = around
        # The body that answers a failed COMMIT replaces the application's, which is closed unread.
        if answer is None:
            return body
        _close(body)
        return answer

    def _begin(self, units: RequestUnits) -> None:
        units.handles_exception = False
        for key, database in self._databases.items():
            if self._scopes[key] == "request":
                units.begin(key, database)

    def _units(self) -> RequestUnits | None:
        """Return the units of the current request; None where its context was made by hand."""
        units: RequestUnits | None = get_request().environ.get(_UNITS)
        return units if units is not None and units.owner is self else None

    def _apply_choices(self) -> None:
        """Apply what `BoundDatabase.transaction_per` chose for the view, before the request uses a database."""
        units = self._units()
        if units is None:
            return
        current = get_request()
        units.route = current.url_rule
        view = self._app.view_functions.get(current.endpoint or "")
        for key, (scope, options) in choices_of(view).items():
            # Nothing was done in it yet: it is only replaced.
            units.end(key)
            if scope == "request":
                units.begin(key, self._databases[key], options)

    def _tearing_down(self, method: Callable[..., object]) -> Callable[..., object]:
        """Return *method*; what it raises after a COMMIT is logged: a server would answer 500 to what is stored."""

        def call(*arguments: object) -> None:
            try:
                method(*arguments)
            except Exception:
                units, app = _served.get(), self._app
                if units is None or units.owner is not self or not units.committed:
                    raise
                propagate = app.config["PROPAGATE_EXCEPTIONS"]
                if propagate or (propagate is None and (app.testing or app.debug)):
                    raise  # to whoever develops it, as Flask does
                app.logger.exception("%s was committed and answered, but a teardown function raised", units)

        return call

    # -- exceptions -------------------------------------------------------------------------------------------------

    def _watch_exceptions(self) -> None:
        """Roll back when an exception leaves a part of the application, before anybody answers it.

        Where exceptions leave, not only where Flask handles them: extensions such as Flask-RESTX replace the latter.
        """
        app = self._app
        for name in ("preprocess_request", "dispatch_request"):
            replace_method(app, name, self._undoing(getattr(app, name)))
        full_dispatch_request, process_response = app.full_dispatch_request, app.process_response
        handle_user_exception, handle_exception = app.handle_user_exception, app.handle_exception
        log_exception = app.log_exception
        # By an extension that was set up before; one that is set up later may not call the function below.
        extended = "handle_user_exception" in vars(app)

        def dispatch_or_undo(*context: object) -> object:
            try:
                return full_dispatch_request(*context)
            except Exception as error:
                # Of a handler, an after_request function, or the session; or nobody handled it.
                self._roll_back(error)
                raise
            except BaseException as error:
                self._fail(error)
                raise

        def handle_after_rollback(e: Exception) -> object:
            if _is_refusal(e):  # of a receiver of the signal request_started
                self._roll_back(e)
            if not extended and (units := self._units()) is not None:
                units.unavailable = None  # Flask itself answers it
            return handle_user_exception(e)

        def handle_last(e: Exception) -> object:
            units = self._units()
            if units is None:
                return handle_exception(e)
            units.roll_back(e)
            units.handles_exception = True
            try:
                # For what the session, an after_request function or an error handler raised, Flask asks only the
                # handlers of its own 500.
                answer = _try(handle_user_exception, e) if isinstance(e, UNAVAILABLE) else None
                return handle_exception(e) if answer is None else app.finalize_request(answer, True)
            except BaseException as error:
                units.fail(error)  # before the teardown functions run
                raise

        def log_unless_unavailable(exc_info: ExceptionInfo) -> None:
            # What answers it logs one line.
            if not isinstance(exc_info[1], UNAVAILABLE) or CommitUnknownError.precedes(exc_info[1]):
                log_exception(exc_info)

        def process_or_undo(response: Response) -> object:
            units = self._units()
            if units is None:
                return process_response(response)
            if units.unavailable is not None and response.status_code == 500:
                # An extension's answer to all that it does not know.  Flask has a handler: the application's, or ours.
                answer = _try(partial(type(app).handle_user_exception, app), units.unavailable)
                response = response if answer is None else app.make_response(answer)
            if not units.handles_exception:
                return process_response(response)
            # Flask logs what is raised here, and sends the response of the handler.
            with units.undone_alone():
                return process_response(response)

        replace_method(app, "full_dispatch_request", dispatch_or_undo)
        replace_method(app, "handle_user_exception", handle_after_rollback)
        replace_method(app, "handle_exception", handle_last)
        replace_method(app, "log_exception", log_unless_unavailable)
        replace_method(app, "process_response", process_or_undo)

    def _undoing(self, method: Callable[..., object]) -> Callable[..., object]:
        def call(*context: object) -> object:
            try:
                return method(*context)
            except Exception as error:
                if _is_refusal(error):
                    self._roll_back(error)
                if isinstance(error, UNAVAILABLE) and (units := self._units()) is not None:
                    units.unavailable = error
                raise

        return call

    def _roll_back(self, error: Exception) -> None:
        if (units := self._units()) is not None:
            units.roll_back(error)

    def _fail(self, error: BaseException) -> None:
        if (units := self._units()) is not None:
            units.fail(error)

    def _answer(self, error: Exception, units: RequestUnits, environ: WSGIEnvironment) -> Response:
        """Return the answer of the application's error handlers to a failed COMMIT; they get a new transaction."""
        self._begin(units)
        # A middleware may have held the response back, until the request's own context was gone.
        is_current = current_units() is units
        with nullcontext() if is_current else self._app.request_context(environ):
            try:
                # As Flask does after a view that raised: error handlers first, then after_request functions.
                response = self._app.finalize_request(self._app.handle_user_exception(error))
            except Exception as unhandled:
                response = self._app.handle_exception(unhandled)
            units.answer(response.status_code)
        return response


def _environ_key(header: str | None) -> str:
    return f"HTTP_{(header or '').upper().replace('-', '_')}"


def _is_refusal(error: Exception) -> bool:
    """Return whether *error* is no answer of the application, or one of status 400 and above."""
    if not isinstance(error, HTTPException):
        return True
    # A response may be any WSGI application, whose status is known when it leaves.
    status = error.code if error.response is None else getattr(error.response, "status_code", None)
    return status is not None and status >= 400


def _try(handle: Callable[[Exception], ResponseReturnValue], error: Exception) -> ResponseReturnValue | None:
    try:
        return handle(error)
    except Exception:  # it needs what is not available
        return None


def _read_until(started: Callable[[], bool], body: Iterable[bytes]) -> Iterable[bytes]:
    """Return *body*, read until the response has *started*.

    What a generator does, it does when it is read, and the server reads it outside of the transaction.
    """
    chunks: list[bytes] = []
    iterator = iter(body)
    try:
        for chunk in iterator:
            chunks.append(chunk)
            if started():
                break
    except BaseException:
        _close(body)
        raise
    return ClosingIterator(chain(chunks, iterator), lambda: _close(body))


def _close(body: Iterable[bytes]) -> None:
    close: Callable[[], object] | None = getattr(body, "close", None)
    if close is not None:
        close()


def _discard(data: bytes) -> None:
    """Ignore what is written to a response that is not sent."""
