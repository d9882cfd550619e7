# Generated from tests/compat/_async/transactions.py by tools/twins.py: change that file, then run the tool.

# pyright: reportPossiblyUnboundVariable=false
# What loops bind is bound: they all run.

"""What is committed, and what is not: this file is the source of its synchronous twin."""

from __future__ import annotations

from pgmonkey import Database

from ..checking import Checks, config
from .common import OFTEN, Rows, Undo, error_of, row_of, stored, value_of

checks = Checks(__name__)


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
