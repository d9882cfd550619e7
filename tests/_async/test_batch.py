"""A batch: several statements in one round trip, in one transaction, with the results of the query methods."""

from __future__ import annotations

import dataclasses
from typing import Any

import psycopg
import pytest
from psycopg.rows import class_row, dict_row

from pgmonkey import AsyncDatabase, ManyRowsError, NoRowError

from ..configs import pools, prepared, proxied
from ..faults.proxy import FaultProxy

Observer = psycopg.Connection[Any]


@dataclasses.dataclass
class Item:
    id: int
    name: str


@pytest.fixture
def items(observer: Observer) -> Observer:
    observer.execute("CREATE TABLE items (id serial PRIMARY KEY, name text UNIQUE DEFERRABLE INITIALLY IMMEDIATE)")
    observer.execute("INSERT INTO items (name) VALUES ('a'), ('b'), ('c')")
    return observer


async def test_results_are_those_of_the_query_methods(config: dict[str, Any], items: Observer) -> None:
    for way in (pools, prepared):
        database = AsyncDatabase(way(config), row_factory=dict_row)
        for _ in range(3):
            async with database.batch() as batch:
                one = batch.fetch_one("SELECT id, name FROM items WHERE id = %s", [2])
                none = batch.fetch_one("SELECT id, name FROM items WHERE id = %s", [9])
                item = batch.fetch_exactly_one("SELECT id, name FROM items WHERE id = 1", row_factory=class_row(Item))
                rows = batch.fetch_all(b"SELECT id FROM items ORDER BY id")
                changed = batch.execute("UPDATE items SET name = name WHERE id <= %(id)s", {"id": 2})
                value = batch.fetch_value("SELECT count(*) FROM items")
                values = batch.fetch_values("SELECT name FROM items ORDER BY name DESC")
                with pytest.raises(RuntimeError, match="there is no result: the batch has not ended"):
                    print(one.result)
            assert one.result == {"id": 2, "name": "b"}
            assert none.result is None
            assert item.result == Item(1, "a")
            assert rows.result == [{"id": 1}, {"id": 2}, {"id": 3}]
            assert changed.result == 2
            assert value.result == 3
            assert values.result == ["c", "b", "a"]
        await database.close()


async def test_round_trips(config: dict[str, Any], items: Observer) -> None:
    settings = config["connection_settings"]
    with FaultProxy(settings["host"], int(settings["port"])) as proxy:
        database = AsyncDatabase(proxied(config, proxy))
        await database.fetch_value("SELECT 1")
        for number in (1, 2, 20):
            before = proxy.round_trips
            async with database.batch() as batch:
                answers = [batch.fetch_value("SELECT %s::int", [a]) for a in range(number)]
            assert proxy.round_trips - before == 2, "the statements with their BEGIN, and the COMMIT"
            assert [answer.result for answer in answers] == list(range(number))
        before = proxy.round_trips
        async with database.unit_of_work():
            async with database.batch() as batch:
                batch.execute("UPDATE items SET name = 'd' WHERE id = 3")
                batch.execute("UPDATE items SET name = 'e' WHERE id = 2")
            async with database.batch() as batch:
                batch.execute("UPDATE items SET name = 'f' WHERE id = 1")
        assert proxy.round_trips - before == 3
        before = proxy.round_trips
        async with database.batch():
            pass
        assert proxy.round_trips == before
        await database.close()


async def test_all_or_nothing(config: dict[str, Any], items: Observer) -> None:
    database = AsyncDatabase(pools(config))
    insert = "INSERT INTO items (name) VALUES (%s)"
    batch = database.batch()
    answers = [batch.execute(insert, [name]) for name in ("d", "a", "e")]
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        async with batch:
            pass
    assert str(caught.value).endswith("\nstatement 2 of 3 of the batch: INSERT INTO items (name) VALUES (%s)")
    assert caught.value.diag.constraint_name == "items_name_key"
    for answer in answers:
        with pytest.raises(RuntimeError, match="or it has failed"):
            print(answer.result)
    # The block raised: nothing is sent.
    with pytest.raises(ZeroDivisionError):
        async with database.batch() as batch:
            batch.execute(insert, ["f"])
            raise ZeroDivisionError
    # COMMIT fails.
    with pytest.raises(psycopg.errors.UniqueViolation):
        async with database.batch() as batch:
            batch.execute("SET CONSTRAINTS ALL DEFERRED")
            batch.execute(insert, ["a"])
    assert items.execute("SELECT count(*) FROM items").fetchone() == (3,)
    assert await database.fetch_value("SELECT 1") == 1
    await database.close()


FAULTS: dict[str, tuple[str, type[Exception], str]] = {
    "syntax": ("SELEC 1", psycopg.errors.SyntaxError, "statement 2 of 3 of the batch: SELEC 1"),
    "parameters": ("SELECT %s", psycopg.ProgrammingError, "statement 2 of 3 of the batch: SELECT %s"),
    "no row": ("SELECT 1 WHERE false", NoRowError, "statement 2 of 3 of the batch: SELECT 1 WHERE false"),
    "many": (
        "SELECT generate_series(1, 3)",
        ManyRowsError,
        "statement 2 of 3 of the batch: SELECT generate_series(1, 3)",
    ),
    "silent": (
        "UPDATE items SET name = 'x' WHERE id = 1",
        psycopg.ProgrammingError,
        "statement 2 of 3 of the batch: UPDATE",
    ),
    "value": ("SELECT 'infinity'::date", psycopg.DataError, "statement 2 of 3 of the batch: SELECT 'infinity'::date"),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", FAULTS)
async def test_an_error_names_the_statement(name: str, inside: bool, config: dict[str, Any], items: Observer) -> None:
    statement, kind, told = FAULTS[name]
    query: Any = statement
    database = AsyncDatabase(pools(config))

    async def run() -> None:
        async with database.batch() as batch:
            batch.execute("INSERT INTO items (name) VALUES ('d')")
            batch.fetch_exactly_one(query, [1, 2] if name == "parameters" else None)
            batch.execute("INSERT INTO items (name) VALUES ('e')")

    with pytest.raises(kind) as caught:
        if inside:
            async with database.transaction():
                await database.execute("INSERT INTO items (name) VALUES ('f')")
                await run()
        else:
            await run()
    assert told in str(caught.value)
    assert items.execute("SELECT count(*) FROM items WHERE name > 'c'").fetchone() == (0,)
    assert await database.fetch_value("SELECT 1") == 1
    await database.close()


async def test_in_a_transaction_it_is_part_of_it(config: dict[str, Any], items: Observer) -> None:
    database = AsyncDatabase(pools(config))
    async with database.transaction() as connection:
        async with database.batch() as batch:
            batch.execute("UPDATE items SET name = 'z' WHERE id = 1")
            seen = batch.fetch_value("SELECT name FROM items WHERE id = 1")
        assert seen.result == "z"
        cursor = await connection.execute("SELECT name FROM items WHERE id = 1")
        assert await cursor.fetchone() == ("z",)
        assert items.execute("SELECT name FROM items WHERE id = 1").fetchone() == ("a",)
        with pytest.raises(psycopg.errors.DivisionByZero):
            async with database.transaction():
                async with database.batch() as batch:
                    batch.execute("UPDATE items SET name = 'y' WHERE id = 2")
                    batch.fetch_value("SELECT 1 / 0")
        with pytest.raises(psycopg.ProgrammingError, match="forbidden in a unit of work"):
            async with database.batch() as batch:
                batch.execute("COMMIT")
        assert await database.fetch_value("SELECT name FROM items WHERE id = 2") == "b"
    assert items.execute("SELECT name FROM items WHERE id = 1").fetchone() == ("z",)
    await database.close()


async def test_what_was_prepared_and_is_outdated(config: dict[str, Any], items: Observer) -> None:
    database = AsyncDatabase(prepared(config))
    for _ in range(3):
        await database.fetch_one("SELECT * FROM items WHERE id = 1")
    items.execute("ALTER TABLE items ADD COLUMN more int DEFAULT 7")
    async with database.transaction():
        await database.execute("UPDATE items SET name = 'z' WHERE id = 2")
        async with database.batch() as batch:
            row = batch.fetch_one("SELECT * FROM items WHERE id = 1")
        assert row.result == (1, "a", 7)
    await database.close()


async def test_session_values_hold_in_a_batch(config: dict[str, Any]) -> None:
    database = AsyncDatabase(pools(config), session_values=lambda: {"app.tenant": 42})
    async with database.batch() as batch:
        first = batch.fetch_value("SELECT current_setting('app.tenant', true)")
        second = batch.fetch_value("SELECT current_setting('app.tenant', true)")
    assert (first.result, second.result) == ("42", "42")
    await database.close()


async def test_a_batch_is_good_for_one_use(config: dict[str, Any]) -> None:
    database = AsyncDatabase(pools(config))
    batch = database.batch()
    async with batch:
        batch.execute("SELECT 1")
    with pytest.raises(RuntimeError, match=r"call batch\(\) again"):
        async with batch:
            pass
    await database.close()


async def test_it_may_be_larger_than_all_buffers(config: dict[str, Any], items: Observer) -> None:
    database = AsyncDatabase(pools(config))
    text = "x" * 100_000
    async with database.batch() as batch:
        answers = [batch.fetch_value("SELECT %s || %s::text", [text, a]) for a in range(300)]
    assert [answer.result for answer in answers] == [f"{text}{a}" for a in range(300)]
    await database.close()
