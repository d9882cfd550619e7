"""One database of the current application: its query methods, the request's connection, and choices for views."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar, overload

from flask import has_request_context
from psycopg import Connection, IsolationLevel
from psycopg.rows import Row, RowFactory

from pgmonkey import Batch, CopyFile, CopyOptions, Database, Listening, LockName, Params, Statement, TableName

from ._compat import get_app
from ._settings import Scope, check_scope

if TYPE_CHECKING:
    from typing_extensions import Unpack

EXTENSION = "pgmonkey"
"""The key in ``app.extensions`` under which the databases of the application are."""
# The attribute of a view that holds its choices.
_CHOICES = "__pgmonkey__"

T = TypeVar("T")
View = TypeVar("View", bound=Callable[..., object])
SessionValues = Callable[[], Mapping[str, object] | None]


class TransactionOptions(TypedDict, total=False):
    """The options of `pgmonkey.Database.transaction`."""

    isolation: IsolationLevel | str | None
    read_only: bool | None
    deferrable: bool | None


Choice = tuple[Scope, TransactionOptions]


class BoundDatabase(Generic[Row]):
    """A database of the current Flask application.

    In a request, its query methods join the request's transaction; elsewhere each statement is its own transaction.
    """

    def __init__(self, key: str | None) -> None:
        self.key = key
        """The name in PGMONKEY_BINDS; None for the database of PGMONKEY_CONFIG."""
        self._session_values: SessionValues | None = None

    @property
    def database(self) -> Database[Row]:
        """The database of the current application; raises RuntimeError outside one."""
        try:
            app = get_app()
        except RuntimeError:
            raise RuntimeError("there is no current Flask application; use 'with app.app_context():'") from None
        databases: dict[str | None, Database[Row]] | None = app.extensions.get(EXTENSION)
        if databases is None:
            raise RuntimeError(
                f"no PGMonkey is set up on {app.name!r}; call db.init_app(app), and use the same instance everywhere"
            )
        database = databases.get(self.key)
        if database is None:
            names = ", ".join(f"db[{key!r}]" if key else "db" for key in databases)
            setting = "PGMONKEY_CONFIG" if self.key is None else f"PGMONKEY_BINDS[{self.key!r}]"
            raise RuntimeError(f"{app.name!r} has no {setting}; there is {names}")
        return database

    @property
    def connection(self) -> Connection[Row]:
        """The connection of the current request: borrowed at the first use, given back when the response starts."""
        unit = self.database.current_unit()
        if unit is None:
            where = "in this request" if has_request_context() else "outside of a request"
            raise RuntimeError(f"there is no transaction {where}; use 'with db.transaction() as connection:'")
        return unit.connection()

    # -- choices of the application -------------------------------------------------------------------------------

    def session_values(self, function: SessionValues) -> SessionValues:
        """Set the configuration parameters that *function* returns in each transaction of a request; a decorator.

        It is called before a transaction starts and before each query method in it.  The values last until the end of
        the transaction, also in streams and for single statements, as row-level security requires.
        """
        self._session_values = function
        return function

    def values_of_request(self) -> Mapping[str, object] | None:
        """Return the session values of the current request; None outside a request."""
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
        """Override PGMONKEY_TRANSACTION for one view, with ``"request"`` or ``"statement"``; a decorator.

        The options are those of `transaction`; they apply to the transaction of the request.
        """
        options: TransactionOptions = {"isolation": isolation, "read_only": read_only, "deferrable": deferrable}
        choice = check_scope("transaction_per()", scope), options

        def choose(view: View) -> View:
            # On the view itself, because functools.wraps() copies it to decorators further out.
            setattr(view, _CHOICES, {**choices_of(view), self.key: choice})
            return view

        return choose

    # -- query methods --------------------------------------------------------------------------------------------

    @overload
    def fetch_one(
        self, query: Statement, params: Params = None, *, row_factory: None = None, timeout: float | None = None
    ) -> Row | None: ...

    @overload
    def fetch_one(
        self, query: Statement, params: Params = None, *, row_factory: RowFactory[T], timeout: float | None = None
    ) -> T | None: ...

    def fetch_one(
        self,
        query: Statement,
        params: Params = None,
        *,
        row_factory: RowFactory[Any] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Return the first row of *query*, or None if there is none."""
        factory: Any = row_factory  # or None: the overloads know which
        return self.database.fetch_one(query, params, row_factory=factory, timeout=timeout)

    @overload
    def fetch_exactly_one(
        self, query: Statement, params: Params = None, *, row_factory: None = None, timeout: float | None = None
    ) -> Row: ...

    @overload
    def fetch_exactly_one(
        self, query: Statement, params: Params = None, *, row_factory: RowFactory[T], timeout: float | None = None
    ) -> T: ...

    def fetch_exactly_one(
        self,
        query: Statement,
        params: Params = None,
        *,
        row_factory: RowFactory[Any] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Return the only row of *query*.  See `pgmonkey.Database.fetch_exactly_one`."""
        factory: Any = row_factory  # or None: the overloads know which
        return self.database.fetch_exactly_one(query, params, row_factory=factory, timeout=timeout)

    @overload
    def fetch_all(
        self, query: Statement, params: Params = None, *, row_factory: None = None, timeout: float | None = None
    ) -> list[Row]: ...

    @overload
    def fetch_all(
        self, query: Statement, params: Params = None, *, row_factory: RowFactory[T], timeout: float | None = None
    ) -> list[T]: ...

    def fetch_all(
        self,
        query: Statement,
        params: Params = None,
        *,
        row_factory: RowFactory[Any] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Return all rows of *query*."""
        factory: Any = row_factory  # or None: the overloads know which
        return self.database.fetch_all(query, params, row_factory=factory, timeout=timeout)

    def fetch_value(self, query: Statement, params: Params = None, *, timeout: float | None = None) -> Any:
        """Return the first column of the first row of *query*, or None if there is no row."""
        return self.database.fetch_value(query, params, timeout=timeout)

    def fetch_values(self, query: Statement, params: Params = None, *, timeout: float | None = None) -> list[Any]:
        """Return the first column of all rows of *query*."""
        return self.database.fetch_values(query, params, timeout=timeout)

    def execute(self, query: Statement, params: Params = None, *, timeout: float | None = None) -> int:
        """Run *query*; return the number of rows affected, or -1 if the statement reports none."""
        return self.database.execute(query, params, timeout=timeout)

    @overload
    def execute_many(
        self,
        query: Statement,
        params_seq: Iterable[Params],
        *,
        returning: Literal[False] = False,
        timeout: float | None = None,
    ) -> int: ...

    @overload
    def execute_many(
        self,
        query: Statement,
        params_seq: Iterable[Params],
        *,
        returning: Literal[True],
        timeout: float | None = None,
    ) -> list[Row]: ...

    def execute_many(
        self,
        query: Statement,
        params_seq: Iterable[Params],
        *,
        returning: bool = False,
        timeout: float | None = None,
    ) -> int | list[Row]:
        """Run *query* for each of *params_seq* in one transaction; return the number of rows affected in all.

        With *returning*, return the rows that it returned.
        """
        if returning:
            return self.database.execute_many(query, params_seq, returning=True, timeout=timeout)
        return self.database.execute_many(query, params_seq, timeout=timeout)

    def copy_rows(
        self,
        table: TableName,
        rows: Iterable[Any],
        columns: Sequence[str] | None = None,
        *,
        timeout: float | None = None,
    ) -> int:
        """Store *rows* in *table* by COPY; return their number.  See `pgmonkey.Database.copy_rows`."""
        return self.database.copy_rows(table, rows, columns, timeout=timeout)

    def copy_from(
        self,
        table: TableName,
        file: CopyFile,
        columns: Sequence[str] | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[CopyOptions],
    ) -> int:
        """Store what is in *file* in *table* by COPY.  See `pgmonkey.Database.copy_from`."""
        return self.database.copy_from(table, file, columns, timeout=timeout, **options)

    def copy_to(
        self,
        query: Statement,
        file: CopyFile,
        params: Params = None,
        *,
        timeout: float | None = None,
        **options: Unpack[CopyOptions],
    ) -> int:
        """Write the rows of *query* into *file* by COPY.  See `pgmonkey.Database.copy_to`."""
        return self.database.copy_to(query, file, params, timeout=timeout, **options)

    @overload
    def stream(
        self,
        query: Statement,
        params: Params = None,
        *,
        size: int = 1000,
        row_factory: None = None,
        timeout: float | None = None,
    ) -> Iterator[Row]: ...

    @overload
    def stream(
        self,
        query: Statement,
        params: Params = None,
        *,
        size: int = 1000,
        row_factory: RowFactory[T],
        timeout: float | None = None,
    ) -> Iterator[T]: ...

    def stream(
        self,
        query: Statement,
        params: Params = None,
        *,
        size: int = 1000,
        row_factory: RowFactory[Any] | None = None,
        timeout: float | None = None,
    ) -> Iterator[Any]:
        """Return an iterator over the rows of *query*, on a separate connection, also after the view has returned."""
        factory: Any = row_factory  # or None: the overloads know which
        return self.database.stream(query, params, size=size, row_factory=factory, timeout=timeout)

    def batch(self, *, timeout: float | None = None) -> Batch[Row]:
        """Run several statements in one round trip.  See `pgmonkey.Database.batch`."""
        return self.database.batch(timeout=timeout)

    def lock(
        self, name: LockName, *, shared: bool = False, wait: bool | float = True, session: bool = False
    ) -> AbstractContextManager[None]:
        """Hold an advisory lock in a block.  See `pgmonkey.Database.lock`."""
        return self.database.lock(name, shared=shared, wait=wait, session=session)

    def listen(self, *channels: str) -> Listening:
        """Return an iterator over the notifications of *channels*.  See `pgmonkey.Database.listen`."""
        return self.database.listen(*channels)

    def notify(self, channel: str, payload: str = "") -> None:
        """Notify those who listen to *channel*, when the transaction is committed."""
        self.database.notify(channel, payload)

    def transaction(
        self,
        *,
        isolation: IsolationLevel | str | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
        timeout: float | None = None,
    ) -> AbstractContextManager[Connection[Row]]:
        """Run a block in a transaction; in a request, in a savepoint of it.  See `pgmonkey.Database.transaction`."""
        return self.database.transaction(
            isolation=isolation, read_only=read_only, deferrable=deferrable, timeout=timeout
        )

    def retry(
        self,
        function: Callable[[], T],
        *,
        attempts: int = 5,
        isolation: IsolationLevel | str | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
        timeout: float | None = None,
    ) -> T:
        """Run *function* in a transaction, again after a serialisation failure.  See `pgmonkey.Database.retry`."""
        return self.database.retry(
            function,
            attempts=attempts,
            isolation=isolation,
            read_only=read_only,
            deferrable=deferrable,
            timeout=timeout,
        )

    def ping(self) -> float:
        """Run ``SELECT 1``; return the seconds it took."""
        return self.database.ping()

    def stats(self) -> dict[str, int]:
        """Return the pool's counters, named as in psycopg_pool."""
        return self.database.stats()


def choices_of(view: object) -> dict[str | None, Choice]:
    """Return what `BoundDatabase.transaction_per` chose for *view*, by the key of the database."""
    chosen: dict[str | None, Choice] = getattr(view, _CHOICES, {})
    return chosen
