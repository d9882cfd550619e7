# Generated from tests/compat/_async/adapting.py by tools/twins.py: change that file, then run the tool.

# pyright: reportPossiblyUnboundVariable=false
# What loops bind is bound: they all run.

"""For whom registered types hold: this file is the source of its synchronous twin."""

from __future__ import annotations

from typing import Any, cast

import psycopg
from psycopg import Connection
from psycopg.types.string import StrDumper, TextLoader

from pgmonkey import Database

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
def types_of_a_connection(database: Rows) -> object:
    """Loaders and dumpers that a borrower registers are that borrower's alone."""
    query = "SELECT 'a'::text, %s::text = 'b'"
    with database.connection() as connection:
        connection.adapters.register_loader("text", Capitals)
        connection.adapters.register_dumper(str, SmallLetters)
        first = [row_of(connection, query, ("B",)) for _ in range(OFTEN)]
    with database.connection() as connection:
        second = [row_of(connection, query, ("B",)) for _ in range(OFTEN)]
    return [first, second, database.fetch_one(query, ("B",))]


@checks.expects(["A", "a", "A"])
def types_of_a_pool(database: Rows) -> object:
    """What the pool's ``configure`` has registered holds for all, and what a borrower registers instead does not."""

    def configure(connection: Connection[Any]) -> None:
        connection.adapters.register_loader("text", Capitals)

    configured = Database(config("configured", pool={"configure": configure}))
    query = "SELECT 'a'::text"
    for _ in range(OFTEN):
        first = configured.fetch_value(query)
        with configured.connection() as connection:
            connection.adapters.register_loader("text", TextLoader)
            second = value_of(connection, query)
        third = configured.fetch_value(query)
    configured.close()
    return [first, second, third]


@checks.expects(["a", "A", "A", "a"])
def loaders_registered_later(database: Rows) -> object:
    """A loader that is registered for all holds at once, also for statements that are prepared already."""
    query = "SELECT 'a'::text AS later"
    for _ in range(OFTEN):
        before = database.fetch_value(query)
    psycopg.adapters.register_loader("text", Capitals)
    try:
        after = database.fetch_value(query)
        with database.transaction() as connection:
            by_cursor = value_of(connection, query)
    finally:
        psycopg.adapters.register_loader("text", TextLoader)
    return [before, after, by_cursor, database.fetch_value(query)]


@checks.expects([False, True, True, False])
def dumpers_registered_later(database: Rows) -> object:
    """A dumper that is registered for all holds at once, also for statements that are prepared already."""
    query = "SELECT %s::text = 'b' AS later"
    for _ in range(OFTEN):
        before = database.fetch_value(query, ("B",))
    psycopg.adapters.register_dumper(str, SmallLetters)
    try:
        after = database.fetch_value(query, ("B",))
        with database.transaction() as connection:
            by_cursor = value_of(connection, query, ("B",))
    finally:
        psycopg.adapters.register_dumper(str, StrDumper)
    return [before, after, by_cursor, database.fetch_value(query, ("B",))]
