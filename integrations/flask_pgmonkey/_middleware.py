"""WSGI middleware that ends the transaction of a request just before its response starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from flask import Flask, Response, request

from pgmonkey import Database, UnitOfWork

from ._compat import get_request, replace_method, route_of
from ._database import EXTENSION, TransactionOptions, choices_of
from ._settings import Scope

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# The key in the WSGI environment under which the units of work of the request are.
_UNITS = "flask_pgmonkey.units"
_DEFAULTS: TransactionOptions = {}


class RefusedError(Exception):
    """Why a unit of work is rolled back although nothing was raised: the status of the response, or none was sent."""


class RequestUnits:
    """The units of work of a request, by the key of the database."""

    def __init__(self, label: Callable[[], str]) -> None:
        self._label = label
        self._units: dict[str | None, UnitOfWork[object]] = {}

    def begin(self, key: str | None, database: Database[object], options: TransactionOptions = _DEFAULTS) -> None:
        """Open the unit of work for *key*."""
        self._units[key] = database.begin(label=self._label, **options)

    def end(self, key: str | None) -> None:
        """End the unit of work for *key* early: each statement from here on is its own transaction (autocommit)."""
        if key in self._units:
            self._units.pop(key).finish()

    def roll_back(self, error: BaseException) -> None:
        """Roll all of them back; the next statement starts a new transaction."""
        for unit in self._units.values():
            unit.roll_back(error)

    def finish(self, error: BaseException | None) -> None:
        """Commit them, one after the other, or roll all back when there is an *error*; raise what fails a COMMIT."""
        units, self._units = self._units, {}
        failure = error
        for unit in units.values():
            # All must be finished, to give their connections back.  After a COMMIT that failed, the others roll back.
            try:
                unit.finish(failure)
            except BaseException as reason:
                failure = failure or reason
        if failure is not None and failure is not error:
            raise failure


class TransactionMiddleware:
    """Makes each request of *app* a transaction on each of its databases that is set to one.

    It commits when the application starts its response: ``after_request`` functions and the session may fail before.
    """

    def __init__(self, app: Flask, scopes: dict[str | None, Scope]) -> None:
        self._app = app
        self._wsgi_app = app.wsgi_app
        self._scopes = scopes
        self._databases: dict[str | None, Database[object]] = app.extensions[EXTENSION]
        handle_user_exception = app.handle_user_exception

        def handle_after_rollback(e: Exception) -> object:
            # Before the application's error handlers run: they may use the database too.
            if (units := request.environ.get(_UNITS)) is not None:
                units.roll_back(e)
            return handle_user_exception(e)

        preprocess_request = app.preprocess_request

        # A before_request function would run after those that look at the URL, and take longer to call.
        def preprocess_after_choice(*context: object) -> object:
            self._apply_choices()
            return preprocess_request(*context)

        replace_method(app, "handle_user_exception", handle_after_rollback)
        replace_method(app, "preprocess_request", preprocess_after_choice)
        replace_method(app, "wsgi_app", self)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        units = environ[_UNITS] = RequestUnits(lambda: _route(environ))
        self._begin(units)
        other_body: Iterable[bytes] | None = None

        def start_after_commit(
            status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None
        ) -> Callable[[bytes], object]:
            nonlocal other_body
            try:
                units.finish(_refusal(int(status[:3])))
            except Exception as error:
                response = self._answer(error, units)
                other_body = response(environ, start_response)
                return _discard
            return start_response(status, headers, exc_info)

        try:
            body = self._wsgi_app(environ, start_after_commit)
        except BaseException as error:
            units.finish(error)
            raise
        else:
            # Does nothing where the response has started, which is when the units are finished.
            units.finish(RefusedError("no response"))
        finally:
            del environ[_UNITS]  # breaks a reference cycle: the label of the units holds the environment
        # The body that answers a failed COMMIT replaces the application's, which is closed unread.
        if other_body is None:
            return body
        if hasattr(body, "close"):
            body.close()
        return other_body

    def _begin(self, units: RequestUnits) -> None:
        for key, database in self._databases.items():
            if self._scopes[key] == "request":
                units.begin(key, database)

    def _apply_choices(self) -> None:
        """Apply what `BoundDatabase.transaction_per` chose for the view, before the request uses a database."""
        current = get_request()
        units: RequestUnits | None = current.environ.get(_UNITS)
        if units is None:  # the context was made by hand, as by app.test_request_context()
            return
        view = self._app.view_functions.get(current.endpoint or "")
        for key, (scope, options) in choices_of(view).items():
            # Nothing was done in it yet: it is only replaced.
            units.end(key)
            if scope == "request":
                units.begin(key, self._databases[key], options)

    def _answer(self, error: Exception, units: RequestUnits) -> Response:
        """Return the answer of the application's error handlers to a failed COMMIT; they get a new transaction."""
        self._begin(units)
        try:
            # As Flask does after a view that raised: error handlers first, then after_request functions.
            response = self._app.make_response(self._app.handle_user_exception(error))
            response = self._app.process_response(response)
        except Exception as unhandled:
            response = self._app.handle_exception(unhandled)
        units.finish(_refusal(response.status_code))
        return response


def _refusal(status: int) -> RefusedError | None:
    return RefusedError(status) if status >= 400 else None


def _route(environ: WSGIEnvironment) -> str:
    """Return the method and the route, ``GET /orders/<id>``, never the path: that may contain personal data."""
    return f"{environ['REQUEST_METHOD']} {route_of(environ) or '(no route)'}"


def _discard(data: bytes) -> None:
    """Ignore what is written to a response that is not sent."""
