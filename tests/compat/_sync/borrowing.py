# Generated from tests/compat/_async/borrowing.py by tools/twins.py: change that file, then run the tool.

# pyright: reportPossiblyUnboundVariable=false
# What loops bind is bound: they all run.

"""What a borrower may do, and what the next one finds: this file is the source of its synchronous twin."""

from __future__ import annotations

from collections.abc import Callable
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
def cleaning(database: Rows) -> object:
    """Whatever a borrower left in the session is gone, by whichever way he left it there."""
    found = []
    with database.connection() as connection:
        connection.execute("SET work_mem = '7MB'")
        connection.execute("SELECT pg_advisory_lock(pg_backend_pid())")
        connection.execute("LISTEN anything")
        connection.execute("CREATE TEMP TABLE left_behind (i int)")
    found.append(database.fetch_one(STATE))
    with database.connection() as connection, connection.cursor() as cursor:
        with cursor.copy("COPY (SELECT set_config('work_mem', '7MB', false)) TO STDOUT") as copy:
            for _ in copy:
                pass  # it is the reading that sets it
    found.append(database.fetch_one(STATE))
    with database.connection() as connection, connection.pipeline():
        connection.execute("SET work_mem = '7MB'")
    found.append(database.fetch_one(STATE))
    with database.connection() as connection, connection.cursor("named") as named:
        named.execute("SELECT set_config('work_mem', '7MB', false)")
        named.fetchall()
    found.append(database.fetch_one(STATE))
    return found


@checks.expects(["GivenBackError"] * 6)
def use_after_giving_back(database: Rows) -> object:
    """A connection that was kept, and what was made from it, refuse."""
    with database.connection() as connection:
        cursor = connection.cursor()
        for _ in range(OFTEN):
            cursor.execute("SELECT %s::int", (1,))
    calls: list[Callable[[], object]] = [
        lambda: connection.execute("SELECT 1"),
        lambda: cursor.execute("SELECT %s::int", (1,)),
        lambda: cursor.executemany("SELECT %s::int", [(1,)]),
        lambda: connection.commit(),
        lambda: connection.rollback(),
        lambda: connection.set_autocommit(True),
    ]
    return [error_of(call) for call in calls]


@checks.expects(["mine"] * (OFTEN + 1))
def notices(database: Rows) -> object:
    """They go to the handlers of the borrower whose statement raised them."""
    heard: list[str] = []
    query = "SELECT notice(%s)"
    with database.connection() as connection:
        connection.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary or ""))
        for _ in range(OFTEN):
            connection.execute(query, ("mine",))
        connection.execute("DO $$ BEGIN RAISE NOTICE 'mine'; END $$")
    with database.connection() as connection:
        for _ in range(OFTEN):
            connection.execute(query, ("another's",))
    database.fetch_value(query, ("another's",))
    return heard


@checks.expects([["first", "second"], ["third"], []])
def notifications(database: Rows) -> object:
    """They go to the handlers of the borrower who listens, or to `notifies`."""
    heard: list[str] = []
    listen: Any = f"LISTEN {SCHEMA}"  # which no other process notifies
    notify: Any = f"SELECT pg_notify('{SCHEMA}', %s)"
    with database.connection() as connection:
        connection.set_autocommit(True)
        connection.execute(listen)
        handler = cast(Any, lambda notification: heard.append(notification.payload))
        connection.add_notify_handler(handler)
        connection.execute(notify, ("first",))
        observer().execute(notify, ("second",))
        connection.execute("SELECT 1")
        connection.remove_notify_handler(handler)
        observer().execute(notify, ("third",))
        generated = [each.payload for each in connection.notifies(timeout=2, stop_after=1)]
        connection.execute(notify, ("fourth",))  # which nobody takes
    with database.connection() as connection:
        connection.set_autocommit(True)
        later = [each.payload for each in connection.notifies(timeout=0)]
    return [heard, generated, later]


@checks.expects([[1, 2], True])
def a_block_of_psycopg(database: Rows) -> object:
    """The end of psycopg's own ``with connection`` commits, but does not close what belongs to the pool."""
    with database.connection() as connection:
        first = value_of(connection, "SELECT pg_backend_pid()")
        with connection:
            connection.execute("INSERT INTO stored VALUES (1, 'block')")
        connection.execute("INSERT INTO stored VALUES (2, 'block')")
    return [stored("block"), first == database.fetch_value("SELECT pg_backend_pid()")]


@checks.expects([("serializable", True), "ProgrammingError", (None, None)])
def attributes(database: Rows) -> object:
    """What is set on a borrowed connection is not set on the next."""
    with database.connection() as connection:
        connection.set_isolation_level(IsolationLevel.SERIALIZABLE)
        connection.set_read_only(True)
        mode = value_of(connection, "SHOW transaction_isolation"), connection.read_only
        refused = error_of(lambda: connection.set_autocommit(True))
    with database.connection() as connection:
        later = connection.isolation_level, connection.read_only
    return [mode, refused, later]
