"""Tables and types may change under statements that are prepared: the server refuses them, and nobody notices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, AsyncRawCursor, sql
from psycopg.pq import TransactionStatus

from pgmonkey import AsyncDatabase, PGConnectionManager
from pgmonkey._async.waiting import sleep

from ..configs import pools, prepared
from .concurrency import Beside

Observer = psycopg.Connection[Any]

# What becomes of a column of text, and a text that is valid before and after it.
TYPES = {
    "date": ("ALTER TABLE t ALTER a TYPE date USING a::date", "2024-01-02"),
    "int": ("ALTER TABLE t ALTER a TYPE int USING a::int", "7"),
    "bytea": ("ALTER TABLE t ALTER a TYPE bytea USING a::bytea", "7"),
    "jsonb": ("ALTER TABLE t ALTER a TYPE jsonb USING a::jsonb", "7"),
    "array": ("ALTER TABLE t ALTER a TYPE int[] USING a::int[]", "{7}"),
    "enum": ("CREATE TYPE mood AS ENUM ('fine'); ALTER TABLE t ALTER a TYPE mood USING a::mood", "fine"),
}
STATEMENTS = ("SELECT count(*) FROM t WHERE a = %s", "INSERT INTO t VALUES (%s) RETURNING 1", "UPDATE t SET a = %s")


@pytest.mark.parametrize("threshold", [0, 5])
@pytest.mark.parametrize("query", STATEMENTS)
@pytest.mark.parametrize("name", TYPES)
async def test_the_type_of_a_column(
    name: str, query: Any, threshold: int, config: dict[str, Any], observer: Observer
) -> None:
    change, text = TYPES[name]
    observer.execute("CREATE TABLE t (a text)")
    database = AsyncDatabase(prepared(config, threshold))
    for _ in range(8):
        await database.execute(query, [text])
    observer.execute(change.encode())
    for _ in range(8):
        await database.execute(query, [text])
    await database.close()


# The value is not valid for the parameter's old type, which the server says when it reads the value.
WIDER = {
    "int": ("CREATE TABLE t (a int)", "1", "ALTER TABLE t ALTER a TYPE text", "one"),
    "date": ("CREATE TABLE t (a date)", "2024-01-02", "ALTER TABLE t ALTER a TYPE text", "one"),
    "enum": (
        "CREATE TYPE mood AS ENUM ('fine'); CREATE TABLE t (a mood)",
        "fine",
        "ALTER TABLE t ALTER a TYPE text; DROP TYPE mood",
        "fine",
    ),
    "recreated": (
        "CREATE TYPE mood AS ENUM ('fine'); CREATE TABLE t (a mood)",
        "fine",
        "ALTER TYPE mood RENAME TO old; CREATE TYPE mood AS ENUM ('fine', 'bad');"
        "ALTER TABLE t ALTER a TYPE mood USING a::text::mood; DROP TYPE old",
        "bad",
    ),
}


@pytest.mark.parametrize("query", STATEMENTS)
@pytest.mark.parametrize("name", WIDER)
async def test_a_column_that_takes_more(name: str, query: Any, config: dict[str, Any], observer: Observer) -> None:
    create, before, change, after = WIDER[name]
    observer.execute(create.encode())
    database = AsyncDatabase(prepared(config))
    for _ in range(3):
        await database.execute(query, [before])
    observer.execute(change.encode())
    for _ in range(8):
        await database.execute(query, [after])
    await database.close()


async def test_a_value_that_does_not_fit_is_an_error_and_forgets_nothing(
    config: dict[str, Any], observer: Observer
) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = AsyncDatabase(prepared(config))
    insert = "INSERT INTO t VALUES (%s)"
    for _ in range(3):
        await database.execute(insert, ["1"])
    async with database.connection() as connection:
        names = connection.__dict__["pooled"]().prepared._names
    known = dict(names)
    for _ in range(3):
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            await database.execute(insert, ["one"])
    assert dict(names) == known
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (3,)
    await database.close()


async def test_what_has_begun_to_run_is_never_run_again(config: dict[str, Any], observer: Observer) -> None:
    observer.execute(
        "CREATE SEQUENCE runs; CREATE FUNCTION run() RETURNS text LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM nextval(''runs''); RETURN ''no number''; END'"
    )
    database = AsyncDatabase(prepared(config))
    guarded = "SELECT CASE WHEN %s THEN run()::int ELSE 1 END"
    for _ in range(3):
        assert await database.fetch_value(guarded, [False]) == 1
    for count in (1, 2):
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            await database.fetch_value(guarded, [True])
        assert observer.execute("SELECT last_value FROM runs").fetchone() == (count,)
    await database.close()


async def test_many_rows(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a text)")
    database = AsyncDatabase(prepared(config))
    insert = "INSERT INTO t VALUES (%s)"
    assert await database.execute_many(insert, [["1"], ["2"]]) == 2
    observer.execute("ALTER TABLE t ALTER a TYPE int USING a::int")
    assert await database.execute_many(insert, [["3"], ["4"]]) == 2
    observer.execute("ALTER TABLE t ALTER a TYPE bytea USING a::text::bytea")
    async with database.transaction():
        await database.execute(insert, ["5"])
        assert await database.execute_many(insert, [["6"], ["7"]]) == 2
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (7,)
    await database.close()


@contextmanager
def changing(observer: Observer) -> Iterator[None]:
    """A table that is altered after the block."""
    observer.execute("CREATE TABLE t (a text); INSERT INTO t VALUES ('7')")
    yield
    observer.execute("ALTER TABLE t ALTER a TYPE int USING a::int")


READ = "SELECT a FROM t WHERE a = %s"


async def test_the_first_statement_of_a_transaction(config: dict[str, Any], observer: Observer) -> None:
    database = AsyncDatabase(prepared(config), session_values=lambda: {"app.tenant": "o'ne"})

    async def several() -> list[Any]:
        found = [await database.fetch_value(READ, ["7"])]
        async with database.transaction() as connection:
            found += await value_of(connection, READ, ["7"]), await tenant(connection)
        async with database.transaction() as connection:
            found += await database.fetch_value(READ, ["7"]), await tenant(connection)
        async with database.connection() as connection:
            found += await value_of(connection, READ, ["7"]), await tenant(connection)
        return found

    with changing(observer):
        for _ in range(3):
            assert await several() == ["7", *["7", "o'ne"] * 3]
    for _ in range(3):
        assert await several() == [7, *[7, "o'ne"] * 3]
    await database.close()


async def tenant(connection: AsyncConnection[Any]) -> Any:
    return await value_of(connection, "SELECT current_setting('app.tenant')")


async def value_of(connection: AsyncConnection[Any], query: Any, params: Any = None) -> Any:
    cursor = await connection.execute(query, params)
    row: Any = await cursor.fetchone()
    return row[0]


@pytest.mark.parametrize("kind", ["text", "composed", "raw"])
async def test_blocks_of_a_pool(kind: str, config: dict[str, Any], observer: Observer) -> None:
    handle: Any = await PGConnectionManager().get_database_connection_from_dict(prepared(config), "async_pool")
    query: Any = {"composed": sql.SQL(READ), "raw": "SELECT a FROM t WHERE a = $1"}.get(kind, READ)

    async def block() -> Any:
        async with handle as connection:
            if kind == "raw":
                connection.cursor_factory = AsyncRawCursor
            return await value_of(connection, query, ["7"])

    with changing(observer):
        for _ in range(3):
            assert await block() == "7"
    for _ in range(3):
        assert await block() == 7
    handle.close()


async def test_a_later_statement_fails_once(config: dict[str, Any], observer: Observer) -> None:
    settings = pools(prepared(config), min_size=3, max_size=3)
    database = AsyncDatabase(settings)

    async def block() -> Any:
        async with database.transaction() as connection:
            await connection.execute("SELECT 1")
            return await database.fetch_value(READ, ["7"])

    async def on_each_connection() -> None:
        async with database.connection(), database.connection():
            await block()
        async with database.connection():
            await block()
        await block()

    with changing(observer):
        for _ in range(3):
            await on_each_connection()
    with pytest.raises(psycopg.errors.UndefinedFunction):
        await block()
    for _ in range(3):
        await on_each_connection()
    await database.close()


async def test_what_another_has_begun_on_the_connection_is_not_rolled_back(
    config: dict[str, Any], observer: Observer
) -> None:
    observer.execute("CREATE TABLE t (a text)")
    database = AsyncDatabase(prepared(config))
    async with database.connection() as connection:
        for _ in range(3):
            await connection.execute(READ, ["7"])
        await connection.commit()
        observer.execute("ALTER TABLE t ALTER a TYPE int USING a::int")
        async with connection.lock:
            reading = Beside(partial(connection.execute, READ, ["7"]))
            await sleep(0.1)
            # By libpq alone, which needs no lock: so this comes first for certain.
            connection.pgconn.exec_(b"BEGIN; INSERT INTO t VALUES (1)")
        assert isinstance(await reading.end(), psycopg.Error)
        assert connection.info.transaction_status == TransactionStatus.INERROR
        await connection.rollback()
    await database.close()
