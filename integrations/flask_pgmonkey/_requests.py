"""One transaction a request: begun when it is needed, ended when the status is known, before the client learns it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask, Request, Response, request

from pgmonkey import Database, UnitOfWork

from ._bound import EXTENSION, choices
from ._settings import Scope

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_UNITS = "flask_pgmonkey.units"
_request: Any = request  # a proxy, each of whose attributes looks for the object anew


class Refused(Exception):
    """Why a unit of work is rolled back that no exception ended: the status that was returned."""


class Units:
    """The units of work of a request, by the database's key."""

    def __init__(self, label: Callable[[], str]) -> None:
        self._label = label
        self._units: dict[str | None, UnitOfWork[Any]] = {}

    def begin(self, key: str | None, database: Database[Any], **options: Any) -> None:
        """Open the one for *key*."""
        self._units[key] = database.begin(label=self._label, **options)

    def end(self, key: str | None) -> None:
        """End the one for *key* early: from here on each statement stands for itself."""
        if key in self._units:
            self._units.pop(key).finish()

    def roll_back(self, error: BaseException) -> None:
        """Undo what was done; what follows is a new beginning."""
        for unit in self._units.values():
            unit.roll_back(error)

    def finish(self, error: BaseException | None) -> None:
        """Commit them, one after the other, or roll all back when there is an *error*; raise what fails a COMMIT."""
        units, self._units = self._units, {}
        failure = error
        for unit in units.values():
            try:
                unit.finish(failure)
            except BaseException as reason:
                failure = failure or reason
        if failure is not None and failure is not error:
            raise failure


class Requests:
    """The WSGI application of *app*, each request of it in units of work.

    It commits when the application starts its response: after every function of the application and the session's
    cookie have had their say, within the request's context.
    """

    def __init__(self, app: Flask, scopes: dict[str | None, Scope]) -> None:
        self._app = app
        self._wsgi_app = app.wsgi_app
        self._scopes = scopes
        self._databases: dict[str | None, Database[Any]] = app.extensions[EXTENSION]
        handle_user_exception = app.handle_user_exception

        def handle_after_roll_back(e: Exception) -> Any:
            # At once, so that the application's error handlers find no broken transaction.
            if (units := request.environ.get(_UNITS)) is not None:
                units.roll_back(e)
            return handle_user_exception(e)

        preprocess_request = app.preprocess_request

        # Not one of the functions before requests: it would come after what looks at the URL, and cost more.
        def choose_first(*context: Any) -> Any:
            self._choose()
            return preprocess_request(*context)

        app.handle_user_exception = handle_after_roll_back  # type: ignore[method-assign]
        app.preprocess_request = choose_first  # type: ignore[method-assign]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        units = environ[_UNITS] = Units(lambda: _route(environ))
        self._begin(units)
        other_body: Iterable[bytes] | None = None

        def start_after_commit(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
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
            units.finish(Refused("no response"))
        finally:
            del environ[_UNITS]  # which knows the environ in turn
        if other_body is None:
            return body
        if hasattr(body, "close"):
            body.close()
        return other_body

    def _begin(self, units: Units) -> None:
        for key, database in self._databases.items():
            if self._scopes[key] == "request":
                units.begin(key, database)

    def _choose(self) -> None:
        """Do as the view wants it, before anything else is done for the request."""
        current: Request = _request._get_current_object()
        units: Units | None = current.environ.get(_UNITS)
        if units is None:  # in a context that was made by hand
            return
        view = self._app.view_functions.get(current.endpoint or "")
        for key, (scope, options) in choices(view).items():
            units.end(key)
            if scope == "request":
                units.begin(key, self._databases[key], **options)

    def _answer(self, error: Exception, units: Units) -> Response:
        """Return what the application's handlers make of a failed COMMIT, whatever they did being committed."""
        self._begin(units)
        try:
            response = self._app.make_response(self._app.handle_user_exception(error))
            response = self._app.process_response(response)
        except Exception as unhandled:
            response = self._app.handle_exception(unhandled)
        units.finish(_refusal(response.status_code))
        return response


def _refusal(status: int) -> Refused | None:
    return Refused(status) if status >= 400 else None


def _route(environ: WSGIEnvironment) -> str:
    """Name the request by its route, ``GET /orders/<id>``: its path may hold what is nobody's business."""
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    return f"{environ['REQUEST_METHOD']} {rule or '(no route)'}"


def _discard(data: bytes) -> None:
    """Take the body of a response that is not sent."""
