"""The libraries for threads: each a context manager that gives, for a workload, a function to call."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import Any

import psycopg
import sqlalchemy
from psycopg_pool import ConnectionPool
from sqlalchemy import orm
from sqlspec import SQLSpec
from sqlspec.adapters.psycopg import PsycopgSyncConfig

from pgmonkey import Database

from .workloads import Workload

Make = Callable[[Workload], Callable[[], object]]
SIZE = 8
BOUNDS = ("libpq alone", "psycopg, held open")


class _Base(orm.DeclarativeBase):
    pass


class Thing(_Base):
    """A row, as SQLAlchemy maps it."""

    __tablename__ = "things"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str]
    made: orm.Mapped[datetime]


def _read(cursor: Any, workload: Workload) -> object:
    if workload.rows == "one":
        return cursor.fetchone()
    return cursor.fetchall() if workload.rows == "all" else cursor.rowcount


@contextmanager
def held_open(dsn: str, threads: int) -> Iterator[Make]:
    """Hold a psycopg connection open for each thread, in autocommit: no pool, no safety."""
    local, opened = threading.local(), []

    def connection() -> psycopg.Connection[Any]:
        if not hasattr(local, "connection"):
            local.connection = psycopg.connect(dsn, autocommit=True)
            opened.append(local.connection)
        return local.connection  # type: ignore[no-any-return]

    yield lambda w: lambda: _read(connection().execute(w.sql.encode(), w.params or None), w)
    for each in opened:
        each.close()


@contextmanager
def libpq_alone(dsn: str, threads: int) -> Iterator[Make]:
    """Libpq, by way of psycopg: prepared statements sent and their answers taken, but nothing made of them.

    The bound: what is left is the system's, the server's, and a loop in Python.
    """
    local, opened = threading.local(), []

    def connection() -> Any:
        if not hasattr(local, "connection"):
            local.connection = psycopg.connect(dsn, autocommit=True)
            local.poller = select.poll()
            local.poller.register(local.connection.fileno(), select.POLLIN)
            local.prepared = set()
            opened.append(local.connection)
        return local.connection

    def make(w: Workload) -> Callable[[], object]:
        params = [str(value).encode() for value in w.params]
        name = w.name.replace(" ", "_").encode()

        def call() -> object:
            pgconn = connection().pgconn
            if name not in local.prepared:
                pgconn.prepare(name, w.dollar_sql.encode())
                local.prepared.add(name)
            pgconn.send_query_prepared(name, params)
            answer = None
            while True:
                while pgconn.is_busy():
                    local.poller.poll()
                    pgconn.consume_input()
                result = pgconn.get_result()
                if result is None:
                    return answer
                answer = result

        return call

    yield make
    for each in opened:
        each.close()


@contextmanager
def pool_idiom(dsn: str, threads: int, **arguments: Any) -> Iterator[Make]:
    """psycopg_pool as its documentation shows it: a transaction a block."""
    with ConnectionPool(dsn, min_size=SIZE, max_size=SIZE, open=True, **arguments) as pool:
        pool.wait()

        def make(w: Workload) -> Callable[[], object]:
            def call() -> object:
                with pool.connection() as connection:
                    return _read(connection.execute(w.sql.encode(), w.params or None), w)

            return call

        yield make


def pool_autocommit(dsn: str, threads: int) -> AbstractContextManager[Make]:
    """psycopg_pool in autocommit, without a check: a restart of the server is an error of the next requests."""
    return pool_idiom(dsn, threads, kwargs={"autocommit": True})


def pool_checked(dsn: str, threads: int) -> AbstractContextManager[Make]:
    """psycopg_pool in autocommit, checking each connection, which is what it takes to survive a restart."""
    return pool_idiom(dsn, threads, kwargs={"autocommit": True}, check=ConnectionPool.check_connection)


@contextmanager
def sqlalchemy_core(dsn: str, threads: int) -> Iterator[Make]:
    """SQLAlchemy Core over psycopg, in autocommit."""
    url = dsn.replace("postgresql://", "postgresql+psycopg://")
    engine = sqlalchemy.create_engine(url, pool_size=SIZE, max_overflow=0, isolation_level="AUTOCOMMIT")

    def make(w: Workload) -> Callable[[], object]:
        statement, params = sqlalchemy.text(w.named_sql), w.named_params

        def call() -> object:
            with engine.connect() as connection:
                return _read(connection.execute(statement, params), w)

        return call

    yield make
    engine.dispose()


@contextmanager
def sqlalchemy_orm(dsn: str, threads: int) -> Iterator[Make]:
    """SQLAlchemy's ORM over psycopg: a session for each call, which loads an object where there is one row."""
    url = dsn.replace("postgresql://", "postgresql+psycopg://")
    engine = sqlalchemy.create_engine(url, pool_size=SIZE, max_overflow=0)

    def make(w: Workload) -> Callable[[], object]:
        statement, params = sqlalchemy.text(w.named_sql), w.named_params

        def call() -> object:
            with orm.Session(engine) as session:
                if w.name == "primary key":
                    return session.get(Thing, w.params[0])
                found = _read(session.execute(statement, params), w)
                session.commit()
                return found

        return call

    yield make
    engine.dispose()


@contextmanager
def sqlspec_session(dsn: str, threads: int) -> Iterator[Make]:
    """Sqlspec's session over psycopg's pool, in autocommit."""
    spec = SQLSpec()
    config = {"conninfo": dsn, "min_size": SIZE, "max_size": SIZE, "autocommit": True}
    registered: Any = spec.add_config(PsycopgSyncConfig(connection_config=config))

    def make(w: Workload) -> Callable[[], object]:
        method = {"one": "select_one", "all": "select", "none": "execute"}[w.rows]

        def call() -> object:
            with spec.provide_session(registered) as session:
                return getattr(session, method)(w.sql, *w.params)

        return call

    yield make
    registered.close_pool()


@contextmanager
def pgmonkey_query_method(dsn: str, threads: int) -> Iterator[Make]:
    """Pgmonkey's `fetch_one`, `fetch_all` and `execute`."""
    database = Database(_config(dsn))
    database.connect()

    def make(w: Workload) -> Callable[[], object]:
        methods = {"one": database.fetch_one, "all": database.fetch_all, "none": database.execute}
        method: Any = methods[w.rows]
        return lambda: method(w.sql, w.params or None)

    yield make
    database.close()


@contextmanager
def pgmonkey_transaction(dsn: str, threads: int) -> Iterator[Make]:
    """Pgmonkey's `transaction`, with one statement in it."""
    database = Database(_config(dsn))
    database.connect()

    def make(w: Workload) -> Callable[[], object]:
        def call() -> object:
            with database.transaction() as connection:
                return _read(connection.execute(w.sql.encode(), w.params or None), w)

        return call

    yield make
    database.close()


@contextmanager
def pgmonkey_request(dsn: str, threads: int) -> Iterator[Make]:
    """Pgmonkey's unit of work, which is what a request has, with one query method in it."""
    database = Database(_config(dsn))
    database.connect()

    def make(w: Workload) -> Callable[[], object]:
        methods = {"one": database.fetch_one, "all": database.fetch_all, "none": database.execute}
        method: Any = methods[w.rows]

        def call() -> object:
            with database.unit_of_work():
                return method(w.sql, w.params or None)

        return call

    yield make
    database.close()


def _config(dsn: str) -> dict[str, Any]:
    pool = {"min_size": SIZE, "max_size": SIZE}
    return {"connection_settings": {"conninfo": dsn}, "pool_settings": pool, "async_pool_settings": pool}


CANDIDATES = {
    "libpq alone": libpq_alone,
    "psycopg, held open": held_open,
    "psycopg_pool, its idiom": pool_idiom,
    "psycopg_pool, autocommit": pool_autocommit,
    "psycopg_pool, autocommit and check": pool_checked,
    "SQLAlchemy Core, autocommit": sqlalchemy_core,
    "SQLAlchemy ORM": sqlalchemy_orm,
    "sqlspec": sqlspec_session,
    "pgmonkey, query method": pgmonkey_query_method,
    "pgmonkey, request with one query method": pgmonkey_request,
    "pgmonkey, transaction": pgmonkey_transaction,
}
