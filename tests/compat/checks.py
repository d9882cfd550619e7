# Generated from checks_async.py by tools/twins.py: change that file, then run the tool.

# pyright: reportPossiblyUnboundVariable=false
# What loops bind is bound: they all run.

"""Behaviour that a release of psycopg must not change silently: this file is the source of its synchronous twin.

Statements run at least eight times: psycopg prepares with the sixth execution, and then the short way is taken.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from decimal import Decimal
from time import monotonic
from typing import Any, cast

import psycopg
from psycopg import ClientCursor, Connection, IsolationLevel
from psycopg.rows import TupleRow, dict_row
from psycopg.types.string import StrDumper, TextLoader

from pgmonkey import Database

from .checking import DSN, SCHEMA, Checks, Report, config, observer

checks = Checks(__name__)
Rows = Database[TupleRow]
OFTEN = 8


def run(report: Report) -> None:
    """Run all checks; one that fails leaves its connection pool to nobody else."""
    database: Rows | None = None
    for name, check, wanted in checks:
        if not report.begins(name):
            continue
        if database is None:
            database = Database(config(name))
        try:
            got = check(database)
        except Exception as error:
            got = error
        if not report.found(got, wanted):
            database.close()
            database = None
    report.begins("closing")
    if database is not None:
        database.close()


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


def value_of(connection: Connection[Any], query: Any, params: Any = None) -> Any:
    """Return the first column of the first row."""
    row = row_of(connection, query, params)
    return None if row is None else row[0]


def row_of(connection: Connection[Any], query: Any, params: Any = None) -> Any:
    """Return the first row."""
    cursor = connection.execute(query, params)
    return cursor.fetchone()


def error_of(function: Callable[[], object]) -> str:
    """Return the name of what *function* raises."""
    try:
        function()
    except Exception as error:
        return type(error).__name__
    return "nothing"


def stored(label: str) -> list[int]:
    """Return the numbers that are stored and committed under *label*, as another session sees them."""
    rows = observer().execute("SELECT i FROM stored WHERE t = %s ORDER BY i", [label]).fetchall()
    return [row[0] for row in rows]


# -- the query methods --------------------------------------------------------------------------------------------


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


@checks.expects(([*range(2500)], [0, 1, 2], 7))
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
    return numbers, few, database.fetch_value("SELECT 7")


# -- transactions -------------------------------------------------------------------------------------------------


@checks.expects(([*range(OFTEN)], [*range(OFTEN)]))
def transactions(database: Rows) -> object:
    """What query methods and cursors do in a block is committed at its end, and not before."""
    seen_early: list[int] = []
    for i in range(OFTEN):
        with database.transaction() as connection:
            database.execute("INSERT INTO stored VALUES (%s, %s)", (i, "methods in tx"))
            connection.execute("INSERT INTO stored VALUES (%s, %s)", (i, "cursors in tx"))
            seen_early += [number for number in stored("cursors in tx") if number == i]
    return stored("methods in tx"), seen_early + stored("cursors in tx")


@checks.expects([])
def rollback(database: Rows) -> object:
    """Nothing is stored of a block that raises, whichever statement comes first in it."""
    for i in range(2 * OFTEN):
        try:
            with database.transaction() as connection:
                if i % 2:
                    database.execute("INSERT INTO stored VALUES (%s, %s)", (i, "undone"))
                connection.execute("INSERT INTO stored VALUES (%s, %s)", (i, "undone"))
                database.execute("INSERT INTO stored VALUES (%s, %s)", (i, "undone"))
                raise Undo
        except Undo:
            pass  # it is what the block raised
    return stored("undone")


@checks.expects([1, 3, 5] * OFTEN)
def savepoints(database: Rows) -> object:
    """An inner block that raises undoes its own work, and no more."""
    found: list[int] = []
    insert = "INSERT INTO stored VALUES (%s, %s)"
    for i in range(OFTEN):
        label = f"nested {i}"
        with database.transaction() as connection:
            database.execute(insert, (1, label))
            try:
                with database.transaction():
                    connection.execute(insert, (2, label))
                    raise Undo
            except Undo:
                pass  # what is around it goes on
            with database.transaction():
                database.execute(insert, (3, label))
                try:
                    with connection.transaction():
                        connection.execute(insert, (4, label))
                        raise Undo
                except Undo:
                    pass  # what is around it goes on
            connection.execute(insert, (5, label))
        found += stored(label)
    return found


@checks.expects([])
def savepoint_that_comes_first(database: Rows) -> object:
    """In a unit of work, psycopg's `transaction()` is a savepoint, also where nothing was done before it."""
    for _ in range(2):
        try:
            with database.unit_of_work() as unit:
                connection = unit.connection()
                with connection.transaction():
                    connection.execute("INSERT INTO stored VALUES (1, 'first savepoint')")
                raise Undo
        except Undo:
            pass  # it is what the block raised
    return stored("first savepoint")


@checks.expects(([*range(OFTEN)], [7, 7]))
def units_of_work(database: Rows) -> object:
    """A unit that reads first and then stores commits what it stored."""
    for i in range(OFTEN):
        with database.unit_of_work():
            first = database.fetch_value("SELECT %s::int", (i,))
            database.execute("INSERT INTO stored VALUES (%s, %s)", (i, "unit"))
            second = database.fetch_value("SELECT %s::int", (i,))
    return stored("unit"), [first, second]


@checks.expects([(7, "x"), 1, "i", [(7, "x")], [(0,), (1,), (2,)], "a7", None])
def cursors(database: Rows) -> object:
    """What a cursor tells after `execute` is of that execution."""
    for i in range(OFTEN):
        with database.transaction() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT %s::int AS i, %s::text", (i, "x"))
            count = cursor.rowcount
            name = cursor.description[0].name if cursor.description else ""
            one = cursor.fetchone()
            cursor.execute("SELECT %s::int AS i, %s::text", (i, "x"))
            rows = cursor.fetchall()
            cursor.execute("SELECT generate_series(0, %s::int)", (2,))
            several = [row for row in cursor]
            named = value_of(connection, "SELECT %(t)s::text || %(i)s::int", {"i": i, "t": "a"})
            cursor.execute("SET LOCAL work_mem = '1MB'")
            nothing = cursor.description
    return [one, count, name, rows, several, named, nothing]


@checks.expects([(1, [2, 4]), ("ProgrammingError", [2, 4, 6])])
def ends_by_hand(database: Rows) -> object:
    """A borrower may commit and roll back in between, but not inside psycopg's `transaction()`."""
    insert = "INSERT INTO stored VALUES (%s, 'by hand')"
    with database.connection() as connection:
        for i in range(OFTEN):
            connection.execute(insert, (i,))
            if i in (2, 4):
                connection.commit()
            else:
                connection.rollback()
        first = (value_of(connection, "SELECT 1"), stored("by hand"))
        connection.rollback()
        with connection.transaction():
            connection.execute(insert, (6,))
            refused = error_of(connection.commit)
    return [first, (refused, stored("by hand"))]


@checks.expects([["UniqueViolation"] * OFTEN, ["UniqueViolation"] * OFTEN, 0])
def commit_that_fails(database: Rows) -> object:
    """A constraint that is checked at the end makes the block raise, and nothing is stored."""

    def block() -> None:
        with database.transaction() as connection:
            for _ in range(2):
                connection.execute("INSERT INTO late VALUES (%s)", (1,))

    def by_hand() -> None:
        with database.connection() as connection:
            for _ in range(2):
                connection.execute("INSERT INTO late VALUES (%s)", (1,))
            connection.commit()

    of_block = [error_of(block) for _ in range(OFTEN)]
    of_hand = [error_of(by_hand) for _ in range(OFTEN)]
    return [of_block, of_hand, database.fetch_value("SELECT count(*) FROM late")]


@checks.expects(["InFailedSqlTransaction", []])
def ignored_error(database: Rows) -> object:
    """A block in which a statement failed, and nobody minded, raises."""

    def block() -> None:
        with database.transaction() as connection:
            connection.execute("INSERT INTO stored VALUES (1, 'ignored')")
            error_of(lambda: connection.execute("SELECT 1 / 0"))

    return [error_of(block), stored("ignored")]


@checks.expects([("serializable", "on"), "ReadOnlySqlTransaction", ("read committed", "off")])
def modes_of_transactions(database: Rows) -> object:
    """Isolation and access mode are those that were asked for, and not the next transaction's."""
    ask = "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"

    def refused() -> None:
        with database.transaction(read_only=True):
            database.execute("INSERT INTO stored VALUES (1, 'read only')")

    for _ in range(OFTEN):
        with database.transaction(isolation="serializable", read_only=True) as connection:
            asked = row_of(connection, ask)
        refusal = error_of(refused)
        with database.transaction():
            usual = database.fetch_one(ask)
    return [asked, refusal, usual]


@checks.expects([["42", "42", "42"], ""])
def session_values(database: Rows) -> object:
    """They hold for each statement and each transaction, and for nobody else."""
    tenant = Database(config("tenant"), session_values=lambda: {"app.tenant": 42})
    plain = Database(config("tenant"))
    ask = "SELECT current_setting('app.tenant', true)"
    for _ in range(OFTEN):
        alone = tenant.fetch_value(ask)
        with tenant.transaction() as connection:
            in_block = tenant.fetch_value(ask)
            by_cursor = value_of(connection, ask)
        without = plain.fetch_value(ask)
    tenant.close()
    plain.close()
    return [[alone, in_block, by_cursor], without]


@checks.expects([2, [2]])
def retries(database: Rows) -> object:
    """What could not be serialised runs again, in a new transaction."""
    attempts = 0

    def work() -> int:
        nonlocal attempts
        attempts += 1
        database.execute("INSERT INTO stored VALUES (%s, 'retried')", (attempts,))
        if attempts == 1:
            database.execute("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$")
        return attempts

    return [database.retry(work), stored("retried")]


@checks.expects([["ProgrammingError"] * 2, [], [1]])
def two_phases(database: Rows) -> object:
    """A two-phase transaction is ended by its own methods only."""
    with database.connection() as connection:
        connection.tpc_begin(connection.xid(1, "gtrid", "bqual"))
        connection.execute("INSERT INTO stored VALUES (1, 'two phases')")
        refused = [error_of(connection.commit), error_of(connection.rollback)]
        early = stored("two phases")
        connection.tpc_commit()
    return [refused, early, stored("two phases")]


@checks.expects([[1], 1, False])
def autocommit(database: Rows) -> object:
    """A borrower in autocommit stores at once, and the next one is not."""
    with database.connection() as connection:
        connection.set_autocommit(True)
        for _ in range(OFTEN):
            number = value_of(connection, "SELECT %s::int", (1,))
        connection.execute("INSERT INTO stored VALUES (%s, 'at once')", (1,))
        early = stored("at once")
    with database.connection() as connection:
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


@checks.expects([2, 3, 4])
def tables_that_change(database: Rows) -> object:
    """A statement that is prepared for the old shape of a table gives the new one."""
    query: Any = "SELECT * FROM reshaped"
    found = []
    observer().execute("INSERT INTO reshaped VALUES (1)")
    for i in range(3):
        for _ in range(OFTEN):
            database.fetch_one(query)
            with database.transaction() as connection:
                connection.execute(query)
        observer().execute(f"ALTER TABLE reshaped ADD COLUMN c{i} int".encode())
        found.append(len(database.fetch_one(query) or ()))
    return found


@checks.expects([7, 7, "b'7", [7]])
def client_cursors(database: Rows) -> object:
    """Cursors that merge their parameters do so, in a transaction and in autocommit."""
    for i in range(OFTEN):
        with database.transaction() as connection:
            connection.cursor_factory = ClientCursor
            number = value_of(connection, "SELECT %s::int", (i,))
            text = value_of(connection, "SELECT %(b)s || %(a)s", {"a": i, "b": "b'"})
            connection.execute("INSERT INTO stored VALUES (%s, %s)", (i, "client cursor"))
    with database.connection() as connection:
        connection.set_autocommit(True)
        for i in range(OFTEN):
            cursor = ClientCursor(connection)
            cursor.execute("SELECT %s::int", (i,))
            alone = cursor.fetchone()
    return [number, alone and alone[0], text, stored("client cursor")[-1:]]


@checks.expects([1, 1, True, True])
def prepared_statements(database: Rows) -> object:
    """One is made for a statement that comes often, and no more of them are kept than psycopg keeps."""
    count = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE %s"
    for _ in range(2 * OFTEN):
        database.fetch_value("SELECT %s::int AS often", (1,))
        with database.transaction() as connection:
            connection.execute("SELECT %s::int AS often_in_block", (1,))
    often = [database.fetch_value(count, (text,)) for text in ("% AS often", "% AS often_in_block")]
    with database.connection() as connection:
        for i in range(120):
            query: Any = f"SELECT {i}, %s::int"
            connection.execute(query, (1,), prepare=True)
        several = value_of(connection, "SELECT count(*) FROM pg_prepared_statements")
    later = database.fetch_value("SELECT count(*) FROM pg_prepared_statements")
    return [*often, 50 < several < 110, later < 110]


@checks.expects([[(1,), (2,), (3,)], 3])
def executemany(database: Rows) -> object:
    """A cursor gives the rows of each execution."""
    found = []
    with database.transaction() as connection, connection.cursor() as cursor:
        query = "INSERT INTO stored VALUES (%s, 'executemany') RETURNING i"
        cursor.executemany(query, [(1,), (2,), (3,)], returning=True)
        while True:
            found += cursor.fetchall()
            if not cursor.nextset():
                break
    return [found, len(stored("executemany"))]


@checks.expects([[*range(10)], [(str(i), "copied") for i in range(10)]])
def copies(database: Rows) -> object:
    """What is copied in comes out again."""
    with database.transaction() as connection, connection.cursor() as cursor:
        with cursor.copy("COPY stored FROM STDIN") as copy:
            for i in range(10):
                copy.write_row((i, "copied"))
    with database.connection() as connection, connection.cursor() as cursor:
        with cursor.copy("COPY (SELECT * FROM stored WHERE t = %s ORDER BY i) TO STDOUT", ("copied",)) as copy:
            rows = [row for row in copy.rows()]
    return [stored("copied"), rows]


@checks.expects([[*range(OFTEN)], [*range(OFTEN)], "DivisionByZero", []])
def pipelines(database: Rows) -> object:
    """In psycopg's pipeline mode each cursor gets its own answer, and the block is one transaction."""
    with database.transaction() as connection:
        for i in range(OFTEN):
            connection.execute("SELECT %s::int AS warm", (i,))
        with connection.pipeline():
            cursors = [connection.execute("SELECT %s::int AS warm", (i,)) for i in range(OFTEN)]
            for i in range(OFTEN):
                connection.execute("INSERT INTO stored VALUES (%s, 'pipeline')", (i,))
        rows = [cursor.fetchone() for cursor in cursors]

    def failing() -> None:
        with database.connection() as connection, connection.pipeline():
            connection.execute("INSERT INTO stored VALUES (1, 'failed pipeline')")
            connection.execute("SELECT 1 / 0")

    failure = error_of(failing)
    return [[row[0] for row in rows if row], stored("pipeline"), failure, stored("failed pipeline")]


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


# -- limits -------------------------------------------------------------------------------------------------------


@checks.expects([["CommandTimeoutError"] * 3, 1])
def command_timeout(database: Rows) -> object:
    """A statement that takes too long ends, prepared or not, and the next one runs."""
    slow = Database(config("slow", connection={"command_timeout": 0.1}))
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
        where = f"host=127.0.0.1 port={nobody.getsockname()[1]} connect_timeout=4"
        lonely = Database(config("nobody", where, pool={"timeout": 0.1, "min_size": 0}))
        started = monotonic()
        error = error_of(lambda: lonely.fetch_value("SELECT 1"))
        took = monotonic() - started
        lonely.close()
    return [error, took < 2]


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
