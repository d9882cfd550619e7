"""Tracers that have wrapped psycopg's ``connect()``: they see what is executed on lent connections, too.

A tracer either gives a connection a class of cursors of its own, or wraps the connection in a proxy whose cursors are
proxies.  A lent connection is another object, made without ``connect()``, so its cursors are made into what the tracer
would have made of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TypeVar, cast

from psycopg import BaseConnection, rows

from .psycopg_types import AnyConnection, AnyCursor

C = TypeVar("C", bound=AnyConnection)

MakeFast = Callable[[type[AnyCursor]], type[AnyCursor]]
"""Returns the class of cursors that takes the place of a class of psycopg's or of the program's."""


def is_wrapped(connect: object) -> bool:
    """Tell whether *connect*, as it stands in a class of psycopg's, is somebody else's."""
    function = getattr(connect, "__func__", None)
    package = str(getattr(function, "__globals__", {}).get("__name__")).partition(".")[0]
    return type(connect) is not classmethod or package != rows.__name__.partition(".")[0]


class Tracer:
    """What a tracer has made of one connection."""

    def __init__(self, cursor_class: type[AnyCursor] | None, proxy: Any, connection: AnyConnection) -> None:
        self._class = cursor_class
        self._proxy = proxy
        if proxy is not None:
            # Weak: a connection that nobody refers to is closed at once.
            proxy.__wrapped__ = _Stand(weakref.ref(connection))

    @classmethod
    def take(cls, made: C, wanted: object) -> C:
        """Return the connection that is in *made*, which ``connect()`` has returned; note on it who traces it.

        *wanted* is the class of cursors that it would have without a tracer.
        """
        connection: Any = made
        while not issubclass(type(connection), BaseConnection):
            connection = connection.__wrapped__
        traced = None if connection.cursor_factory is wanted else connection.cursor_factory
        if traced is not None:
            connection.cursor_factory = traced.__bases__[0]  # what the tracer has made its own from
        proxy = None if connection is made else made
        if traced is not None or proxy is not None:
            connection.__dict__["tracer"] = cls(traced, proxy, connection)
        return cast("C", connection)

    def prepare(self, connection: Any, make_fast: MakeFast) -> None:
        """Have *connection* make the tracer's cursors; *make_fast* is what is done to their class without a tracer."""
        # An object cannot become one of a class that the tracer has given an instance dictionary.
        for name in ("cursor_factory", "server_cursor_factory"):
            factory: type[Any] = getattr(connection, name)
            if "made_for" not in vars(factory):
                setattr(connection, name, self._wanted(factory, make_fast))

    def _wanted(self, cursor_class: type[Any], make_fast: MakeFast) -> type[Any]:
        traced, fast = self._class, make_fast(cursor_class)
        return _traced(traced, fast)  # type: ignore[arg-type]  # classes are hashable

    def make(self, cursor_class: type[Any], make_fast: MakeFast, connection: AnyConnection, row_factory: Any) -> Any:
        """Return a new cursor of a class of psycopg's on *connection*, as the tracer's."""
        # psycopg's own objects cannot become of a class that the tracer has given an instance dictionary.
        return self.show(self._wanted(cursor_class, make_fast)(connection, row_factory=row_factory))

    def adopt(self, cursor: AnyCursor, make_fast: MakeFast) -> Any:
        """Return *cursor*, which the connection has not made, as a cursor of the tracer's."""
        cursor.__class__ = self._wanted(cursor.__class__, make_fast)
        return self.show(cursor)

    def show(self, cursor: AnyCursor) -> Any:
        """Return *cursor*, which is new, in the proxy that the tracer puts around it, if it does."""
        if self._proxy is None:
            return cursor
        token = _new.set(cursor)
        try:
            return self._proxy.cursor()
        finally:
            _new.reset(token)


@lru_cache
def _traced(traced: type[Any] | None, fast: type[Any]) -> type[Any]:
    """Return the class that tells the tracer, whose class is *traced* if it has one, and then does what *fast* does."""
    names = {"__module__": fast.__module__, "__slots__": (), "made_for": traced}
    return type(fast.__name__, (fast,) if traced is None else (traced, fast), names)


_new: ContextVar[AnyCursor] = ContextVar("pgmonkey_new_cursor")


class _Stand:
    """Stands in a tracer's proxy for the connection: the cursor that it makes is the one that was just made."""

    def __init__(self, connection: Callable[[], AnyConnection | None]) -> None:
        self._connection = connection

    def cursor(self, *_arguments: object, **_options: object) -> AnyCursor:
        return _new.get()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection(), name)
