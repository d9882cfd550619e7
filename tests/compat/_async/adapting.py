# pyright: reportPossiblyUnboundVariable=false
# What loops bind is bound: they all run.

"""For whom registered types hold: this file is the source of its synchronous twin."""

from __future__ import annotations

from typing import Any, cast

import psycopg
from psycopg import AsyncConnection
from psycopg.types.string import StrDumper, TextLoader

from pgmonkey import AsyncDatabase

from ..checking import Checks, config
from .common import OFTEN, Rows, row_of, value_of

checks = Checks(__name__)


class Capitals(TextLoader):
    """Loads text in capitals."""

    def load(self, data: Any) -> str:
        return cast(str, super().load(data)).upper()


class SmallLetters(StrDumper):
    """Dumps text in small letters."""

    def dump(self, obj: str) -> Any:
        return super().dump(obj.lower())


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
