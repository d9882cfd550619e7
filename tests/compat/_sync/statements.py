# Generated from tests/compat/_async/statements.py by tools/twins.py: change that file, then run the tool.

# pyright: reportPossiblyUnboundVariable=false
# What loops bind is bound: they all run.

"""How statements are executed, prepared and answered: this file is the source of its synchronous twin."""

from __future__ import annotations

from typing import Any

from psycopg import ClientCursor

from ..checking import Checks, observer
from .common import OFTEN, Rows, error_of, stored, value_of

checks = Checks(__name__)


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
