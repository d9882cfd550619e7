# Generated from tests/compat/_async/methods.py by tools/twins.py: change that file, then run the tool.

# pyright: reportPossiblyUnboundVariable=false
# What loops bind is bound: they all run.

"""What query methods give, and how long they may take: this file is the source of its synchronous twin."""

from __future__ import annotations

import os
import socket
from decimal import Decimal
from time import monotonic
from typing import Any

import psycopg
from psycopg.rows import dict_row

from pgmonkey import Database

from ..checking import DSN, Checks, config
from .common import OFTEN, Rows, error_of, stored, value_of

checks = Checks(__name__)


@checks.expects([(7, "x", Decimal("1.5")), [(7,), (8,)], 14, 1])
def query_methods(database: Rows) -> object:
    """Each gives what the statement gives, with the parameters of this time."""
    for i in range(OFTEN):
        one = database.fetch_one("SELECT %s::int, %s::text, %s::numeric", (i, "x", Decimal("1.5")))
        several = database.fetch_all("SELECT generate_series(%s::int, %s::int + 1)", (i, i))
        value = database.fetch_value("SELECT %s::int * 2", (i,))
        count = database.execute("INSERT INTO stored VALUES (%s, %s)", (i, "methods"))
    return [one, several, value, count]


@checks.expects([(6, 1), (1, 6)])
def named_parameters(database: Rows) -> object:
    """They are put where their names stand, in whatever order they are given; one may stand twice."""
    for i in range(OFTEN):
        first = database.fetch_one("SELECT %(a)s::int - %(b)s::int, %(b)s::int", {"b": 1, "a": i})
        second = database.fetch_one("SELECT %(b)s::int, %(a)s::int - %(b)s::int", {"a": i, "b": 1})
    return [first, second]


TYPES = ["smallint", "bigint", "numeric", "double precision", "boolean"]


@checks.expects([TYPES, TYPES])
def parameters_of_other_types(database: Rows) -> object:
    """What is prepared for parameters of some types does not get those of others."""
    values = [1, 2**40, Decimal("1.5"), 1.5, True]
    for _ in range(OFTEN):
        by_place = [database.fetch_value("SELECT pg_typeof(%s)::text", (value,)) for value in values]
        by_name = [database.fetch_value("SELECT pg_typeof(%(v)s)::text", {"v": value}) for value in values]
    return [by_place, by_name]


@checks.expects([{"i": 7, "t": "a"}, [{"i": 7}], 7])
def rows_of_another_kind(database: Rows) -> object:
    """A database's row factory makes its rows."""
    other = Database(config("dicts"), row_factory=dict_row)
    for i in range(OFTEN):
        one = other.fetch_one("SELECT %s::int AS i, 'a' AS t", (i,))
        several = other.fetch_all("SELECT %s::int AS i", (i,))
        value = other.fetch_value("SELECT %s::int AS i", (i,))
    other.close()
    return [one, several, value]


@checks.expects([("DivisionByZero", "22012")] * OFTEN)
def errors_of_statements(database: Rows) -> object:
    """The server's error is psycopg's for it, and the connection goes on."""
    found = []
    for i in range(OFTEN):
        database.fetch_value("SELECT 10 / %s::int", (1,))
        try:
            database.fetch_value("SELECT 10 / %s::int", (0,))
        except psycopg.Error as error:
            found.append((type(error).__name__, error.sqlstate))
        database.fetch_value("SELECT 10 / %s::int", (i + 1,))
    return found


@checks.expects((20, 20))
def many_at_once(database: Rows) -> object:
    """`execute_many` stores all and counts them."""
    count = database.execute_many("INSERT INTO stored VALUES (%s, %s)", [(i, "many") for i in range(20)])
    return count, len(stored("many"))


@checks.expects(((2500, True), [0, 1, 2], 7))
def streams(database: Rows) -> object:
    """All rows come, in order; a stream that is left early gives its connection back."""
    query = "SELECT generate_series(0, %s::int)"
    numbers = [row[0] for row in database.stream(query, (2499,))]
    few = []
    stream: Any = database.stream(query, (2499,), size=2)
    for row in stream:
        few.append(row[0])
        if row[0] == 2:
            break
    stream.close()
    return (len(numbers), numbers == [*range(2500)]), few, database.fetch_value("SELECT 7")


@checks.expects([["CommandTimeoutError"] * 3, 1])
def command_timeout(database: Rows) -> object:
    """A statement that takes too long ends, prepared or not, and the next one runs."""
    slow = Database(config("slow", connection={"command_timeout": 0.25}))
    query = "SELECT pg_sleep(%s)"

    def in_block() -> None:
        with slow.transaction() as connection:
            connection.execute(query, (3,))

    found = [error_of(lambda: slow.fetch_value(query, (3,)))]
    for _ in range(OFTEN):
        slow.fetch_value(query, (0,))
    found += [error_of(lambda: slow.fetch_value(query, (3,))), error_of(in_block)]
    after = slow.fetch_value("SELECT 1")
    slow.close()
    return [found, after]


@checks.expects(["ConnectionTimeout", True])
def connecting_to_nobody(database: Rows) -> object:
    """Whoever borrows waits no longer for a connection than the pool lets anybody wait."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        nobody.listen()
        where = f"host=127.0.0.1 port={nobody.getsockname()[1]} connect_timeout=6"
        lonely = Database(config("nobody", where, pool={"timeout": 0.1, "min_size": 0}))
        started = monotonic()
        error = error_of(lambda: lonely.fetch_value("SELECT 1"))
        took = monotonic() - started
        lonely.close()
    return [error, took < 3]


@checks.expects([["4321ms"] * 4, "0"])
def settings_of_transactions(database: Rows) -> object:
    """Behind PgBouncer, whose sessions are not ours, each transaction has the configured settings."""
    where = os.environ[DSN]  # PgBouncer refuses startup options
    bouncing = Database(config("bouncing", where, {"pgbouncer": True}, parameters={"statement_timeout": "4321ms"}))
    ask: Any = "SHOW statement_timeout"
    found = [bouncing.fetch_value(ask)]
    with bouncing.transaction() as connection:
        found += [bouncing.fetch_value(ask), value_of(connection, ask)]
    with bouncing.connection() as connection, connection.pipeline():
        found.append(value_of(connection, ask))
    with bouncing.connection() as connection:
        connection.set_autocommit(True)
        later = value_of(connection, ask)
    bouncing.close()
    return [found, later]
