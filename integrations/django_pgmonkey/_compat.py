"""The private methods of Django that this backend overrides or calls.

Where one is missing or takes other arguments, loading the backend raises ImproperlyConfigured: an override that Django
no longer calls would leave connections borrowed.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import django
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.base import BaseHandler
from django.db.backends.postgresql import base as postgresql

if TYPE_CHECKING:
    from psycopg import Connection

View = Callable[..., Any]
"""A view, or a function that calls one."""

_TESTED = "Django 5.2 to 6.1"
# Of which class, by the words for it, and with how many arguments Django calls them, self among them.
_METHODS: dict[str, tuple[type, dict[str, int]]] = {
    "PostgreSQL backend": (
        postgresql.DatabaseWrapper,
        {"_close": 1, "_configure_connection": 2, "_configure_timezone": 2, "_set_autocommit": 2},
    ),
    "handler of requests": (BaseHandler, {"make_view_atomic": 2}),
}


def _unsupported(difference: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(
        f"Django {django.__version__}: {difference}; this release of pgmonkey works with {_TESTED}: install one of"
        " these, or a release of pgmonkey that knows yours"
    )


def _check() -> None:
    for owner, (kind, methods) in _METHODS.items():
        for name, arguments in methods.items():
            method = getattr(kind, name, None)
            if not callable(method):
                raise _unsupported(f"its {owner} has no method {name}()")
            # The number, not the names: what traces Django may have wrapped them.
            try:
                inspect.signature(method).bind(*[None] * arguments)
            except TypeError:
                called = f"{name}{inspect.signature(method)} of its {owner}"
                raise _unsupported(f"{called} is not called with {arguments} arguments") from None


_check()


class PostgresWrapper(postgresql.DatabaseWrapper):
    """Django's own wrapper, with its private methods declared for type checkers."""

    if TYPE_CHECKING:
        rollback_exc: BaseException | None

        def _close(self) -> None: ...
        def _configure_connection(self, connection: Connection[object]) -> bool: ...
        def _configure_timezone(self, connection: Connection[object]) -> bool: ...
        def _set_autocommit(self, autocommit: bool) -> None: ...


def watch_views(watch: Callable[[View, View], View]) -> None:
    """Let *watch* wrap what Django calls for a view: it is given the view, and the view as Django has wrapped it.

    ATOMIC_REQUESTS wraps views there too; only there is it seen that a view raises, before others answer it.
    """
    make_view_atomic = BaseHandler.make_view_atomic

    @wraps(make_view_atomic)
    def make_watched(handler: BaseHandler, view: View) -> View:
        return watch(view, make_view_atomic(handler, view))

    BaseHandler.make_view_atomic = make_watched  # type: ignore[method-assign, assignment]


def watch_ninja(note: Callable[[Exception], None]) -> None:
    """Let *note* hear what operations of django-ninja raise, once that is imported; nothing is done a second time.

    Its API answers exceptions by handlers of its own, within what Django calls for a view.
    """
    api = getattr(sys.modules.get("ninja"), "NinjaAPI", None)
    on_exception = getattr(api, "on_exception", None)
    if api is None or on_exception is None or hasattr(on_exception, "__wrapped__"):
        return

    @wraps(on_exception)
    def on_noted(self: object, request: object, exc: Exception) -> object:
        note(exc)
        return on_exception(self, request, exc)

    api.on_exception = on_noted
