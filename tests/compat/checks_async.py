# pyright: reportPossiblyUnboundVariable=false
# What loops bind is bound: they all run.

"""Behaviour that a release of psycopg must not change silently: this file is the source of its synchronous twin.

Statements run at least eight times: psycopg prepares with the sixth execution, and then the short way is taken.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from decimal import Decimal
from time import monotonic
from typing import Any, cast

import psycopg
from psycopg import AsyncClientCursor, AsyncConnection, IsolationLevel
from psycopg.rows import TupleRow, dict_row
from psycopg.types.string import StrDumper, TextLoader

from pgmonkey import AsyncDatabase

from .checking import DSN, SCHEMA, Checks, Report, config, observer

checks = Checks(__name__)
Rows = AsyncDatabase[TupleRow]
OFTEN = 8


async def run(report: Report) -> None:
    """Run all checks; one that fails leaves its connection pool to nobody else."""
    database: Rows | None = None
    for name, check, wanted in checks:
        if not report.begins(name):
            continue
        if database is None:
            database = AsyncDatabase(config(name))
        try:
            got = await check(database)
        except Exception as error:
            got = error
        if not report.found(got, wanted):
            await database.close()
            database = None
    report.begins("closing")
    if database is not None:
        await database.close()


class Undo(Exception):
    """Ends a block whose work is not to stay."""


class Capitals(TextLoader):
    """Loads text in capitals."""

    def load(self, data: Any) -> str:
        return cast(str, super().load(data)).upper()


class SmallLetters(StrDumper):
    """Dumps text in small letters."""

    def dump(self, obj: str) -> Any:
        return super().dump(obj.lower())


async def value_of(connection: AsyncConnection[Any], query: Any, params: Any = None) -> Any:
    """Return the first column of the first row."""
    row = await row_of(connection, query, params)
    return None if row is None else row[0]


async def row_of(connection: AsyncConnection[Any], query: Any, params: Any = None) -> Any:
    """Return the first row."""
    cursor = await connection.execute(query, params)
    return await cursor.fetchone()


async def error_of(function: Callable[[], Awaitable[object]]) -> str:
    """Return the name of what *function* raises."""
    try:
        await function()
    except Exception as error:
        return type(error).__name__
    return "nothing"


def stored(label: str) -> list[int]:
    """Return the numbers that are stored and committed under *label*, as another session sees them."""
    rows = observer().execute("SELECT i FROM stored WHERE t = %s ORDER BY i", [label]).fetchall()
    return [row[0] for row in rows]


# -- the query methods --------------------------------------------------------------------------------------------


@checks.expects([(7, "x", Decimal("1.5")), [(7,), (8,)], 14, 1])
async def query_methods(database: Rows) -> object:
    """Each gives what the statement gives, with the parameters of this time."""
    for i in range(OFTEN):
        one = await database.fetch_one("SELECT %s::int, %s::text, %s::numeric", (i, "x", Decimal("1.5")))
        several = await database.fetch_all("SELECT generate_series(%s::int, %s::int + 1)", (i, i))
        value = await database.fetch_value("SELECT %s::int * 2", (i,))
        count = await database.execute("INSERT INTO stored VALUES (%s, %s)", (i, "methods"))
    return [one, several, value, count]


@checks.expects([(6, 1), (1, 6)])
async def named_parameters(database: Rows) -> object:
    """They are put where their names stand, in whatever order they are given; one may stand twice."""
    for i in range(OFTEN):
        first = await database.fetch_one("SELECT %(a)s::int - %(b)s::int, %(b)s::int", {"b": 1, "a": i})
        second = await database.fetch_one("SELECT %(b)s::int, %(a)s::int - %(b)s::int", {"a": i, "b": 1})
    return [first, second]


TYPES = ["smallint", "bigint", "numeric", "double precision", "boolean"]


@checks.expects([TYPES, TYPES])
async def parameters_of_other_types(database: Rows) -> object:
    """What is prepared for parameters of some types does not get those of others."""
    values = [1, 2**40, Decimal("1.5"), 1.5, True]
    for _ in range(OFTEN):
        by_place = [await database.fetch_value("SELECT pg_typeof(%s)::text", (value,)) for value in values]
        by_name = [await database.fetch_value("SELECT pg_typeof(%(v)s)::text", {"v": value}) for value in values]
    return [by_place, by_name]


@checks.expects([{"i": 7, "t": "a"}, [{"i": 7}], 7])
async def rows_of_another_kind(database: Rows) -> object:
    """A database's row factory makes its rows."""
    other = AsyncDatabase(config("dicts"), row_factory=dict_row)
    for i in range(OFTEN):
        one = await other.fetch_one("SELECT %s::int AS i, 'a' AS t", (i,))
        several = await other.fetch_all("SELECT %s::int AS i", (i,))
        value = await other.fetch_value("SELECT %s::int AS i", (i,))
    await other.close()
    return [one, several, value]


@checks.expects([("DivisionByZero", "22012")] * OFTEN)
async def errors_of_statements(database: Rows) -> object:
    """The server's error is psycopg's for it, and the connection goes on."""
    found = []
    for i in range(OFTEN):
        await database.fetch_value("SELECT 10 / %s::int", (1,))
        try:
            await database.fetch_value("SELECT 10 / %s::int", (0,))
        except psycopg.Error as error:
            found.append((type(error).__name__, error.sqlstate))
        await database.fetch_value("SELECT 10 / %s::int", (i + 1,))
    return found


@checks.expects((20, 20))
async def many_at_once(database: Rows) -> object:
    """`execute_many` stores all and counts them."""
    count = await database.execute_many("INSERT INTO stored VALUES (%s, %s)", [(i, "many") for i in range(20)])
    return count, len(stored("many"))


@checks.expects(([*range(2500)], [0, 1, 2], 7))
async def streams(database: Rows) -> object:
    """All rows come, in order; a stream that is left early gives its connection back."""
    query = "SELECT generate_series(0, %s::int)"
    numbers = [row[0] async for row in database.stream(query, (2499,))]
    few = []
    stream: Any = database.stream(query, (2499,), size=2)
    async for row in stream:
        few.append(row[0])
        if row[0] == 2:
            break
    await stream.aclose()
    return numbers, few, await database.fetch_value("SELECT 7")


# -- transactions -------------------------------------------------------------------------------------------------


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


# -- what a borrower may do to a connection -----------------------------------------------------------------------

STATE = """
SELECT current_setting('work_mem') = '7MB',
       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
       (SELECT count(*) FROM pg_listening_channels()),
       to_regclass('pg_temp.left_behind') IS NOT NULL
"""
CLEAN = (False, 0, 0, False)


@checks.expects([CLEAN] * 4)
async def cleaning(database: Rows) -> object:
    """Whatever a borrower left in the session is gone, by whichever way he left it there."""
    found = []
    async with database.connection() as connection:
        await connection.execute("SET work_mem = '7MB'")
        await connection.execute("SELECT pg_advisory_lock(pg_backend_pid())")
        await connection.execute("LISTEN anything")
        await connection.execute("CREATE TEMP TABLE left_behind (i int)")
    found.append(await database.fetch_one(STATE))
    async with database.connection() as connection, connection.cursor() as cursor:
        async with cursor.copy("COPY (SELECT set_config('work_mem', '7MB', false)) TO STDOUT") as copy:
            async for _ in copy:
                pass  # it is the reading that sets it
    found.append(await database.fetch_one(STATE))
    async with database.connection() as connection, connection.pipeline():
        await connection.execute("SET work_mem = '7MB'")
    found.append(await database.fetch_one(STATE))
    async with database.connection() as connection, connection.cursor("named") as named:
        await named.execute("SELECT set_config('work_mem', '7MB', false)")
        await named.fetchall()
    found.append(await database.fetch_one(STATE))
    return found


@checks.expects(["GivenBackError"] * 6)
async def use_after_giving_back(database: Rows) -> object:
    """A connection that was kept, and what was made from it, refuse."""
    async with database.connection() as connection:
        cursor = connection.cursor()
        for _ in range(OFTEN):
            await cursor.execute("SELECT %s::int", (1,))
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: connection.execute("SELECT 1"),
        lambda: cursor.execute("SELECT %s::int", (1,)),
        lambda: cursor.executemany("SELECT %s::int", [(1,)]),
        lambda: connection.commit(),
        lambda: connection.rollback(),
        lambda: connection.set_autocommit(True),
    ]
    return [await error_of(call) for call in calls]


@checks.expects([[("A", True)] * OFTEN, [("a", False)] * OFTEN, ("a", False)])
async def types_of_a_connection(database: Rows) -> object:
    """Loaders and dumpers that a borrower registers are that borrower's alone."""
    query = "SELECT 'a'::text, %s::text = 'b'"
    async with database.connection() as connection:
        connection.adapters.register_loader("text", Capitals)
        connection.adapters.register_dumper(str, SmallLetters)
        first = [await row_of(connection, query, ("B",)) for _ in range(OFTEN)]
    async with database.connection() as connection:
        second = [await row_of(connection, query, ("B",)) for _ in range(OFTEN)]
    return [first, second, await database.fetch_one(query, ("B",))]


@checks.expects(["A", "a", "A"])
async def types_of_a_pool(database: Rows) -> object:
    """What the pool's ``configure`` has registered holds for all, and what a borrower registers instead does not."""

    async def configure(connection: AsyncConnection[Any]) -> None:
        connection.adapters.register_loader("text", Capitals)

    configured = AsyncDatabase(config("configured", pool={"configure": configure}))
    query = "SELECT 'a'::text"
    for _ in range(OFTEN):
        first = await configured.fetch_value(query)
        async with configured.connection() as connection:
            connection.adapters.register_loader("text", TextLoader)
            second = await value_of(connection, query)
        third = await configured.fetch_value(query)
    await configured.close()
    return [first, second, third]


@checks.expects(["a", "A", "A", "a"])
async def loaders_registered_later(database: Rows) -> object:
    """A loader that is registered for all holds at once, also for statements that are prepared already."""
    query = "SELECT 'a'::text AS later"
    for _ in range(OFTEN):
        before = await database.fetch_value(query)
    psycopg.adapters.register_loader("text", Capitals)
    try:
        after = await database.fetch_value(query)
        async with database.transaction() as connection:
            by_cursor = await value_of(connection, query)
    finally:
        psycopg.adapters.register_loader("text", TextLoader)
    return [before, after, by_cursor, await database.fetch_value(query)]


@checks.expects([False, True, True, False])
async def dumpers_registered_later(database: Rows) -> object:
    """A dumper that is registered for all holds at once, also for statements that are prepared already."""
    query = "SELECT %s::text = 'b' AS later"
    for _ in range(OFTEN):
        before = await database.fetch_value(query, ("B",))
    psycopg.adapters.register_dumper(str, SmallLetters)
    try:
        after = await database.fetch_value(query, ("B",))
        async with database.transaction() as connection:
            by_cursor = await value_of(connection, query, ("B",))
    finally:
        psycopg.adapters.register_dumper(str, StrDumper)
    return [before, after, by_cursor, await database.fetch_value(query, ("B",))]


@checks.expects(["mine"] * (OFTEN + 1))
async def notices(database: Rows) -> object:
    """They go to the handlers of the borrower whose statement raised them."""
    heard: list[str] = []
    query = "SELECT notice(%s)"
    async with database.connection() as connection:
        connection.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary or ""))
        for _ in range(OFTEN):
            await connection.execute(query, ("mine",))
        await connection.execute("DO $$ BEGIN RAISE NOTICE 'mine'; END $$")
    async with database.connection() as connection:
        for _ in range(OFTEN):
            await connection.execute(query, ("another's",))
    await database.fetch_value(query, ("another's",))
    return heard


@checks.expects([["first", "second"], ["third"], []])
async def notifications(database: Rows) -> object:
    """They go to the handlers of the borrower who listens, or to `notifies`."""
    heard: list[str] = []
    listen: Any = f"LISTEN {SCHEMA}"  # which no other process notifies
    notify: Any = f"SELECT pg_notify('{SCHEMA}', %s)"
    async with database.connection() as connection:
        await connection.set_autocommit(True)
        await connection.execute(listen)
        handler = cast(Any, lambda notification: heard.append(notification.payload))
        connection.add_notify_handler(handler)
        await connection.execute(notify, ("first",))
        observer().execute(notify, ("second",))
        await connection.execute("SELECT 1")
        connection.remove_notify_handler(handler)
        observer().execute(notify, ("third",))
        generated = [each.payload async for each in connection.notifies(timeout=2, stop_after=1)]
        await connection.execute(notify, ("fourth",))  # which nobody takes
    async with database.connection() as connection:
        await connection.set_autocommit(True)
        later = [each.payload async for each in connection.notifies(timeout=0)]
    return [heard, generated, later]


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


@checks.expects([[1, 2], True])
async def a_block_of_psycopg(database: Rows) -> object:
    """The end of psycopg's own ``with connection`` commits, but does not close what belongs to the pool."""
    async with database.connection() as connection:
        first = await value_of(connection, "SELECT pg_backend_pid()")
        async with connection:
            await connection.execute("INSERT INTO stored VALUES (1, 'block')")
        await connection.execute("INSERT INTO stored VALUES (2, 'block')")
    return [stored("block"), first == await database.fetch_value("SELECT pg_backend_pid()")]


@checks.expects([("serializable", True), "ProgrammingError", (None, None)])
async def attributes(database: Rows) -> object:
    """What is set on a borrowed connection is not set on the next."""
    async with database.connection() as connection:
        await connection.set_isolation_level(IsolationLevel.SERIALIZABLE)
        await connection.set_read_only(True)
        mode = await value_of(connection, "SHOW transaction_isolation"), connection.read_only
        refused = await error_of(lambda: connection.set_autocommit(True))
    async with database.connection() as connection:
        later = connection.isolation_level, connection.read_only
    return [mode, refused, later]


# -- limits -------------------------------------------------------------------------------------------------------


@checks.expects([["CommandTimeoutError"] * 3, 1])
async def command_timeout(database: Rows) -> object:
    """A statement that takes too long ends, prepared or not, and the next one runs."""
    slow = AsyncDatabase(config("slow", connection={"command_timeout": 0.1}))
    query = "SELECT pg_sleep(%s)"

    async def in_block() -> None:
        async with slow.transaction() as connection:
            await connection.execute(query, (3,))

    found = [await error_of(lambda: slow.fetch_value(query, (3,)))]
    for _ in range(OFTEN):
        await slow.fetch_value(query, (0,))
    found += [await error_of(lambda: slow.fetch_value(query, (3,))), await error_of(in_block)]
    after = await slow.fetch_value("SELECT 1")
    await slow.close()
    return [found, after]


@checks.expects(["ConnectionTimeout", True])
async def connecting_to_nobody(database: Rows) -> object:
    """Whoever borrows waits no longer for a connection than the pool lets anybody wait."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        nobody.listen()
        where = f"host=127.0.0.1 port={nobody.getsockname()[1]} connect_timeout=4"
        lonely = AsyncDatabase(config("nobody", where, pool={"timeout": 0.1, "min_size": 0}))
        started = monotonic()
        error = await error_of(lambda: lonely.fetch_value("SELECT 1"))
        took = monotonic() - started
        await lonely.close()
    return [error, took < 2]


@checks.expects([["4321ms"] * 4, "0"])
async def settings_of_transactions(database: Rows) -> object:
    """Behind PgBouncer, whose sessions are not ours, each transaction has the configured settings."""
    where = os.environ[DSN]  # PgBouncer refuses startup options
    bouncing = AsyncDatabase(config("bouncing", where, {"pgbouncer": True}, parameters={"statement_timeout": "4321ms"}))
    ask: Any = "SHOW statement_timeout"
    found = [await bouncing.fetch_value(ask)]
    async with bouncing.transaction() as connection:
        found += [await bouncing.fetch_value(ask), await value_of(connection, ask)]
    async with bouncing.connection() as connection, connection.pipeline():
        found.append(await value_of(connection, ask))
    async with bouncing.connection() as connection:
        await connection.set_autocommit(True)
        later = await value_of(connection, ask)
    await bouncing.close()
    return [found, later]
