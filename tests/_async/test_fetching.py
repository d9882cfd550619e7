"""What a query method that raises leaves behind, whatever it was given; statements and cursors of every kind."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg import AsyncClientCursor, AsyncConnection, AsyncCursor, AsyncRawCursor, AsyncRawServerCursor, sql
from psycopg.rows import class_row, dict_row, namedtuple_row, scalar_row, tuple_row

from pgmonkey import AsyncDatabase

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
async def test_nothing_is_stored_by_what_returns_no_rows(
    name: str, method: str, config: dict[str, Any], observer: Observer
) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = AsyncDatabase(prepared(config))
    for _ in range(8):
        with pytest.raises(psycopg.ProgrammingError, match="didn't produce"):
            await getattr(database, method)(SILENT[name])
    assert observer.execute("SELECT count(*), to_regclass('u') FROM t").fetchone() == (0, None)
    await database.close()


async def test_nothing_is_stored_when_execute_knows_the_statement(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = AsyncDatabase(prepared(config))
    for _ in range(8):
        assert await database.execute(INSERT) == 1
        with pytest.raises(psycopg.ProgrammingError, match="didn't produce"):
            await database.fetch_one(INSERT)
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (8,)
    await database.close()


async def test_nothing_is_stored_when_rows_cannot_be_made_of_a_new_statement(
    config: dict[str, Any], observer: Observer
) -> None:
    observer.execute("CREATE TABLE t (a date)")
    database: AsyncDatabase[Any] = AsyncDatabase(prepared(config))
    with pytest.raises(psycopg.DataError):
        await database.fetch_one("INSERT INTO t VALUES ('infinity') RETURNING a")
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (0,)
    await database.close()


async def test_what_cannot_run_in_a_transaction(config: dict[str, Any], observer: Observer) -> None:
    observer.execute(
        "CREATE TABLE t (a int); CREATE PROCEDURE p(INOUT a int) LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO t VALUES (a); COMMIT; a := 2; END'"
    )
    database = AsyncDatabase(prepared(config))
    for _ in range(3):
        await database.execute("VACUUM t")
        assert await database.fetch_one("CALL p(%s)", [1]) == (2,)
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (3,)
    await database.close()


def test_a_statement_of_no_kind_has_no_text() -> None:
    from pgmonkey._driver.sql import text_of

    broken: Any = object()
    assert text_of(broken) == ""


async def test_a_statement_of_no_kind_is_psycopgs_error(config: dict[str, Any]) -> None:
    database = AsyncDatabase(prepared(config))
    statement: Any = 7
    for method in (database.fetch_one, database.fetch_all, database.fetch_value, database.execute):
        with pytest.raises((TypeError, AttributeError)):
            await method(statement)
    assert await database.fetch_value("SELECT 1") == 1
    await database.close()


class Thing:
    def __init__(self, **values: Any) -> None:
        self.values = values


@pytest.mark.parametrize("factory", [namedtuple_row, class_row(Thing), scalar_row])
async def test_a_value_whatever_the_rows(factory: Any, config: dict[str, Any]) -> None:
    database: AsyncDatabase[Any] = AsyncDatabase(prepared(config), row_factory=factory)
    query = "SELECT 1 AS same, 2 AS same"
    for _ in range(4):
        assert await database.fetch_value(query) == 1
        async with database.transaction():
            assert await database.fetch_value(query) == 1
    assert await database.ping() > 0
    await database.close()


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
async def test_values_whose_loaders_look_at_the_connection(query: Any, factory: Any, config: dict[str, Any]) -> None:
    params = [True] if "%s" in query else None
    found = []
    # A database for each: one that has it prepared executes it in another way.
    for way in ("connection", "fetch_all", "fetch_one", "fetch_value"):
        database: AsyncDatabase[Any] = AsyncDatabase(prepared(config), row_factory=factory)
        for _ in range(4):
            if way == "connection":
                async with database.connection() as connection:
                    rows = await (await connection.execute(query, params)).fetchall()
            else:
                answer = await getattr(database, way)(query, params)
                rows = {"fetch_all": answer, "fetch_one": [answer], "fetch_value": [(answer,)]}[way]
            found.append([list(map(type, values_of(row))) for row in rows])
        await database.close()
    expected = found[0]
    assert found == [expected] * 8 + [expected[:1]] * 4 + [[expected[0][:1]]] * 4


def values_of(row: Any) -> tuple[Any, ...]:
    named = row.values if isinstance(row, Thing) else row
    return tuple(named.values()) if isinstance(named, dict) else named


class Wrapping(AsyncCursor[Any]):
    """Makes of each row what it likes."""

    async def fetchone(self) -> Any:
        row = await super().fetchone()
        return None if row is None else {"row": row}

    async def fetchall(self) -> list[Any]:
        return [{"row": row} for row in await super().fetchall()]


class Dicts(AsyncCursor[Any]):
    """Knows itself what its rows are."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.row_factory = dict_row


@pytest.mark.parametrize("factory", [tuple_row, dict_row])
@pytest.mark.parametrize("cursor", [Wrapping, Dicts])
async def test_cursors_that_make_rows_themselves(cursor: Any, factory: Any, config: dict[str, Any]) -> None:
    settings = prepared(config)

    async def configure(connection: Any) -> None:
        connection.cursor_factory = cursor

    settings["pool_settings"]["configure"] = settings["async_pool_settings"]["configure"] = configure
    database: AsyncDatabase[Any] = AsyncDatabase(settings, row_factory=factory)
    query = "SELECT 1 AS a, ROW(2) AS b"
    async with database.connection() as connection:
        row = await (await connection.execute(query)).fetchone()
        rows = await (await connection.execute(query)).fetchall()

    async def ask() -> None:
        for _ in range(4):
            assert await database.fetch_one(query) == row
            assert await database.fetch_all(query) == rows
            assert await database.fetch_value(query) == 1

    await ask()
    async with database.transaction():
        await ask()
    await database.close()


@pytest.mark.parametrize("factory", [AsyncRawCursor, AsyncClientCursor, AsyncRawServerCursor])
async def test_our_own_statements_do_not_depend_on_the_cursors(factory: Any, config: dict[str, Any]) -> None:
    settings = prepared(config)
    key = "server_cursor_factory" if factory is AsyncRawServerCursor else "cursor_factory"

    async def configure(connection: Any) -> None:
        setattr(connection, key, factory)
        connection.row_factory = namedtuple_row

    settings["pool_settings"]["configure"] = settings["async_pool_settings"]["configure"] = configure
    values = {"app.one": "it's \\ %s {}", "app.two": None, "app.three": 3}
    database = AsyncDatabase(settings, session_values=lambda: values)
    query: Any = "SELECT current_setting('app.one') AS a, current_setting('app.three') AS b"
    for _ in range(3):
        assert tuple(await database.fetch_one(query) or ()) == ("it's \\ %s {}", "3")
        async with database.connection() as connection:
            cursor = await connection.execute(query)
            assert tuple(await cursor.fetchone() or ()) == ("it's \\ %s {}", "3")
        assert [tuple(row) async for row in database.stream(query)] == [("it's \\ %s {}", "3")]
        assert await database.ping() > 0
    values["app.three"] = "a\0b"
    with pytest.raises(psycopg.DataError, match="NUL"):
        await database.fetch_one(query)
    await database.close()


async def test_a_connection_that_is_closed_is_an_error(config: dict[str, Any]) -> None:
    database = AsyncDatabase(prepared(config))

    async def closing(connection: AsyncConnection[Any]) -> None:
        async for row in connection.cursor().stream("SELECT generate_series(1, 1000)"):
            if row == (3,):
                await connection.close()

    async def chunks(connection: AsyncConnection[Any]) -> None:
        async with connection.cursor("portal") as cursor:
            cursor.itersize = 10
            await cursor.execute("SELECT generate_series(1, 1000)")
            async for row in cursor:
                if row == (3,):
                    await connection.close()

    async def copying(connection: AsyncConnection[Any]) -> None:
        async with connection.cursor().copy("COPY (SELECT generate_series(1, 1000)) TO STDOUT") as copy:
            async for row in copy.rows():
                if row == ("3",):
                    await connection.close()

    async def pipeline(connection: AsyncConnection[Any]) -> None:
        async with connection.pipeline():
            await connection.execute("SELECT 1")
            await connection.close()

    async def autocommit(connection: AsyncConnection[Any]) -> None:
        await connection.close()
        await connection.set_autocommit(True)

    for use in (closing, chunks, copying, pipeline, autocommit):
        found: list[type[BaseException]] = []
        with suppress(psycopg.Error):
            async with database.connection() as connection:
                try:
                    await use(connection)
                except Exception as error:
                    found.append(type(error))
        assert found == [psycopg.OperationalError], use.__name__
    await database.close()
