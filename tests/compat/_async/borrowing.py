# pyright: reportPossiblyUnboundVariable=false
# What loops bind is bound: they all run.

"""What a borrower may do, and what the next one finds: this file is the source of its synchronous twin."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

from psycopg import IsolationLevel

from ..checking import SCHEMA, Checks, observer
from .common import OFTEN, Rows, error_of, stored, value_of

checks = Checks(__name__)


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
