"""The private methods of Django's PostgreSQL backend that this backend overrides or calls.

Where one is missing or takes other arguments, loading the backend raises ImproperlyConfigured: an override that Django
no longer calls would leave connections borrowed.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import django
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.postgresql import base as postgresql

if TYPE_CHECKING:
    from psycopg import Connection

_TESTED = "Django 5.2 to 6.1"
# With how many arguments Django calls them, self among them.
_METHODS = {"_close": 1, "_configure_connection": 2, "_configure_timezone": 2, "_set_autocommit": 2}


def _unsupported(difference: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(
        f"Django {django.__version__}: {difference}; this release of pgmonkey works with {_TESTED}: install one of"
        " these, or a release of pgmonkey that knows yours"
    )


def _check() -> None:
    for name, arguments in _METHODS.items():
        method = getattr(postgresql.DatabaseWrapper, name, None)
        if not callable(method):
            raise _unsupported(f"its PostgreSQL backend has no method {name}()")
        # The number, not the names: what traces Django may have wrapped them.
        try:
            inspect.signature(method).bind(*[None] * arguments)
        except TypeError:
            called = f"{name}{inspect.signature(method)} of its PostgreSQL backend"
            raise _unsupported(f"{called} is not called with {arguments} arguments") from None


_check()


class PostgresWrapper(postgresql.DatabaseWrapper):
    """Django's own wrapper, with its private methods declared for type checkers."""

    if TYPE_CHECKING:

        def _close(self) -> None: ...
        def _configure_connection(self, connection: Connection[object]) -> bool: ...
        def _configure_timezone(self, connection: Connection[object]) -> bool: ...
        def _set_autocommit(self, autocommit: bool) -> None: ...
