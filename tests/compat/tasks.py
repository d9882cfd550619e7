"""Behaviour that there is in event loops only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from ._async.common import OFTEN, Rows
from .checking import Checks, observer

checks = Checks(__name__)
SLEEP = "SELECT pg_sleep(%s)"


@checks.expects([["CancelledError"] * 4, [True] * 4, [(0,)]])
async def cancelled_tasks(database: Rows) -> object:
    """Cancelling a task ends its statement on the server, and the same connection serves the next borrower."""

    async def alone() -> None:
        await database.fetch_value(SLEEP, (3,))

    async def in_block() -> None:
        async with database.transaction() as connection:
            await connection.execute(SLEEP, (3,))

    ends, same = [], []
    for often in (1, OFTEN):
        for work in (alone, in_block):
            for _ in range(often):
                await database.fetch_value(SLEEP, (0,))
            first = await database.fetch_value("SELECT pg_backend_pid()")
            ends.append(await _cancelled(work))
            same.append(first == await database.fetch_value("SELECT pg_backend_pid()"))
    running = observer().execute(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep%'"
        " AND pid <> pg_backend_pid() AND application_name = current_setting('application_name')"
    )
    return [ends, same, [*running]]


@checks.expects([[*range(20)], 20])
async def many_tasks(database: Rows) -> object:
    """Tasks that share one connection each get their own answer."""

    async def work(i: int) -> Any:
        async with database.transaction():
            await database.execute("INSERT INTO stored VALUES (%s, 'tasks')", (i,))
            return await database.fetch_value("SELECT %s::int", (i,))

    answers = await asyncio.gather(*(work(i) for i in range(20)))
    return [answers, await database.fetch_value("SELECT count(*) FROM stored WHERE t = 'tasks'")]


@checks.expects([[*range(20)], [*range(20)]])
async def tasks_in_one_transaction(database: Rows) -> object:
    """Tasks that share a transaction take turns, whether they use query methods or cursors."""
    query = "SELECT %s::int, pg_sleep(0.002)"

    async with database.transaction() as connection:

        async def by_method(i: int) -> Any:
            row = await database.fetch_one(query, (i,))
            return row and row[0]

        async def by_cursor(i: int) -> Any:
            prepare = None if i % 2 else False  # which psycopg itself does
            cursor = await connection.execute(query, (i,), prepare=prepare)
            row = await cursor.fetchone()
            return row and row[0]

        for i in range(OFTEN):
            await by_method(i)
            await by_cursor(i)
        answers = await asyncio.gather(*(work(i) for i in range(20) for work in (by_method, by_cursor)))
    return [answers[::2], answers[1::2]]


async def _cancelled(work: Callable[[], Awaitable[None]]) -> str:
    """Cancel a task that does *work* in the middle of it; return how it ended."""
    task = asyncio.ensure_future(work())
    await asyncio.sleep(0.1)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
        return "nothing"
    return "CancelledError"
