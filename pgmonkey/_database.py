# Generated from _database_async.py by tools/twins.py: change that file, then run the tool.

"""`Database`: the verbs, transactions and units of work that applications use."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any, Generic, TypeVar, cast, overload

import psycopg
from psycopg import Connection, Cursor, IsolationLevel
from psycopg.errors import (
    DeadlockDetected,
    FeatureNotSupported,
    InvalidSqlStatementName,
    QueryCanceled,
    SerializationFailure,
)
from psycopg.pq import TransactionStatus
from psycopg.rows import Row, RowFactory, TupleRow, tuple_row

from ._blocks import TransactionBlock, UnitBlock
from ._blueprint import blueprint
from ._colour import POOL_KIND, sleep
from ._connection import ConnectionHandle
from ._fast import MISS, FastPath, read_all, read_count, read_one, read_value
from ._lease import Lease
from ._lending import Label
from ._manager import PGConnectionManager
from ._mode import Mode
from ._prepared import is_outdated
from ._statement import Params, Statement, leaves_state
from ._unit import SessionValues, UnitOfWork, enter, set_values, units

T = TypeVar("T")

_STOPPED = QueryCanceled("the stream was closed before its end")
# Seconds to wait before a transaction is tried again: at random up to the first, doubled each time, at most the last.
_BACKOFF = (0.02, 1.0)


class Database(Generic[Row]):
    """A database described by one configuration, used through a pool.

    *config* is the path of a YAML file or a mapping; it is checked here, and nothing is connected before the first use.
    *row_factory* is psycopg's; rows are tuples by default.  *session_values* is called when a transaction begins and
    returns configuration parameters to be set until it ends, for row-level security: ``{"app.tenant": 42}``.

    The verbs run one statement: outside a transaction on a connection borrowed for just that statement, in one round
    trip; inside ``transaction()`` or a unit of work on its connection, as part of it.
    """

    @overload
    def __init__(
        self: Database[TupleRow],
        config: str | os.PathLike[str] | Mapping[str, Any],
        *,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        row_factory: None = None,
        session_values: Callable[[], SessionValues | None] | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        config: str | os.PathLike[str] | Mapping[str, Any],
        *,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        row_factory: RowFactory[Row],
        session_values: Callable[[], SessionValues | None] | None = None,
    ) -> None: ...

    def __init__(
        self,
        config: str | os.PathLike[str] | Mapping[str, Any],
        *,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        row_factory: RowFactory[Any] | None = None,
        session_values: Callable[[], SessionValues | None] | None = None,
    ) -> None:
        self._manager = PGConnectionManager()
        options = {"resolve_env": resolve_env, "allow_sensitive_defaults": allow_sensitive_defaults}
        self.timeout = blueprint(self._manager.load(config, **options), POOL_KIND).settings.timeout
        """How long a borrow waits for a free connection, in seconds."""
        from_dict, from_file = self._manager.get_database_connection_from_dict, self._manager.get_database_connection
        get: Any = from_dict if isinstance(config, Mapping) else from_file
        self._get: Callable[[], ConnectionHandle] = partial(get, config, POOL_KIND, **options)
        self._row_factory = row_factory
        self._session_values = session_values
        self._handle: ConnectionHandle | None = None
        self._fast: FastPath | None = None

    # -- life -----------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Open the pool now; raise what psycopg raises when the server cannot be reached."""
        self._pool()

    def close(self) -> None:
        """Let go of the pool, which closes when nobody else in the process uses it.  A later use opens it again."""
        self.release()

    def release(self) -> None:
        """Do what `close` does, where nothing can be awaited."""
        self._handle = self._fast = None
        self._manager.clear_cache()

    disconnect = close

    def ping(self) -> float:
        """Ask the server for a sign of life; return the seconds it took, or raise what psycopg raises."""
        started = perf_counter()
        self.fetch_value("SELECT 1")
        return perf_counter() - started

    def stats(self) -> dict[str, int]:
        """Return the pool's counters, named as in psycopg_pool; empty before the first use."""
        return {} if self._handle is None else self._handle.stats()

    def _pool(self) -> ConnectionHandle:
        handle = self._handle
        if handle is None or not handle.usable_here:
            handle = self._get()
            self._fast = handle.fast_path(self._row_factory, self._session_values and self.session_values)
            self._handle = handle
        return handle

    def _borrow(self, autocommit: bool | None = None, timeout: float | None = None) -> Lease:
        pool = self._pool()
        lease = pool.borrow(timeout=timeout, autocommit=autocommit)
        lease.row_factory = self._row_factory
        return lease

    def borrow(self, *, timeout: float | None = None, label: Label | None = None) -> Lease:
        """Lend a connection, not in autocommit, until the lease is finished, which is up to the caller.

        *timeout* is in seconds and defaults to the pool's; *label* tells, when it is called, for whom it is borrowed.
        """
        handle = self._handle
        if handle is None or not handle.usable_here:
            handle = self._pool()
        lease = handle.borrow(timeout=timeout, autocommit=False, label=label)
        lease.row_factory = self._row_factory
        return lease

    def session_values(self) -> SessionValues:
        """Return the configuration parameters that a transaction which began now would get."""
        return (self._session_values() if self._session_values is not None else None) or {}

    # -- the verbs ------------------------------------------------------------------------------------------------

    def fetch_one(self, query: Statement, params: Params = None) -> Row | None:
        """Return the first row of *query*, or None when there is none."""
        fast = self._fast
        if fast is not None:
            unit = self.current_unit() if units.get() else None
            read = read_one
            found = fast.run(query, params, read) if unit is None else unit.answer(fast, query, params, read)
            if found is not MISS:
                return found  # type: ignore[no-any-return]
        with self._run(query, params) as cursor:
            return cursor.fetchone()

    def fetch_all(self, query: Statement, params: Params = None) -> list[Row]:
        """Return all rows of *query*."""
        fast = self._fast
        if fast is not None:
            unit = self.current_unit() if units.get() else None
            read = read_all
            found = fast.run(query, params, read) if unit is None else unit.answer(fast, query, params, read)
            if found is not MISS:
                return found  # type: ignore[no-any-return]
        with self._run(query, params) as cursor:
            return cursor.fetchall()

    def fetch_value(self, query: Statement, params: Params = None) -> Any:
        """Return the first column of the first row of *query*, or None when there is no row."""
        fast = self._fast
        if fast is not None:
            unit = self.current_unit() if units.get() else None
            read = read_value
            found = fast.run(query, params, read) if unit is None else unit.answer(fast, query, params, read)
            if found is not MISS:
                return found
        with self._run(query, params) as cursor:
            cursor.row_factory = cast(Any, tuple_row)
            row: Any = cursor.fetchone()
        return None if row is None else row[0]

    def execute(self, query: Statement, params: Params = None) -> int:
        """Run *query*; return the number of rows affected, -1 where the statement has none."""
        fast = self._fast
        if fast is not None:
            unit = self.current_unit() if units.get() else None
            read = read_count
            found = fast.run(query, params, read) if unit is None else unit.answer(fast, query, params, read)
            if found is not MISS:
                return found  # type: ignore[no-any-return]
        with self._run(query, params) as cursor:
            return cursor.rowcount

    def execute_many(self, query: Statement, params_seq: Iterable[Params]) -> int:
        """Run *query* for each of *params_seq* in one transaction; return the number of rows affected in all."""
        with self.transaction() as connection, connection.cursor() as cursor:
            cursor.executemany(query, [params if params is not None else () for params in params_seq])
            return cursor.rowcount

    def stream(self, query: Statement, params: Params = None, *, size: int = 1000) -> Iterator[Row]:
        """Return an iterator over the rows of *query*, which come from a server-side cursor, *size* at a time.

        A stream has a connection and a transaction of its own, and gives it back when it ends or is closed.
        """
        return self._stream(query, params, size, self.session_values())

    def _stream(self, query: Statement, params: Params, size: int, values: SessionValues) -> Iterator[Row]:
        lease = self._borrow(autocommit=False)
        stopped = False
        try:
            if values:
                set_values(lease.connection, values)
            cursor = lease.connection.cursor("pgmonkey_stream")
            try:
                cursor.itersize = size
                cursor.execute(query, params)
                for row in cursor:
                    try:
                        yield row
                    except GeneratorExit:
                        stopped = True
                        raise
            finally:
                # Only here: the end of the transaction closes it on the server, and nothing can interrupt this.
                Cursor.close(cursor)
        except BaseException as error:
            # A generator that is being closed may wait, unlike a coroutine.
            lease.finish(_STOPPED if stopped else error)
            if stopped and isinstance(error, psycopg.Error):
                return  # whoever stopped it does not mind that the connection was lost
            raise
        lease.finish()

    @contextmanager
    def _run(self, query: Statement, params: Params) -> Iterator[Cursor[Row]]:
        unit = self.current_unit()
        if unit is not None:
            with unit.at_work() as going_on:
                if going_on:
                    connection = unit.connection()
                    with self._execute(connection, query, params) as cursor:
                        yield cursor
                        if self._fast is not None:
                            self._fast.learn(connection, query, params, cursor)
                    return
        pool = self._pool()
        if pool.needs_transactions or (self._session_values is not None and self.session_values()):
            with self.unit_of_work(), self._run(query, params) as cursor:
                yield cursor
            return
        lease = self._borrow(autocommit=True)
        try:
            with self._execute(lease.connection, query, params) as cursor:
                yield cursor
                if self._fast is not None:
                    self._fast.learn(lease.connection, query, params, cursor)
        except BaseException as error:
            lease.finish(error, clean=leaves_state(query))
            raise
        lease.finish(clean=leaves_state(query))

    def _execute(self, connection: Connection[Row], query: Statement, params: Params) -> Cursor[Row]:
        alone = connection.pgconn.transaction_status == TransactionStatus.IDLE
        try:
            return connection.execute(query, params)
        except (FeatureNotSupported, InvalidSqlStatementName) as error:
            if not is_outdated(error):
                raise
            # Other connections have prepared for the old shape of the table, too.
            (self._pool()).forget_plans()
            if not alone:
                raise
            # Nothing was done yet.
            if connection.pgconn.transaction_status == TransactionStatus.INERROR:
                connection.rollback()
            return connection.execute(query, params)

    # -- transactions and units of work ---------------------------------------------------------------------------

    @contextmanager
    def connection(self, *, timeout: float | None = None) -> Iterator[Connection[Row]]:
        """Lend a connection of its own for a block: committed at the end, rolled back when the block raises.

        *timeout* is how long to wait for a free one, in seconds, the pool's ``timeout`` by default.
        """
        lease = self._borrow(timeout=timeout)
        try:
            if values := self.session_values():
                set_values(lease.connection, values)
            yield lease.connection
        except BaseException as error:
            lease.finish(error)
            raise
        lease.finish()

    def transaction(
        self,
        *,
        isolation: IsolationLevel | str | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
    ) -> TransactionBlock[Row]:
        """Run a block in a transaction, which the verbs join; inside another one, in a savepoint of it.

        *isolation* is a `psycopg.IsolationLevel` or its name, such as ``"serializable"``.  The options are those of
        the outermost transaction, so inside another one they can be given as long as it has not begun: afterwards they
        raise `psycopg.ProgrammingError`.
        """
        return TransactionBlock(self, Mode.of(isolation, read_only, deferrable))

    def retry(
        self,
        function: Callable[[], T],
        *,
        attempts: int = 5,
        isolation: IsolationLevel | str | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
    ) -> T:
        """Run *function* in a transaction of its own, and commit it; return what it returned.

        When the server could not serialise it (SQLSTATE 40001) or ended a deadlock with it (40P01), at whatever
        statement or at COMMIT, *function* runs again after a short random pause, at most *attempts* times in all; then
        that error is raised.  Raises `psycopg.ProgrammingError` inside a transaction, which could not be run again.
        """
        unit = self.current_unit()
        if unit is not None and unit.borrowed:
            raise psycopg.ProgrammingError(
                "retry() cannot run again what the transaction around it did; call it first, or outside"
            )
        mode = Mode.of(isolation, read_only, deferrable)
        pause, longest = _BACKOFF

        def begin() -> UnitOfWork[Row]:
            return enter(UnitOfWork(self, mode))

        for _ in range(attempts - 1):
            try:
                with UnitBlock(begin):
                    return function()
            except (SerializationFailure, DeadlockDetected):
                sleep(random.uniform(0, pause))  # noqa: S311
                pause = min(2 * pause, longest)
        with UnitBlock(begin):
            return function()

    def unit_of_work(self) -> UnitBlock[Row]:
        """Open a unit of work for a block: `transaction` that borrows only when the first verb needs a connection.

        When that only reads, the transaction begins with what comes next; see `UnitOfWork`.
        """
        return UnitBlock(self.begin)

    def begin(
        self,
        *,
        isolation: IsolationLevel | str | None = None,
        read_only: bool | None = None,
        deferrable: bool | None = None,
        label: Label | None = None,
        on_borrow: Callable[[], None] | None = None,
    ) -> UnitOfWork[Row]:
        """Open a unit of work that the verbs of this context join, until its `finish` is called.

        *label* tells, when it is called, on whose behalf; *on_borrow* is called each time that one was borrowed.
        """
        mode = Mode.of(isolation, read_only, deferrable)
        return enter(UnitOfWork(self, mode, label, on_borrow, reads_alone=True))

    def current_unit(self) -> UnitOfWork[Row] | None:
        """Return the innermost unfinished unit of work of this database that the current context is in."""
        unit: UnitOfWork[Row]
        for unit in reversed(units.get()):
            if unit.source is self and not unit.finished:
                return unit
        return None
