"""One database of the current application: the verbs, the request's connection, and what a view may choose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

from flask import current_app, has_request_context
from psycopg import Connection, IsolationLevel
from psycopg.rows import Row

from pgmonkey import Database, Params, Statement

from ._settings import Scope, check_scope

# Of a proxy, the object is asked for once: each of its attributes would look for it again.
_current_app: Any = current_app

EXTENSION = "pgmonkey"
_CHOICE = "__pgmonkey__"

T = TypeVar("T")
View = TypeVar("View", bound=Callable[..., Any])
SessionValues = Callable[[], Mapping[str, object] | None]
Choice = tuple[Scope, dict[str, Any]]


class BoundDatabase(Generic[Row]):
    """A database of whichever Flask application is the current one.

    In a request its verbs are part of the request's transaction; elsewhere each stands for itself.
    """

    def __init__(self, key: str | None) -> None:
        self.key = key
        """The name in PGMONKEY_BINDS, None for the database of PGMONKEY_CONFIG."""
        self._session_values: SessionValues | None = None

    @property
    def database(self) -> Database[Row]:
        """The database of the current application; raises RuntimeError outside one."""
        try:
            app = _current_app._get_current_object()
        except RuntimeError:
            raise RuntimeError("there is no current Flask application; use 'with app.app_context():'") from None
        databases: dict[str | None, Database[Row]] | None = app.extensions.get(EXTENSION)
        if databases is None:
            raise RuntimeError(
                f"no PGMonkey is set up on {app.name!r}; call db.init_app(app), "
                "and see that one instance is used everywhere"
            )
        database = databases.get(self.key)
        if database is None:
            names = ", ".join(f"db[{key!r}]" if key else "db" for key in databases)
            setting = "PGMONKEY_CONFIG" if self.key is None else f"PGMONKEY_BINDS[{self.key!r}]"
            raise RuntimeError(f"{app.name!r} has no {setting}; there is {names}")
        return database

    @property
    def connection(self) -> Connection[Row]:
        """The connection of the current request, borrowed at the first use; the end of the request gives it back."""
        unit = self.database.current_unit()
        if unit is None:
            where = "this request" if has_request_context() else "here: there is no request"
            raise RuntimeError(f"there is no transaction {where}; use 'with db.transaction() as connection:'")
        return unit.connection()

    # -- what the application may choose --------------------------------------------------------------------------

    def session_values(self, function: SessionValues) -> SessionValues:
        """Let *function* say which configuration parameters each transaction of a request gets: a decorator.

        They hold until the end of the transaction, also of those of streams and single statements: what row-level
        security needs.  *function* is called in the request, when its transaction begins.
        """
        self._session_values = function
        return function

    def values_now(self) -> Mapping[str, object] | None:
        """Return the session values of the current request, None outside one."""
        if self._session_values is None or not has_request_context():
            return None
        return self._session_values()

    def transaction_per(
        self,
        scope: Scope,
        *,
        isolation: IsolationLevel | str | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
    ) -> Callable[[View], View]:
        """Choose for one view what PGMONKEY_TRANSACTION chooses for all, ``"request"`` or ``"statement"``: a decorator.

        The options are those of `transaction`, for the request's transaction.
        """
        options = {"isolation": isolation, "read_only": read_only, "deferrable": deferrable}
        choice = check_scope("transaction_per()", scope), options

        def choose(view: View) -> View:
            setattr(view, _CHOICE, {**choices(view), self.key: choice})
            return view

        return choose

    # -- the verbs ------------------------------------------------------------------------------------------------

    def fetch_one(self, query: Statement, params: Params = None) -> Row | None:
        """Return the first row of *query*, or None when there is none."""
        return self.database.fetch_one(query, params)

    def fetch_all(self, query: Statement, params: Params = None) -> list[Row]:
        """Return all rows of *query*."""
        return self.database.fetch_all(query, params)

    def fetch_value(self, query: Statement, params: Params = None) -> Any:
        """Return the first column of the first row of *query*, or None when there is no row."""
        return self.database.fetch_value(query, params)

    def execute(self, query: Statement, params: Params = None) -> int:
        """Run *query*; return the number of rows affected, -1 where the statement has none."""
        return self.database.execute(query, params)

    def execute_many(self, query: Statement, params_seq: Iterable[Params]) -> int:
        """Run *query* for each of *params_seq* in one transaction; return the number of rows affected in all."""
        return self.database.execute_many(query, params_seq)

    def stream(self, query: Statement, params: Params = None, *, size: int = 1000) -> Iterator[Row]:
        """Return an iterator over the rows of *query* on a connection of its own, also after the view has returned."""
        return self.database.stream(query, params, size=size)

    def transaction(
        self,
        *,
        isolation: IsolationLevel | str | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
    ) -> AbstractContextManager[Connection[Row]]:
        """Run a block in a transaction; in a request, in a savepoint.  See `pgmonkey.Database.transaction`."""
        return self.database.transaction(isolation=isolation, read_only=read_only, deferrable=deferrable)

    def retry(self, function: Callable[[], T], *, attempts: int = 5, **options: Any) -> T:
        """Run *function* in a transaction of its own until it can be serialised.  See `pgmonkey.Database.retry`."""
        return self.database.retry(function, attempts=attempts, **options)

    def ping(self) -> float:
        """Ask the server for a sign of life; return the seconds it took."""
        return self.database.ping()

    def stats(self) -> dict[str, int]:
        """Return the pool's counters, named as in psycopg_pool."""
        return self.database.stats()


def choices(view: Any) -> dict[str | None, Choice]:
    """Return what `BoundDatabase.transaction_per` chose for *view*, by database."""
    chosen: dict[str | None, Choice] = getattr(view, _CHOICE, {})
    return chosen
