"""`trace_to_server`: the server is told which trace a transaction is part of, at no round trip and no plan."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from psycopg import AsyncClientCursor, AsyncConnection

from pgmonkey import AsyncDatabase, PGConnectionManager
from pgmonkey._async.waiting import POOL_KIND

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


async def by_method(database: AsyncDatabase[Any]) -> object:
    async with database.unit_of_work():
        return await database.fetch_value(NAME)


async def by_cursor(database: AsyncDatabase[Any]) -> object:
    async with database.transaction() as connection:
        cursor = await connection.execute(NAME)
        return (await cursor.fetchall())[0][0]


async def by_savepoint(database: AsyncDatabase[Any]) -> object:
    async with database.transaction(), database.transaction():
        return await database.fetch_value(NAME)


async def by_client_cursor(database: AsyncDatabase[Any]) -> object:
    async with database.connection() as connection:
        cursor = await AsyncClientCursor(connection).execute(NAME)
        return (await cursor.fetchall())[0][0]


async def by_pipeline(database: AsyncDatabase[Any]) -> object:
    async with database.connection() as connection:
        async with connection.pipeline():
            cursor = await connection.execute(NAME)
        return (await cursor.fetchall())[0][0]


async def by_batch(database: AsyncDatabase[Any]) -> object:
    async with database.batch() as batch:
        found = batch.fetch_value(NAME)
    return found.result


async def by_many(database: AsyncDatabase[Any]) -> object:
    query = f"{NAME} WHERE %s = 1"
    return (await database.execute_many(query, [(1,), (2,)], returning=True))[0][0]


async def by_stream(database: AsyncDatabase[Any]) -> object:
    rows = [row async for row in database.stream(NAME)]
    return rows[0][0]


async def by_copy(database: AsyncDatabase[Any]) -> object:
    async with database.connection() as connection, connection.cursor() as cursor:
        async with cursor.copy(f"COPY ({NAME}) TO STDOUT") as copy:
            rows = [row async for row in copy.rows()]
        return rows[0][0]


WAYS = (
    *(by_method, by_cursor, by_savepoint, by_client_cursor, by_pipeline),
    *(by_batch, by_many, by_stream, by_copy),
)


# The last ones decide how parameters are sent, so that psycopg begins the transaction.
VALUES: tuple[dict[str, str] | None, ...] = (None, {"app.tenant": "1"}, {"DateStyle": "German, DMY"})
CASES = [(way, values) for way in WAYS for values in VALUES[: 3 if way in (by_method, by_batch, by_many) else 2]]


@pytest.mark.parametrize(("way", "values"), CASES)
async def test_each_transaction_has_the_name_of_its_trace(
    way: Callable[[Any], Awaitable[object]], values: dict[str, str] | None, config: dict[str, Any]
) -> None:
    asked = None if values is None else lambda: values
    database: AsyncDatabase[Any] = AsyncDatabase(traced(prepared(config, 2)), session_values=asked)
    for _ in range(4):  # the last ones are prepared
        with span() as name:
            assert await way(database) == name
        assert await way(database) == "shop"  # the next borrower, outside of a trace
    with span() as name:
        assert await way(database) == name
    await database.close()


async def test_a_connection_has_the_trace_of_each_transaction(config: dict[str, Any]) -> None:
    database: AsyncDatabase[Any] = AsyncDatabase(traced(prepared(config)))

    async def name_in(connection: AsyncConnection[Any]) -> str:
        cursor = await connection.execute(NAME)
        return str((await cursor.fetchall())[0][0])

    async with database.connection() as connection:
        with span() as first:
            assert await name_in(connection) == first
            await connection.commit()
        with span() as second:
            assert await name_in(connection) == second
            await connection.rollback()
        assert await name_in(connection) == "shop"
    handle: Any = PGConnectionManager()
    lent = await handle.get_database_connection_from_dict(traced(prepared(config)), POOL_KIND)
    with span() as third:
        async with lent as connection:
            assert await name_in(connection) == third
    handle.clear_cache()
    await database.close()


async def test_a_statement_alone_has_no_trace(config: dict[str, Any]) -> None:
    database: AsyncDatabase[Any] = AsyncDatabase(traced(prepared(config)))
    with span():
        assert [await database.fetch_value(NAME) for _ in range(4)] == ["shop"] * 4
    await database.close()


async def test_a_transaction_may_still_choose_its_isolation_level(config: dict[str, Any]) -> None:
    database: AsyncDatabase[Any] = AsyncDatabase(traced(prepared(config)))
    with span() as name:
        async with database.transaction() as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            assert await database.fetch_value("SHOW transaction_isolation") == "serializable"
            assert await database.fetch_value(NAME) == name
    await database.close()


async def test_it_costs_no_round_trip_and_no_plan(config: dict[str, Any]) -> None:
    connect = config["connection_settings"]
    prepared_now = "SELECT name, statement FROM pg_prepared_statements ORDER BY 1"
    with FaultProxy(connect["host"], int(connect["port"])) as proxy:
        database: AsyncDatabase[Any] = AsyncDatabase(traced(proxied(config, proxy)))
        await database.connect()
        seen, kept = [], []
        for _ in range(6):
            with span() as name:
                before = proxy.round_trips
                async with database.unit_of_work():
                    assert await database.fetch_value(NAME) == name
                async with database.transaction() as connection:
                    await connection.execute("SELECT 1")
                seen.append(proxy.round_trips - before)
            kept.append(await database.fetch_all(prepared_now))
        await database.close()
    assert seen == [4] * 6
    assert kept[-1] == kept[1]
    assert [statement for _, statement in kept[-1] if "application_name" in statement] == [NAME]


async def test_the_server_shows_it_while_it_works(config: dict[str, Any], observer: psycopg.Connection[Any]) -> None:
    database: AsyncDatabase[Any] = AsyncDatabase(traced(prepared(config)))
    names = (
        "SELECT application_name FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with span() as name:
        async with database.transaction():
            await database.fetch_one("SELECT 1")
            assert observer.execute(names).fetchall() == [(name,)]
    assert observer.execute(names).fetchall() == [("shop",)]
    await database.close()
