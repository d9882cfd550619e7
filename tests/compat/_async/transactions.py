# pyright: reportPossiblyUnboundVariable=false
# What loops bind is bound: they all run.

"""What is committed, and what is not: this file is the source of its synchronous twin."""

from __future__ import annotations

from pgmonkey import AsyncDatabase

from ..checking import Checks, config
from .common import OFTEN, Rows, Undo, error_of, row_of, stored, value_of

checks = Checks(__name__)


@checks.expects(([*range(OFTEN)], [*range(OFTEN)]))
async def transactions(database: Rows) -> object:
    """What query methods and cursors do in a block is committed at its end, and not before."""
    seen_early: list[int] = []
    for i in range(OFTEN):
        async with database.transaction() as connection:
            await database.execute("INSERT INTO stored VALUES (%s, %s)", (i, "methods in tx"))
            await connection.execute("INSERT INTO stored VALUES (%s, %s)", (i, "cursors in tx"))
            seen_early += [number for number in stored("cursors in tx") if number == i]
    return stored("methods in tx"), seen_early + stored("cursors in tx")


@checks.expects([])
async def rollback(database: Rows) -> object:
    """Nothing is stored of a block that raises, whichever statement comes first in it."""
    for i in range(2 * OFTEN):
        try:
            async with database.transaction() as connection:
                if i % 2:
                    await database.execute("INSERT INTO stored VALUES (%s, %s)", (i, "undone"))
                await connection.execute("INSERT INTO stored VALUES (%s, %s)", (i, "undone"))
                await database.execute("INSERT INTO stored VALUES (%s, %s)", (i, "undone"))
                raise Undo
        except Undo:
            pass  # it is what the block raised
    return stored("undone")


@checks.expects([1, 3, 5] * OFTEN)
async def savepoints(database: Rows) -> object:
    """An inner block that raises undoes its own work, and no more."""
    found: list[int] = []
    insert = "INSERT INTO stored VALUES (%s, %s)"
    for i in range(OFTEN):
        label = f"nested {i}"
        async with database.transaction() as connection:
            await database.execute(insert, (1, label))
            try:
                async with database.transaction():
                    await connection.execute(insert, (2, label))
                    raise Undo
            except Undo:
                pass  # what is around it goes on
            async with database.transaction():
                await database.execute(insert, (3, label))
                try:
                    async with connection.transaction():
                        await connection.execute(insert, (4, label))
                        raise Undo
                except Undo:
                    pass  # what is around it goes on
            await connection.execute(insert, (5, label))
        found += stored(label)
    return found


@checks.expects([])
async def savepoint_that_comes_first(database: Rows) -> object:
    """In a unit of work, psycopg's `transaction()` is a savepoint, also where nothing was done before it."""
    for _ in range(2):
        try:
            async with database.unit_of_work() as unit:
                connection = await unit.connection()
                async with connection.transaction():
                    await connection.execute("INSERT INTO stored VALUES (1, 'first savepoint')")
                raise Undo
        except Undo:
            pass  # it is what the block raised
    return stored("first savepoint")


@checks.expects(([*range(OFTEN)], [7, 7]))
async def units_of_work(database: Rows) -> object:
    """A unit that reads first and then stores commits what it stored."""
    for i in range(OFTEN):
        async with database.unit_of_work():
            first = await database.fetch_value("SELECT %s::int", (i,))
            await database.execute("INSERT INTO stored VALUES (%s, %s)", (i, "unit"))
            second = await database.fetch_value("SELECT %s::int", (i,))
    return stored("unit"), [first, second]


@checks.expects([(7, "x"), 1, "i", [(7, "x")], [(0,), (1,), (2,)], "a7", None])
async def cursors(database: Rows) -> object:
    """What a cursor tells after `execute` is of that execution."""
    for i in range(OFTEN):
        async with database.transaction() as connection, connection.cursor() as cursor:
            await cursor.execute("SELECT %s::int AS i, %s::text", (i, "x"))
            count = cursor.rowcount
            name = cursor.description[0].name if cursor.description else ""
            one = await cursor.fetchone()
            await cursor.execute("SELECT %s::int AS i, %s::text", (i, "x"))
            rows = await cursor.fetchall()
            await cursor.execute("SELECT generate_series(0, %s::int)", (2,))
            several = [row async for row in cursor]
            named = await value_of(connection, "SELECT %(t)s::text || %(i)s::int", {"i": i, "t": "a"})
            await cursor.execute("SET LOCAL work_mem = '1MB'")
            nothing = cursor.description
    return [one, count, name, rows, several, named, nothing]


@checks.expects([(1, [2, 4]), ("ProgrammingError", [2, 4, 6])])
async def ends_by_hand(database: Rows) -> object:
    """A borrower may commit and roll back in between, but not inside psycopg's `transaction()`."""
    insert = "INSERT INTO stored VALUES (%s, 'by hand')"
    async with database.connection() as connection:
        for i in range(OFTEN):
            await connection.execute(insert, (i,))
            if i in (2, 4):
                await connection.commit()
            else:
                await connection.rollback()
        first = (await value_of(connection, "SELECT 1"), stored("by hand"))
        await connection.rollback()
        async with connection.transaction():
            await connection.execute(insert, (6,))
            refused = await error_of(connection.commit)
    return [first, (refused, stored("by hand"))]


@checks.expects([["UniqueViolation"] * OFTEN, ["UniqueViolation"] * OFTEN, 0])
async def commit_that_fails(database: Rows) -> object:
    """A constraint that is checked at the end makes the block raise, and nothing is stored."""

    async def block() -> None:
        async with database.transaction() as connection:
            for _ in range(2):
                await connection.execute("INSERT INTO late VALUES (%s)", (1,))

    async def by_hand() -> None:
        async with database.connection() as connection:
            for _ in range(2):
                await connection.execute("INSERT INTO late VALUES (%s)", (1,))
            await connection.commit()

    of_block = [await error_of(block) for _ in range(OFTEN)]
    of_hand = [await error_of(by_hand) for _ in range(OFTEN)]
    return [of_block, of_hand, await database.fetch_value("SELECT count(*) FROM late")]


@checks.expects(["InFailedSqlTransaction", []])
async def ignored_error(database: Rows) -> object:
    """A block in which a statement failed, and nobody minded, raises."""

    async def block() -> None:
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO stored VALUES (1, 'ignored')")
            await error_of(lambda: connection.execute("SELECT 1 / 0"))

    return [await error_of(block), stored("ignored")]


@checks.expects([("serializable", "on"), "ReadOnlySqlTransaction", ("read committed", "off")])
async def modes_of_transactions(database: Rows) -> object:
    """Isolation and access mode are those that were asked for, and not the next transaction's."""
    ask = "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"

    async def refused() -> None:
        async with database.transaction(read_only=True):
            await database.execute("INSERT INTO stored VALUES (1, 'read only')")

    for _ in range(OFTEN):
        async with database.transaction(isolation="serializable", read_only=True) as connection:
            asked = await row_of(connection, ask)
        refusal = await error_of(refused)
        async with database.transaction():
            usual = await database.fetch_one(ask)
    return [asked, refusal, usual]


@checks.expects([["42", "42", "42"], ""])
async def session_values(database: Rows) -> object:
    """They hold for each statement and each transaction, and for nobody else."""
    tenant = AsyncDatabase(config("tenant"), session_values=lambda: {"app.tenant": 42})
    plain = AsyncDatabase(config("tenant"))
    ask = "SELECT current_setting('app.tenant', true)"
    for _ in range(OFTEN):
        alone = await tenant.fetch_value(ask)
        async with tenant.transaction() as connection:
            in_block = await tenant.fetch_value(ask)
            by_cursor = await value_of(connection, ask)
        without = await plain.fetch_value(ask)
    await tenant.close()
    await plain.close()
    return [[alone, in_block, by_cursor], without]


@checks.expects([2, [2]])
async def retries(database: Rows) -> object:
    """What could not be serialised runs again, in a new transaction."""
    attempts = 0

    async def work() -> int:
        nonlocal attempts
        attempts += 1
        await database.execute("INSERT INTO stored VALUES (%s, 'retried')", (attempts,))
        if attempts == 1:
            await database.execute("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$")
        return attempts

    return [await database.retry(work), stored("retried")]


@checks.expects([["ProgrammingError"] * 2, [], [1]])
async def two_phases(database: Rows) -> object:
    """A two-phase transaction is ended by its own methods only."""
    async with database.connection() as connection:
        await connection.tpc_begin(connection.xid(1, "gtrid", "bqual"))
        await connection.execute("INSERT INTO stored VALUES (1, 'two phases')")
        refused = [await error_of(connection.commit), await error_of(connection.rollback)]
        early = stored("two phases")
        await connection.tpc_commit()
    return [refused, early, stored("two phases")]


@checks.expects([[1], 1, False])
async def autocommit(database: Rows) -> object:
    """A borrower in autocommit stores at once, and the next one is not."""
    async with database.connection() as connection:
        await connection.set_autocommit(True)
        for _ in range(OFTEN):
            number = await value_of(connection, "SELECT %s::int", (1,))
        await connection.execute("INSERT INTO stored VALUES (%s, 'at once')", (1,))
        early = stored("at once")
    async with database.connection() as connection:
        later = connection.autocommit
    return [early, number, later]
