# Generated from tests/_async/test_deadlines.py by tools/twins.py: change that file, then run the tool.

"""Limits of time: each ends what it limits in time, and is named in the error with its key."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from pgmonkey import CommandTimeoutError, CommitUnknownError, Database

from ..configs import pools, prepared

# Seconds that the end of a limit may be late; a loaded machine takes its time to wake a thread or task.
LATE = 0.05


@contextmanager
def ends_after(seconds: float) -> Iterator[None]:
    """Check that the block takes *seconds*."""
    started = time.monotonic()
    yield
    assert seconds - 0.005 <= time.monotonic() - started <= seconds + LATE


@pytest.mark.parametrize("limit", [0.05, 0.15, 0.33])
@pytest.mark.parametrize(
    "way", ["query method", "prepared", "cursor", "transaction", "execute_many", "copy", "pipeline"]
)
def test_a_statement_ends_in_time(way: str, limit: float, config: dict[str, Any]) -> None:
    config["connection_settings"]["command_timeout"] = limit
    database = Database(prepared(config) if way == "prepared" else pools(config))
    for _ in range(3):
        database.fetch_value("SELECT pg_sleep(%s::float8)", [0.0])

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

    with ends_after(limit), pytest.raises(psycopg.OperationalError) as caught:
        execute()
    errors = [caught.value, caught.value.__cause__, caught.value.__context__]
    (late,) = {error for error in errors if isinstance(error, CommandTimeoutError)}
    assert str(late) == f"the statement took longer than {limit} s (command_timeout)"
    database.close()


def test_a_large_answer_may_take_as_long_as_the_limit(config: dict[str, Any]) -> None:
    config["connection_settings"]["command_timeout"] = 0.4
    database = Database(pools(config))
    # The first rows arrive at once; no wait for the socket takes as long as an interval.
    query = "SELECT repeat('x', 9000), pg_sleep(0.01) FROM generate_series(1, %s)"
    assert len(database.fetch_all(query, [20])) == 20
    with ends_after(0.4), pytest.raises(CommandTimeoutError):
        database.fetch_all(query, [2000])
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
    with ends_after(0.15), pytest.raises(CommitUnknownError, match=r"longer than 0\.15 s \(command_timeout\)"):
        with database.transaction():
            database.execute("INSERT INTO t VALUES (1)")
    database.close()
