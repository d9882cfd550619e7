"""`query_tags`: each statement ends with a comment that tells who sent it, and stays what it is."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psycopg
import pytest
from psycopg import AsyncClientCursor, AsyncCursor, sql

from pgmonkey import AsyncDatabase
from pgmonkey._driver.plan import Plan

from ..configs import prepared, proxied
from ..faults.proxy import FaultProxy

TEXT = "SELECT current_query()"
ALONE = "/*application='the%20shop',framework='none'*/"
TAG = "/*application='the%20shop',framework='none',route='GET%20%2Fusers%2F%3Cid%3E'*/"


def tagged(settings: dict[str, Any]) -> dict[str, Any]:
    settings["connection_settings"].update(query_tags=True, application_name="the shop")
    return settings


@pytest.fixture
async def database(config: dict[str, Any]) -> AsyncIterator[AsyncDatabase[Any]]:
    made: AsyncDatabase[Any] = AsyncDatabase(tagged(prepared(config, 2)))
    made.framework = "none"
    yield made
    await made.close()


async def in_unit(database: AsyncDatabase[Any], work: Callable[[], Awaitable[Any]], route: str) -> Any:
    unit = database.begin(label=lambda: route)
    found = await work()
    await unit.finish()
    return found


async def test_a_statement_alone_has_a_tag(database: AsyncDatabase[Any]) -> None:
    for _ in range(5):
        assert await database.fetch_value(TEXT) == f"{TEXT} {ALONE}"
        assert await database.fetch_value(sql.SQL(TEXT)) == f"{TEXT} {ALONE}"
        found = await database.fetch_value(f"{TEXT} WHERE %s = 1 AND 'a' LIKE '%%'", (1,))
        assert found == f"{TEXT} WHERE $1 = 1 AND 'a' LIKE '%' {ALONE}"


async def test_a_request_has_its_route_too(database: AsyncDatabase[Any]) -> None:
    expected = f"{TEXT} {TAG}"

    async def work() -> list[Any]:
        unit = database.current_unit()
        assert unit is not None
        found = [await database.fetch_value(TEXT) for _ in range(2)]
        connection = await unit.connection()
        for factory in (AsyncCursor, AsyncClientCursor):
            connection.cursor_factory = factory
            cursor = await connection.execute(TEXT)
            found += [row[0] for row in await cursor.fetchall()]
        connection.cursor_factory = AsyncCursor
        async with database.batch() as batch:
            answer = batch.fetch_value(TEXT)
        found.append(answer.result)
        found += [row[0] for row in await database.execute_many(f"{TEXT} WHERE %s = 1", [(1,)], returning=True)]
        async with connection.cursor() as cursor, cursor.copy(f"COPY ({TEXT}) TO STDOUT") as copy:
            found += [row[0] async for row in copy.rows()]
        async with connection.cursor("server_side") as held:
            await held.execute("SELECT statement FROM pg_cursors")
            found += [row[0] for row in await held.fetchall()]
        return found

    for _ in range(3):
        found = await in_unit(database, work, "GET /users/<id>, app.py:3 (users)")
        assert found[:5] == [expected] * 5
        assert found[5] == f"{TEXT} WHERE $1 = 1 {TAG}"
        assert found[6] == f"COPY ({TEXT}) TO STDOUT {TAG}"
        assert found[7].endswith(f"SELECT statement FROM pg_cursors {TAG}")


@pytest.mark.parametrize("end", ["-- a note", "/* a note */", ";", "-- ends\n", ""])
async def test_no_ending_hides_it_or_changes_with_it(end: str, database: AsyncDatabase[Any]) -> None:
    query: Any = f"SELECT '-- /*' || current_query() {end}"
    for _ in range(4):
        text = await database.fetch_value(query)
        assert text.startswith("-- /*SELECT '-- /*' || current_query()")
        assert text.endswith(ALONE)
        # The last line has "--" in it, unless it is a new one.
        assert text.removesuffix(ALONE).endswith(f"{end} " if end.endswith("\n") else f"{end}\n")


@pytest.mark.parametrize(
    "query", ["SELECT 'a", "SELECT E'a\\", 'SELECT "a', "SELECT $$a", "SELECT 1 /* a", "SELECT U&'a"]
)
async def test_what_does_not_end_is_an_error_as_without(
    query: Any, database: AsyncDatabase[Any], observer: psycopg.Connection[Any]
) -> None:
    with pytest.raises(psycopg.errors.SyntaxError):
        observer.execute(query)
    with pytest.raises(psycopg.errors.SyntaxError):
        await database.fetch_value(query)


async def test_plans_stay_and_are_bounded(config: dict[str, Any]) -> None:
    connect = config["connection_settings"]
    routes, most = 40, 10

    async def limit(connection: Any) -> None:
        connection.prepared_max = most

    def plans() -> int:
        return sum(type(thing) is Plan for thing in gc.get_objects())

    with FaultProxy(connect["host"], int(connect["port"])) as proxy:
        settings = tagged(proxied(config, proxy))
        database: AsyncDatabase[Any] = AsyncDatabase(settings)

        async def method() -> object:
            return await database.fetch_value("SELECT %s::int", (1,))

        await database.connect()
        trips = []
        for _ in range(4):
            before = proxy.round_trips
            assert await in_unit(database, method, "GET /") == 1
            trips.append(proxy.round_trips - before)
        assert trips == [2] * 4
        before = proxy.round_trips
        async with database.batch() as batch:
            answers = [batch.fetch_value(TEXT) for _ in range(3)]
        assert {answer.result for answer in answers} == {f"{TEXT} /*application='the%20shop'*/"}
        assert await database.execute_many("SELECT %s", [(1,), (2,)]) == 2
        assert proxy.round_trips - before == 4  # each with its COMMIT
        before = proxy.round_trips
        assert await method() == await method() == 1
        assert proxy.round_trips - before <= 3  # the first one is prepared, with another tag
        await database.close()
        settings["async_pool_settings"]["configure"] = settings["pool_settings"]["configure"] = limit
        database = AsyncDatabase(settings)
        gc.collect()
        others = plans()
        for number in range(3 * routes):
            await in_unit(database, method, f"GET /{number % routes}")
        gc.collect()
        assert plans() - others <= 4 * most
        # This one is prepared before the one that was used longest ago is forgotten.
        assert await database.fetch_value("SELECT count(*) FROM pg_prepared_statements") <= most + 1
        await database.close()


async def test_the_words_of_a_route_cost_no_plan(config: dict[str, Any]) -> None:
    database: AsyncDatabase[Any] = AsyncDatabase(tagged(prepared(config)))

    async def work() -> object:
        await database.execute("SET LOCAL work_mem = '5MB'")  # after which the session is cleaned
        return await database.fetch_value(TEXT)

    for _ in range(3):
        text = await in_unit(database, work, "POST /Prepare/discard")
        assert text.endswith(",route='POST%20%2F%50repare%2F%64iscard'*/")
    kept = "SELECT count(*) FROM pg_prepared_statements WHERE statement ~ 'rou[t]e='"
    assert await database.fetch_value(kept) == 2
    await database.close()


async def test_without_the_key_there_is_none(config: dict[str, Any]) -> None:
    database: AsyncDatabase[Any] = AsyncDatabase(prepared(config))
    for _ in range(3):
        assert await database.fetch_value(TEXT) == TEXT
        assert await in_unit(database, lambda: database.fetch_value(TEXT), "GET /") == TEXT
    await database.close()
