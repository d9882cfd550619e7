# pyright: reportPossiblyUnboundVariable=false
# What loops bind is bound: they all run.

"""How statements are executed, prepared and answered: this file is the source of its synchronous twin."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncClientCursor

from ..checking import Checks, observer
from .common import OFTEN, Rows, error_of, stored, value_of

checks = Checks(__name__)


@checks.expects([7, 7, "b'7", [7]])
async def client_cursors(database: Rows) -> object:
    """Cursors that merge their parameters do so, in a transaction and in autocommit."""
    for i in range(OFTEN):
        async with database.transaction() as connection:
            connection.cursor_factory = AsyncClientCursor
            number = await value_of(connection, "SELECT %s::int", (i,))
            text = await value_of(connection, "SELECT %(b)s || %(a)s", {"a": i, "b": "b'"})
            await connection.execute("INSERT INTO stored VALUES (%s, %s)", (i, "client cursor"))
    async with database.connection() as connection:
        await connection.set_autocommit(True)
        for i in range(OFTEN):
            cursor = AsyncClientCursor(connection)
            await cursor.execute("SELECT %s::int", (i,))
            alone = await cursor.fetchone()
    return [number, alone and alone[0], text, stored("client cursor")[-1:]]


@checks.expects([[(1,), (2,), (3,)], 3])
async def executemany(database: Rows) -> object:
    """A cursor gives the rows of each execution."""
    found = []
    async with database.transaction() as connection, connection.cursor() as cursor:
        query = "INSERT INTO stored VALUES (%s, 'executemany') RETURNING i"
        await cursor.executemany(query, [(1,), (2,), (3,)], returning=True)
        while True:
            found += await cursor.fetchall()
            if not cursor.nextset():
                break
    return [found, len(stored("executemany"))]


@checks.expects([[*range(10)], [(str(i), "copied") for i in range(10)]])
async def copies(database: Rows) -> object:
    """What is copied in comes out again."""
    async with database.transaction() as connection, connection.cursor() as cursor:
        async with cursor.copy("COPY stored FROM STDIN") as copy:
            for i in range(10):
                await copy.write_row((i, "copied"))
    async with database.connection() as connection, connection.cursor() as cursor:
        async with cursor.copy("COPY (SELECT * FROM stored WHERE t = %s ORDER BY i) TO STDOUT", ("copied",)) as copy:
            rows = [row async for row in copy.rows()]
    return [stored("copied"), rows]


@checks.expects([[*range(OFTEN)], [*range(OFTEN)], "DivisionByZero", []])
async def pipelines(database: Rows) -> object:
    """In psycopg's pipeline mode each cursor gets its own answer, and the block is one transaction."""
    async with database.transaction() as connection:
        for i in range(OFTEN):
            await connection.execute("SELECT %s::int AS warm", (i,))
        async with connection.pipeline():
            cursors = [await connection.execute("SELECT %s::int AS warm", (i,)) for i in range(OFTEN)]
            for i in range(OFTEN):
                await connection.execute("INSERT INTO stored VALUES (%s, 'pipeline')", (i,))
        rows = [await cursor.fetchone() for cursor in cursors]

    async def failing() -> None:
        async with database.connection() as connection, connection.pipeline():
            await connection.execute("INSERT INTO stored VALUES (1, 'failed pipeline')")
            await connection.execute("SELECT 1 / 0")

    failure = await error_of(failing)
    return [[row[0] for row in rows if row], stored("pipeline"), failure, stored("failed pipeline")]


@checks.expects([1, 1, True, True])
async def prepared_statements(database: Rows) -> object:
    """One is made for a statement that comes often, and no more of them are kept than psycopg keeps."""
    count = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE %s"
    for _ in range(2 * OFTEN):
        await database.fetch_value("SELECT %s::int AS often", (1,))
        async with database.transaction() as connection:
            await connection.execute("SELECT %s::int AS often_in_block", (1,))
    often = [await database.fetch_value(count, (text,)) for text in ("% AS often", "% AS often_in_block")]
    async with database.connection() as connection:
        for i in range(120):
            query: Any = f"SELECT {i}, %s::int"
            await connection.execute(query, (1,), prepare=True)
        several = await value_of(connection, "SELECT count(*) FROM pg_prepared_statements")
    later = await database.fetch_value("SELECT count(*) FROM pg_prepared_statements")
    return [*often, 50 < several < 110, later < 110]


@checks.expects([2, 3, 4])
async def tables_that_change(database: Rows) -> object:
    """A statement that is prepared for the old shape of a table gives the new one."""
    query: Any = "SELECT * FROM reshaped"
    found = []
    observer().execute("INSERT INTO reshaped VALUES (1)")
    for i in range(3):
        for _ in range(OFTEN):
            await database.fetch_one(query)
            async with database.transaction() as connection:
                await connection.execute(query)
        observer().execute(f"ALTER TABLE reshaped ADD COLUMN c{i} int".encode())
        found.append(len(await database.fetch_one(query) or ()))
    return found
