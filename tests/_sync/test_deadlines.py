# Generated from tests/_async/test_deadlines.py by tools/twins.py: change that file, then run the tool.

"""Limits of time: each ends what it limits in time, and is named in the error with its key."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import Connection

from pgmonkey import CommandTimeoutError, CommitUnknownError, Database, PoolTimeoutError, ServerUnavailableError
from pgmonkey._sync.waiting import sleep

from ..configs import pools, prepared
from .concurrency import Beside

if TYPE_CHECKING:
    from typing_extensions import LiteralString

# Seconds that the end of a limit may be late.
LATE = 0.05


def warm_up(database: Database[Any], query: LiteralString, *params: float) -> None:
    """Execute *query*; a busy machine may take longer than the limit, now and then."""
    for _ in range(30):
        with suppress(CommandTimeoutError):
            database.fetch_value(query, params)
            return


def end_of(execute: Callable[[], object], seconds: float, database: Database | None = None) -> psycopg.OperationalError:
    """Return the error with which *execute* ends after *seconds*, on a connection of the *database* that is ready.

    It may be late a few times: a busy machine takes its time to wake a thread or a task.
    """
    took: list[float] = []
    error = psycopg.OperationalError()
    while not took or took[-1] > seconds + LATE:
        assert len(took) < 30, took
        if database is not None:
            warm_up(database, "SELECT 1")
        started = time.monotonic()
        with pytest.raises(psycopg.OperationalError) as caught:
            execute()
        error = caught.value
        took.append(time.monotonic() - started)
        assert took[-1] >= seconds - 0.005
    return error


@pytest.mark.parametrize("limit", [0.05, 0.15, 0.33])
@pytest.mark.parametrize(
    "way", ["query method", "prepared", "cursor", "transaction", "execute_many", "copy", "pipeline"]
)
def test_a_statement_ends_in_time(way: str, limit: float, config: dict[str, Any]) -> None:
    config["connection_settings"]["command_timeout"] = limit
    database = Database(prepared(config) if way == "prepared" else pools(config))
    for _ in range(3):
        warm_up(database, "SELECT pg_sleep(%s::float8)", 0.0)

    def execute() -> None:
        if way in ("query method", "prepared"):
            database.fetch_value("SELECT pg_sleep(%s::float8)", [9.0])
        elif way == "execute_many":
            database.execute_many("SELECT pg_sleep(%s::float8)", [[9.0], [9.0]])
        elif way == "transaction":
            with database.transaction():
                database.fetch_value("SELECT 1")
                database.fetch_value("SELECT pg_sleep(%s::float8)", [9.0])
        else:
            with database.connection() as connection:
                if way == "cursor":
                    connection.execute("SELECT pg_sleep(9)")
                elif way == "copy":
                    copying = connection.cursor().copy("COPY (SELECT pg_sleep(9)) TO STDOUT")
                    with copying as copy:
                        copy.read()
                else:
                    with connection.pipeline():
                        cursor = connection.execute("SELECT pg_sleep(9)")
                        cursor.fetchone()

    error = end_of(execute, limit, database)
    # psycopg's pipeline raises what its end says, too.
    (late,) = {error for error in (error, error.__context__) if isinstance(error, CommandTimeoutError)}
    assert str(late) == f"the statement took longer than {limit} s (command_timeout)"
    database.close()


def test_a_large_answer_may_take_as_long_as_the_limit(config: dict[str, Any]) -> None:
    config["connection_settings"]["command_timeout"] = 0.4
    database = Database(pools(config))
    # The first rows arrive at once; no wait for the socket takes as long as an interval.
    query = "SELECT repeat('x', 9000), pg_sleep(0.01) FROM generate_series(1, %s)"
    assert len(database.fetch_all(query, [20])) == 20
    error = end_of(lambda: database.fetch_all(query, [2000]), 0.4, database)
    assert isinstance(error, CommandTimeoutError)
    database.close()


def test_a_commit_ends_in_time(config: dict[str, Any], observer: psycopg.Connection[Any]) -> None:
    body = "BEGIN PERFORM pg_sleep(9); RETURN NULL; END"
    observer.execute(f"CREATE FUNCTION slow() RETURNS trigger AS '{body}' LANGUAGE plpgsql".encode())
    observer.execute("CREATE TABLE t (a int)")
    deferred = "AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
    observer.execute(f"CREATE CONSTRAINT TRIGGER slow {deferred} EXECUTE FUNCTION slow()".encode())
    config["connection_settings"]["command_timeout"] = 0.15
    database = Database(pools(config))
    database.fetch_value("SELECT 1")

    def late() -> None:
        with database.transaction() as connection:
            connection.execute("INSERT INTO t VALUES (1)")

    error = end_of(late, 0.15, database)
    assert isinstance(error, CommitUnknownError)
    assert "longer than 0.15 s (command_timeout)" in str(error)
    database.close()


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where connections are taken, and nothing is answered."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", ["127.0.0.1", "localhost"]])
def test_connecting_ends_in_time(host: Any, silent: int, config: dict[str, Any]) -> None:
    config["connection_settings"] |= {"host": host, "port": silent}
    pool = {"min_size": 1, "max_size": 2, "timeout": 0.25}
    database = Database({**config, "pool_settings": pool, "async_pool_settings": pool})
    error = end_of(lambda: database.fetch_value("SELECT 1"), 0.25)
    assert isinstance(error, psycopg.errors.ConnectionTimeout)
    assert str(error).startswith("the server did not answer within 0.25 s (timeout)")
    database.close()


def test_connect_timeout_is_named(silent: int, config: dict[str, Any]) -> None:
    config["connection_settings"] |= {"host": "127.0.0.1", "port": silent, "connect_timeout": 2}
    database = Database(pools(config))
    error = end_of(lambda: database.fetch_value("SELECT 1"), 2)
    assert isinstance(error, psycopg.errors.ConnectionTimeout)
    assert str(error) == "the server did not answer within 2 s (connect_timeout)"
    database.close()


def test_configure_ends_in_time(config: dict[str, Any]) -> None:
    def configure(connection: Connection[Any]) -> None:
        connection.execute("SELECT pg_sleep(9)")

    pool = {"min_size": 1, "max_size": 1, "timeout": 0.4, "configure": configure}
    database = Database({**config, "pool_settings": pool, "async_pool_settings": pool})
    error = end_of(lambda: database.fetch_value("SELECT 1"), 0.4)
    assert str(error) == "the 'configure' function did not end within 0.4 s (timeout)"
    database.close()


def test_names_that_can_be_resolved_are_used(config: dict[str, Any]) -> None:
    port = config["connection_settings"]["port"]
    config["connection_settings"] |= {"host": ["no-such-host.invalid", "localhost"], "port": [port, port]}
    database = Database(pools(config))
    with database.connection() as connection:
        assert connection.info.host == "localhost"
    database.close()
    config["connection_settings"]["host"] = "no-such-host.invalid"
    del config["connection_settings"]["port"]
    database = Database(pools(config))
    with pytest.raises(ServerUnavailableError, match="failed to resolve host 'no-such-host"):
        database.fetch_value("SELECT 1")
    database.close()


def test_who_has_the_time_makes_the_connection(config: dict[str, Any]) -> None:
    database = Database(pools(config, max_size=1))
    lent = database.borrow()
    seen: list[str] = []

    def borrow(timeout: float) -> None:
        try:
            with database.connection(timeout=timeout):
                seen.append(f"{timeout} lent")
        except PoolTimeoutError as error:
            seen.append(f"{timeout} {'(timeout)' in str(error)}")

    hurried = Beside(lambda: borrow(0.5))
    sleep(0.05)
    patient = Beside(lambda: borrow(5.0))
    sleep(0.2)
    # Only a place comes free, no connection, and the first has less than a second left for making one.
    lent.abandon()
    for borrower in (patient, hurried):
        assert borrower.end() is None
    # The first may get the connection afterwards, if its time is not over by then.
    assert seen[0] != "0.5 lent", seen
    assert "5.0 lent" in seen
    database.close()
