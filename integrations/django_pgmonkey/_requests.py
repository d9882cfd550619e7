"""The transactions of the request that is served: what its view raises, and which status leaves, decides about them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.signals import got_request_exception
from django.db import connections
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.template.response import SimpleTemplateResponse

from pgmonkey import Deadline

from ._compat import View, watch_ninja, watch_views
from ._deadline import current_deadline
from .base import DatabaseWrapper

_current: ContextVar[RequestTransactions | None] = ContextVar("django_pgmonkey.request", default=None)


class RequestTransactions:
    """The transactions of one request, one on each database."""

    def __init__(self, request: HttpRequest, deadline: Deadline | None = None) -> None:
        self.uncaught: BaseException | None = None
        """What handler500 was called for."""
        self.errors: list[BaseException] = []
        """What the view or the database raised, whoever has answered it."""
        self._request = request
        self._deadline = deadline
        self._thread = threading.get_ident()
        # All of them, because which ones the view will use is not known.  Nothing is borrowed here.
        self._wrappers = [wrapper for wrapper in connections.all() if isinstance(wrapper, DatabaseWrapper)]
        self._undone: BaseException | None = None
        self._refused_for: BaseException | None = None

    def serve(self, answer: Callable[[], HttpResponseBase]) -> HttpResponseBase:
        """Return the response of *answer*, after the transactions were committed or rolled back."""
        if self._deadline is not None:
            return self._serve_until(self._deadline, answer)
        token = _current.set(self)
        try:
            self._begin(self._wrappers)
            try:
                response = answer()
                refusal = self._refusal(response)
            except BaseException as error:
                self._end(f"{type(error).__name__} was raised", decided=isinstance(error, Exception))
                raise
            self._end(refusal)
        finally:
            _current.reset(token)
        return response

    def _serve_until(self, deadline: Deadline, answer: Callable[[], HttpResponseBase]) -> HttpResponseBase:
        self._deadline = None
        token = current_deadline.set(deadline)
        try:
            for wrapper in self._wrappers:
                wrapper.limit(deadline)
            return self.serve(answer)
        finally:
            for wrapper in self._wrappers:
                wrapper.limit(None)
            current_deadline.reset(token)

    def decide(self, keep: bool, using: str | None) -> None:
        """Commit or roll back on the database *using*, or on all, whatever the status."""
        wrappers = [wrapper for wrapper in self._wrappers if using in (None, wrapper.alias)]
        transactions = [wrapper.request_transaction for wrapper in wrappers if wrapper.request_transaction is not None]
        if not transactions:
            raise RuntimeError(f"the request has no transaction on {'any database' if using is None else repr(using)}")
        for transaction in transactions:
            transaction.decide(keep)

    def watch(self, view: View, wrapped: View) -> View:
        """Return *wrapped*, which Django calls for *view*, so that what it raises rolls back at once.

        Nobody else sees that: a middleware's process_exception() may answer with a success.  Without the attributes
        of the view, which Django and its middlewares read from the view itself: this is made for each request.
        """
        aliases = getattr(view, "_non_atomic_requests", ())
        apart = [wrapper for wrapper in self._wrappers if wrapper.alias in aliases]

        if iscoroutinefunction(wrapped):

            async def watched_async(*args: object, **kwargs: object) -> object:
                try:
                    # In the thread of the middleware, which the connections belong to.
                    if apart:
                        await sync_to_async(self._end)(None, apart)
                    return await wrapped(*args, **kwargs)
                except Exception as error:
                    await sync_to_async(self._undo)(error)
                    raise
                finally:
                    if apart:
                        await sync_to_async(self._begin)(apart)

            return watched_async

        def watched(*args: object, **kwargs: object) -> object:
            try:
                self._end(None, apart)
                return wrapped(*args, **kwargs)
            except Exception as error:
                self._undo(error)
                raise
            finally:
                self._begin(apart)

        return watched

    def render(self, response: SimpleTemplateResponse) -> SimpleTemplateResponse:
        """Render *response*; what is raised there rolls back at once."""
        del vars(response)["render"]  # its class's own again
        try:
            return response.render()
        except Exception as error:
            self._undo(error)
            raise

    def note_answered(self, error: Exception) -> None:
        """Roll back what an operation of django-ninja did that raised *error*, which its API is about to answer."""
        if getattr(error, "status_code", 500) < 400:
            return  # an HttpError is an answer
        if threading.get_ident() == self._thread:
            self._undo(error)
        else:  # an asynchronous operation: at the end, with what the handler does
            self._refused_for = error
            self.errors.append(error)

    def note_uncaught(self, error: BaseException | None) -> None:
        """Roll back before handler500 runs, which may use the database; what it does is decided by its status."""
        self.uncaught = error
        if error is not None:
            self.errors.append(error)
            # Under ASGI, handler500 runs in a thread, and on connections, of its own.
            if threading.get_ident() == self._thread:
                self._undo(error)

    def _undo(self, error: BaseException) -> None:
        if self._undone is error:
            return
        self._undone = error
        self.errors.append(error)
        transactions = [wrapper.request_transaction for wrapper in self._wrappers]
        failed = any(transaction is not None and transaction.failure() is not None for transaction in transactions)
        for wrapper, transaction in zip(self._wrappers, transactions, strict=True):
            if transaction is not None and transaction.error is not None:
                self.errors.append(transaction.error)
            # Unless keep_request() was called, which a transaction that failed is not saved by.
            if failed or transaction is None or not transaction.decision:
                wrapper.restart_request(f"{type(error).__name__} was raised")

    def _begin(self, wrappers: list[DatabaseWrapper]) -> None:
        for wrapper in wrappers:
            wrapper.begin_request(self._route)

    def _end(self, refusal: str | None, wrappers: list[DatabaseWrapper] | None = None, *, decided: bool = True) -> None:
        """Commit one after the other, or roll all back when there is a *refusal*; raise what makes a COMMIT fail."""
        failure: BaseException | None = None
        ended = self._wrappers if wrappers is None else wrappers
        if len(ended) > 1:
            # Those first that cannot be committed, because that rolls the others back.
            ended = sorted(ended, key=_can_commit)
        for wrapper in ended:
            transaction = wrapper.request_transaction
            why = refusal
            if transaction is not None and transaction.error is not None:
                self.errors.append(transaction.error)
            if decided and transaction is not None and transaction.decision is not None:
                why = None if transaction.decision else "rollback_request() was called"
            # All must be ended, or this thread could not use them again.
            if failure is not None:
                why = f"{type(failure).__name__} on another database"
            try:
                wrapper.end_request(why)
            except BaseException as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _refusal(self, response: HttpResponseBase) -> str | None:
        """Return why *response* does not commit; None when it does."""
        if response.status_code >= 400:
            return f"the status is {response.status_code}"
        if self.uncaught is not None and self.uncaught is not self._undone:
            return f"{type(self.uncaught).__name__} was raised"
        if self._refused_for is not None:
            return f"{type(self._refused_for).__name__} was raised"
        # Django REST framework says so of a response that its EXCEPTION_HANDLER made.
        if getattr(response, "exception", False) is True:
            return "the view of Django REST framework raised an exception"
        return None

    def _route(self) -> str:
        """Return the method and the route, ``GET orders/<int:id>``, never the path: that may contain personal data."""
        match = self._request.resolver_match
        return f"{self._request.method} {match.route if match is not None else '(no route)'}"


def _can_commit(wrapper: DatabaseWrapper) -> bool:
    return wrapper.request_transaction is None or wrapper.request_transaction.failure() is None


def current() -> RequestTransactions:
    """Return the transactions of the request that is served here; raise RuntimeError when there is none."""
    transactions = _current.get()
    if transactions is None:
        raise RuntimeError("outside of a request that django_pgmonkey.middleware.TransactionMiddleware serves")
    return transactions


def _watch(view: View, wrapped: View) -> View:
    transactions = _current.get()
    if transactions is None:
        return wrapped
    watch_ninja(_note_answered)  # here, because it is imported by then, if at all
    return transactions.watch(view, wrapped)


def watch_rendering(response: SimpleTemplateResponse) -> None:
    """Let what rendering *response* raises roll back the request: it is rendered behind the view."""
    transactions = _current.get()
    if transactions is not None and not iscoroutinefunction(response.render):
        vars(response)["render"] = partial(transactions.render, response)


def _note_answered(error: Exception) -> None:
    transactions = _current.get()
    if transactions is not None:
        transactions.note_answered(error)


def _note_uncaught(**signal: object) -> None:
    transactions = _current.get()
    if transactions is not None:
        transactions.note_uncaught(sys.exc_info()[1])


watch_views(_watch)
got_request_exception.connect(_note_uncaught, dispatch_uid="django_pgmonkey")
