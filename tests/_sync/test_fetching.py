# Generated from tests/_async/test_fetching.py by tools/twins.py: change that file, then run the tool.

"""What a query method that raises leaves behind, whatever it was given; statements and cursors of every kind."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg import ClientCursor, Connection, Cursor, RawCursor, RawServerCursor, sql
from psycopg.rows import class_row, dict_row, namedtuple_row, scalar_row, tuple_row

from pgmonkey import Database

from ..configs import prepared

Observer = psycopg.Connection[Any]

INSERT = "INSERT INTO t VALUES (1)"
SILENT = {
    "text": INSERT,
    "bytes": INSERT.encode(),
    "composed": sql.SQL(INSERT),
    "comment": f"/* SELECT */ {INSERT}",
    "select into": "SELECT 1 AS a INTO u",
    "with": "WITH w AS (SELECT 1) INSERT INTO t SELECT * FROM w",
}


@pytest.mark.parametrize("method", ["fetch_one", "fetch_all", "fetch_value"])
@pytest.mark.parametrize("name", SILENT)
def test_nothing_is_stored_by_what_returns_no_rows(
    name: str, method: str, config: dict[str, Any], observer: Observer
) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = Database(prepared(config))
    for _ in range(8):
        with pytest.raises(psycopg.ProgrammingError, match="didn't produce"):
            getattr(database, method)(SILENT[name])
    assert observer.execute("SELECT count(*), to_regclass('u') FROM t").fetchone() == (0, None)
    database.close()


def test_nothing_is_stored_when_execute_knows_the_statement(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = Database(prepared(config))
    for _ in range(8):
        assert database.execute(INSERT) == 1
        with pytest.raises(psycopg.ProgrammingError, match="didn't produce"):
            database.fetch_one(INSERT)
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (8,)
    database.close()


def test_nothing_is_stored_when_rows_cannot_be_made_of_a_new_statement(
    config: dict[str, Any], observer: Observer
) -> None:
    observer.execute("CREATE TABLE t (a date)")
    database: Database[Any] = Database(prepared(config))
    with pytest.raises(psycopg.DataError):
        database.fetch_one("INSERT INTO t VALUES ('infinity') RETURNING a")
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (0,)
    database.close()


def test_what_cannot_run_in_a_transaction(config: dict[str, Any], observer: Observer) -> None:
    observer.execute(
        "CREATE TABLE t (a int); CREATE PROCEDURE p(INOUT a int) LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO t VALUES (a); COMMIT; a := 2; END'"
    )
    database = Database(prepared(config))
    for _ in range(3):
        database.execute("VACUUM t")
        assert database.fetch_one("CALL p(%s)", [1]) == (2,)
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (3,)
    database.close()


def test_a_statement_of_no_kind_has_no_text() -> None:
    from pgmonkey._driver.sql import text_of

    broken: Any = object()
    assert text_of(broken) == ""


def test_a_statement_of_no_kind_is_psycopgs_error(config: dict[str, Any]) -> None:
    database = Database(prepared(config))
    statement: Any = 7
    for method in (database.fetch_one, database.fetch_all, database.fetch_value, database.execute):
        with pytest.raises((TypeError, AttributeError)):
            method(statement)
    assert database.fetch_value("SELECT 1") == 1
    database.close()


class Thing:
    def __init__(self, **values: Any) -> None:
        self.values = values


@pytest.mark.parametrize("factory", [namedtuple_row, class_row(Thing), scalar_row])
def test_a_value_whatever_the_rows(factory: Any, config: dict[str, Any]) -> None:
    database: Database[Any] = Database(prepared(config), row_factory=factory)
    query = "SELECT 1 AS same, 2 AS same"
    for _ in range(4):
        assert database.fetch_value(query) == 1
        with database.transaction():
            assert database.fetch_value(query) == 1
    assert database.ping() > 0
    database.close()


# psycopg makes their loaders, or those of their elements, when it comes to them, and looks at the connection then.
LATE = [
    "SELECT ROW(1, 'a', NULL, now()) AS a",
    "SELECT t FROM (SELECT 1, 'a' WHERE %s) AS t",
    "SELECT NULL::record AS a UNION ALL SELECT ROW(ARRAY['a', NULL], ROW(1.5))",
    "SELECT ARRAY[NULL, 1]::int8[] AS a, ARRAY[now(), NULL] AS b, ARRAY['a'::bytea] AS c",
    "SELECT tstzrange(now(), NULL) AS a, ARRAY[tstzrange(now(), NULL)] AS b, '{[1,3)}'::int4multirange AS c",
]


@pytest.mark.parametrize("factory", [tuple_row, dict_row, class_row(Thing)])
@pytest.mark.parametrize("query", LATE)
def test_values_whose_loaders_look_at_the_connection(query: Any, factory: Any, config: dict[str, Any]) -> None:
    params = [True] if "%s" in query else None
    found = []
    # A database for each: one that has it prepared executes it in another way.
    for way in ("connection", "fetch_all", "fetch_one", "fetch_value"):
        database: Database[Any] = Database(prepared(config), row_factory=factory)
        for _ in range(4):
            if way == "connection":
                with database.connection() as connection:
                    rows = (connection.execute(query, params)).fetchall()
            else:
                answer = getattr(database, way)(query, params)
                rows = {"fetch_all": answer, "fetch_one": [answer], "fetch_value": [(answer,)]}[way]
            found.append([list(map(type, values_of(row))) for row in rows])
        database.close()
    expected = found[0]
    assert found == [expected] * 8 + [expected[:1]] * 4 + [[expected[0][:1]]] * 4


def values_of(row: Any) -> tuple[Any, ...]:
    named = row.values if isinstance(row, Thing) else row
    return tuple(named.values()) if isinstance(named, dict) else named


class Wrapping(Cursor[Any]):
    """Makes of each row what it likes."""

    def fetchone(self) -> Any:
        row = super().fetchone()
        return None if row is None else {"row": row}

    def fetchall(self) -> list[Any]:
        return [{"row": row} for row in super().fetchall()]


class Dicts(Cursor[Any]):
    """Knows itself what its rows are."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.row_factory = dict_row


@pytest.mark.parametrize("factory", [tuple_row, dict_row])
@pytest.mark.parametrize("cursor", [Wrapping, Dicts])
def test_cursors_that_make_rows_themselves(cursor: Any, factory: Any, config: dict[str, Any]) -> None:
    settings = prepared(config)

    def configure(connection: Any) -> None:
        connection.cursor_factory = cursor

    settings["pool_settings"]["configure"] = settings["async_pool_settings"]["configure"] = configure
    database: Database[Any] = Database(settings, row_factory=factory)
    query = "SELECT 1 AS a, ROW(2) AS b"
    with database.connection() as connection:
        row = (connection.execute(query)).fetchone()
        rows = (connection.execute(query)).fetchall()

    def ask() -> None:
        for _ in range(4):
            assert database.fetch_one(query) == row
            assert database.fetch_all(query) == rows
            assert database.fetch_value(query) == 1

    ask()
    with database.transaction():
        ask()
    database.close()


@pytest.mark.parametrize("factory", [RawCursor, ClientCursor, RawServerCursor])
def test_our_own_statements_do_not_depend_on_the_cursors(factory: Any, config: dict[str, Any]) -> None:
    settings = prepared(config)
    key = "server_cursor_factory" if factory is RawServerCursor else "cursor_factory"

    def configure(connection: Any) -> None:
        setattr(connection, key, factory)
        connection.row_factory = namedtuple_row

    settings["pool_settings"]["configure"] = settings["async_pool_settings"]["configure"] = configure
    values = {"app.one": "it's \\ %s {}", "app.two": None, "app.three": 3}
    database = Database(settings, session_values=lambda: values)
    query: Any = "SELECT current_setting('app.one') AS a, current_setting('app.three') AS b"
    for _ in range(3):
        assert tuple(database.fetch_one(query) or ()) == ("it's \\ %s {}", "3")
        with database.connection() as connection:
            cursor = connection.execute(query)
            assert tuple(cursor.fetchone() or ()) == ("it's \\ %s {}", "3")
        assert [tuple(row) for row in database.stream(query)] == [("it's \\ %s {}", "3")]
        assert database.ping() > 0
    values["app.three"] = "a\0b"
    with pytest.raises(psycopg.DataError, match="NUL"):
        database.fetch_one(query)
    database.close()


def test_a_connection_that_is_closed_is_an_error(config: dict[str, Any]) -> None:
    database = Database(prepared(config))

    def closing(connection: Connection[Any]) -> None:
        for row in connection.cursor().stream("SELECT generate_series(1, 1000)"):
            if row == (3,):
                connection.close()

    def chunks(connection: Connection[Any]) -> None:
        with connection.cursor("portal") as cursor:
            cursor.itersize = 10
            cursor.execute("SELECT generate_series(1, 1000)")
            for row in cursor:
                if row == (3,):
                    connection.close()

    def copying(connection: Connection[Any]) -> None:
        with connection.cursor().copy("COPY (SELECT generate_series(1, 1000)) TO STDOUT") as copy:
            for row in copy.rows():
                if row == ("3",):
                    connection.close()

    def pipeline(connection: Connection[Any]) -> None:
        with connection.pipeline():
            connection.execute("SELECT 1")
            connection.close()

    def autocommit(connection: Connection[Any]) -> None:
        connection.close()
        connection.set_autocommit(True)

    for use in (closing, chunks, copying, pipeline, autocommit):
        found: list[type[BaseException]] = []
        with suppress(psycopg.Error):
            with database.connection() as connection:
                try:
                    use(connection)
                except Exception as error:
                    found.append(type(error))
        assert found == [psycopg.OperationalError], use.__name__
    database.close()
