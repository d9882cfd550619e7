# Generated from tests/_async/test_trace_to_server.py by tools/twins.py: change that file, then run the tool.

"""`trace_to_server`: the server is told which trace a transaction is part of, at no round trip and no plan."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from psycopg import ClientCursor, Connection

from pgmonkey import Database, PGConnectionManager
from pgmonkey._sync.waiting import POOL_KIND

from ..configs import prepared, proxied
from ..faults.proxy import FaultProxy

NAME = "SELECT current_setting('application_name')"
_numbers = itertools.count(1)


@contextmanager
def span() -> Iterator[str]:
    """Be in a span; yield its traceparent."""
    number = next(_numbers)
    context = SpanContext(number, number, is_remote=False, trace_flags=TraceFlags(1))
    with trace.use_span(NonRecordingSpan(context)):
        yield f"00-{number:032x}-{number:016x}-01"


def traced(settings: dict[str, Any]) -> dict[str, Any]:
    settings["connection_settings"].update(trace_to_server=True, application_name="shop")
    return settings


def by_method(database: Database[Any]) -> object:
    with database.unit_of_work():
        return database.fetch_value(NAME)


def by_cursor(database: Database[Any]) -> object:
    with database.transaction() as connection:
        cursor = connection.execute(NAME)
        return (cursor.fetchall())[0][0]


def by_savepoint(database: Database[Any]) -> object:
    with database.transaction(), database.transaction():
        return database.fetch_value(NAME)


def by_client_cursor(database: Database[Any]) -> object:
    with database.connection() as connection:
        cursor = ClientCursor(connection).execute(NAME)
        return (cursor.fetchall())[0][0]


def by_pipeline(database: Database[Any]) -> object:
    with database.connection() as connection:
        with connection.pipeline():
            cursor = connection.execute(NAME)
        return (cursor.fetchall())[0][0]


def by_batch(database: Database[Any]) -> object:
    with database.batch() as batch:
        found = batch.fetch_value(NAME)
    return found.result


def by_many(database: Database[Any]) -> object:
    query = f"{NAME} WHERE %s = 1"
    return (database.execute_many(query, [(1,), (2,)], returning=True))[0][0]


def by_stream(database: Database[Any]) -> object:
    rows = [row for row in database.stream(NAME)]
    return rows[0][0]


def by_copy(database: Database[Any]) -> object:
    with database.connection() as connection, connection.cursor() as cursor:
        with cursor.copy(f"COPY ({NAME}) TO STDOUT") as copy:
            rows = [row for row in copy.rows()]
        return rows[0][0]


WAYS = (
    *(by_method, by_cursor, by_savepoint, by_client_cursor, by_pipeline),
    *(by_batch, by_many, by_stream, by_copy),
)


# The last ones decide how parameters are sent, so that psycopg begins the transaction.
VALUES: tuple[dict[str, str] | None, ...] = (None, {"app.tenant": "1"}, {"DateStyle": "German, DMY"})
CASES = [(way, values) for way in WAYS for values in VALUES[: 3 if way in (by_method, by_batch, by_many) else 2]]


@pytest.mark.parametrize(("way", "values"), CASES)
def test_each_transaction_has_the_name_of_its_trace(
    way: Callable[[Any], object], values: dict[str, str] | None, config: dict[str, Any]
) -> None:
    asked = None if values is None else lambda: values
    database: Database[Any] = Database(traced(prepared(config, 2)), session_values=asked)
    for _ in range(4):  # the last ones are prepared
        with span() as name:
            assert way(database) == name
        assert way(database) == "shop"  # the next borrower, outside of a trace
    with span() as name:
        assert way(database) == name
    database.close()


def test_a_connection_has_the_trace_of_each_transaction(config: dict[str, Any]) -> None:
    database: Database[Any] = Database(traced(prepared(config)))

    def name_in(connection: Connection[Any]) -> str:
        cursor = connection.execute(NAME)
        return str((cursor.fetchall())[0][0])

    with database.connection() as connection:
        with span() as first:
            assert name_in(connection) == first
            connection.commit()
        with span() as second:
            assert name_in(connection) == second
            connection.rollback()
        assert name_in(connection) == "shop"
    handle: Any = PGConnectionManager()
    lent = handle.get_database_connection_from_dict(traced(prepared(config)), POOL_KIND)
    with span() as third:
        with lent as connection:
            assert name_in(connection) == third
    handle.clear_cache()
    database.close()


def test_a_statement_alone_has_no_trace(config: dict[str, Any]) -> None:
    database: Database[Any] = Database(traced(prepared(config)))
    with span():
        assert [database.fetch_value(NAME) for _ in range(4)] == ["shop"] * 4
    database.close()


def test_a_transaction_may_still_choose_its_isolation_level(config: dict[str, Any]) -> None:
    database: Database[Any] = Database(traced(prepared(config)))
    with span() as name:
        with database.transaction() as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            assert database.fetch_value("SHOW transaction_isolation") == "serializable"
            assert database.fetch_value(NAME) == name
    database.close()


def test_it_costs_no_round_trip_and_no_plan(config: dict[str, Any]) -> None:
    connect = config["connection_settings"]
    prepared_now = "SELECT name, statement FROM pg_prepared_statements ORDER BY 1"
    with FaultProxy(connect["host"], int(connect["port"])) as proxy:
        database: Database[Any] = Database(traced(proxied(config, proxy)))
        database.connect()
        seen, kept = [], []
        for _ in range(6):
            with span() as name:
                before = proxy.round_trips
                with database.unit_of_work():
                    assert database.fetch_value(NAME) == name
                with database.transaction() as connection:
                    connection.execute("SELECT 1")
                seen.append(proxy.round_trips - before)
            kept.append(database.fetch_all(prepared_now))
        database.close()
    assert seen == [4] * 6
    assert kept[-1] == kept[1]
    assert [statement for _, statement in kept[-1] if "application_name" in statement] == [NAME]


def test_the_server_shows_it_while_it_works(config: dict[str, Any], observer: psycopg.Connection[Any]) -> None:
    database: Database[Any] = Database(traced(prepared(config)))
    names = (
        "SELECT application_name FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with span() as name:
        with database.transaction():
            database.fetch_one("SELECT 1")
            assert observer.execute(names).fetchall() == [(name,)]
    assert observer.execute(names).fetchall() == [("shop",)]
    database.close()
