# Generated from tests/_async/test_query_tags.py by tools/twins.py: change that file, then run the tool.

"""`query_tags`: each statement ends with a comment that tells who sent it, and stays what it is."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import ClientCursor, Cursor, sql

from pgmonkey import Database
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
def database(config: dict[str, Any]) -> Iterator[Database[Any]]:
    made: Database[Any] = Database(tagged(prepared(config, 2)))
    made.framework = "none"
    yield made
    made.close()


def in_unit(database: Database[Any], work: Callable[[], Any], route: str) -> Any:
    unit = database.begin(label=lambda: route)
    found = work()
    unit.finish()
    return found


def test_a_statement_alone_has_a_tag(database: Database[Any]) -> None:
    for _ in range(5):
        assert database.fetch_value(TEXT) == f"{TEXT} {ALONE}"
        assert database.fetch_value(sql.SQL(TEXT)) == f"{TEXT} {ALONE}"
        found = database.fetch_value(f"{TEXT} WHERE %s = 1 AND 'a' LIKE '%%'", (1,))
        assert found == f"{TEXT} WHERE $1 = 1 AND 'a' LIKE '%' {ALONE}"


def test_a_request_has_its_route_too(database: Database[Any]) -> None:
    expected = f"{TEXT} {TAG}"

    def work() -> list[Any]:
        unit = database.current_unit()
        assert unit is not None
        found = [database.fetch_value(TEXT) for _ in range(2)]
        connection = unit.connection()
        for factory in (Cursor, ClientCursor):
            connection.cursor_factory = factory
            cursor = connection.execute(TEXT)
            found += [row[0] for row in cursor.fetchall()]
        connection.cursor_factory = Cursor
        with database.batch() as batch:
            answer = batch.fetch_value(TEXT)
        found.append(answer.result)
        found += [row[0] for row in database.execute_many(f"{TEXT} WHERE %s = 1", [(1,)], returning=True)]
        with connection.cursor() as cursor, cursor.copy(f"COPY ({TEXT}) TO STDOUT") as copy:
            found += [row[0] for row in copy.rows()]
        with connection.cursor("server_side") as held:
            held.execute("SELECT statement FROM pg_cursors")
            found += [row[0] for row in held.fetchall()]
        return found

    for _ in range(3):
        found = in_unit(database, work, "GET /users/<id>, app.py:3 (users)")
        assert found[:5] == [expected] * 5
        assert found[5] == f"{TEXT} WHERE $1 = 1 {TAG}"
        assert found[6] == f"COPY ({TEXT}) TO STDOUT {TAG}"
        assert found[7].endswith(f"SELECT statement FROM pg_cursors {TAG}")


@pytest.mark.parametrize("end", ["-- a note", "/* a note */", ";", "-- ends\n", ""])
def test_no_ending_hides_it_or_changes_with_it(end: str, database: Database[Any]) -> None:
    query: Any = f"SELECT '-- /*' || current_query() {end}"
    for _ in range(4):
        text = database.fetch_value(query)
        assert text.startswith("-- /*SELECT '-- /*' || current_query()")
        assert text.endswith(ALONE)
        # The last line has "--" in it, unless it is a new one.
        assert text.removesuffix(ALONE).endswith(f"{end} " if end.endswith("\n") else f"{end}\n")


@pytest.mark.parametrize(
    "query", ["SELECT 'a", "SELECT E'a\\", 'SELECT "a', "SELECT $$a", "SELECT 1 /* a", "SELECT U&'a"]
)
def test_what_does_not_end_is_an_error_as_without(
    query: Any, database: Database[Any], observer: psycopg.Connection[Any]
) -> None:
    with pytest.raises(psycopg.errors.SyntaxError):
        observer.execute(query)
    with pytest.raises(psycopg.errors.SyntaxError):
        database.fetch_value(query)


def test_plans_stay_and_are_bounded(config: dict[str, Any]) -> None:
    connect = config["connection_settings"]
    routes, most = 40, 10

    def limit(connection: Any) -> None:
        connection.prepared_max = most

    def plans() -> int:
        return sum(type(thing) is Plan for thing in gc.get_objects())

    with FaultProxy(connect["host"], int(connect["port"])) as proxy:
        settings = tagged(proxied(config, proxy))
        database: Database[Any] = Database(settings)

        def method() -> object:
            return database.fetch_value("SELECT %s::int", (1,))

        database.connect()
        trips = []
        for _ in range(4):
            before = proxy.round_trips
            assert in_unit(database, method, "GET /") == 1
            trips.append(proxy.round_trips - before)
        assert trips == [2] * 4
        before = proxy.round_trips
        with database.batch() as batch:
            answers = [batch.fetch_value(TEXT) for _ in range(3)]
        assert {answer.result for answer in answers} == {f"{TEXT} /*application='the%20shop'*/"}
        assert database.execute_many("SELECT %s", [(1,), (2,)]) == 2
        assert proxy.round_trips - before == 4  # each with its COMMIT
        before = proxy.round_trips
        assert method() == method() == 1
        assert proxy.round_trips - before <= 3  # the first one is prepared, with another tag
        database.close()
        settings["async_pool_settings"]["configure"] = settings["pool_settings"]["configure"] = limit
        database = Database(settings)
        gc.collect()
        others = plans()
        for number in range(3 * routes):
            in_unit(database, method, f"GET /{number % routes}")
        gc.collect()
        assert plans() - others <= 4 * most
        # This one is prepared before the one that was used longest ago is forgotten.
        assert database.fetch_value("SELECT count(*) FROM pg_prepared_statements") <= most + 1
        database.close()


def test_the_words_of_a_route_cost_no_plan(config: dict[str, Any]) -> None:
    database: Database[Any] = Database(tagged(prepared(config)))

    def work() -> object:
        database.execute("SET LOCAL work_mem = '5MB'")  # after which the session is cleaned
        return database.fetch_value(TEXT)

    for _ in range(3):
        text = in_unit(database, work, "POST /Prepare/discard")
        assert text.endswith(",route='POST%20%2F%50repare%2F%64iscard'*/")
    kept = "SELECT count(*) FROM pg_prepared_statements WHERE statement ~ 'rou[t]e='"
    assert database.fetch_value(kept) == 2
    database.close()


def test_without_the_key_there_is_none(config: dict[str, Any]) -> None:
    database: Database[Any] = Database(prepared(config))
    for _ in range(3):
        assert database.fetch_value(TEXT) == TEXT
        assert in_unit(database, lambda: database.fetch_value(TEXT), "GET /") == TEXT
    database.close()
