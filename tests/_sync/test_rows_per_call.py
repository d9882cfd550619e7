# Generated from tests/_async/test_rows_per_call.py by tools/twins.py: change that file, then run the tool.

"""Rows by a row factory of one call, exactly one row, columns: each as psycopg's cursor would give it."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import weakref
from typing import Any

import psycopg
import pytest
from psycopg import Connection, Cursor
from psycopg.rows import args_row, class_row, dict_row, kwargs_row, namedtuple_row, scalar_row, tuple_row

from pgmonkey import Database, ManyRowsError, NoRowError, PgmonkeyError

from ..configs import prepared, proxied
from ..faults.proxy import FaultProxy

Observer = psycopg.Connection[Any]


@dataclasses.dataclass
class Pair:
    a: int
    b: str


def described(cursor: Any) -> Any:
    """A factory of the program's own, which looks at more of a cursor than psycopg's do."""
    names = [column.name for column in cursor.description]
    encoding = cursor.connection.info.encoding
    return lambda values: (encoding, *zip(names, values, strict=True))


def numbered(cursor: Any) -> Any:
    numbers = itertools.count()
    return lambda values: (next(numbers), *values)


FACTORIES: dict[str, Any] = {
    "tuple": tuple_row,
    "dict": dict_row,
    "namedtuple": namedtuple_row,
    "class": class_row(Pair),
    "args": args_row(lambda *values: list(values)),
    "kwargs": kwargs_row(lambda **values: values),
    "scalar": scalar_row,
    "described": described,
    "numbered": numbered,
}
QUERY = "SELECT a, 'ä' || a AS b FROM generate_series(1, %s) AS a"


@pytest.mark.parametrize("usual", [None, dict_row, described])
@pytest.mark.parametrize("name", FACTORIES)
def test_rows_are_those_of_psycopgs_cursor(
    name: str, usual: Any, config: dict[str, Any], server: Any, dbname: str
) -> None:
    factory = FACTORIES[name]
    database: Database[Any] = Database(prepared(config), row_factory=usual)

    def check(count: int) -> None:
        cursor = plain.execute(QUERY, [count])
        expected = cursor.fetchall()
        first = expected[0] if expected else None
        assert database.fetch_all(QUERY, [count], row_factory=factory) == expected
        assert database.fetch_one(QUERY, [count], row_factory=factory) == first
        if count == 1:
            assert database.fetch_exactly_one(QUERY, [count], row_factory=factory) == first
        assert database.fetch_values(QUERY, [count]) == [a for a in range(1, count + 1)]

    with Connection.connect(server.dsn(dbname)) as plain:
        plain.row_factory = factory
        for count in (3, 0, 1, 200, 3):
            check(count)
        with database.transaction():
            for count in (3, 0, 1):
                check(count)
        cursor = plain.execute(QUERY, [7])
        rows = [row for row in database.stream(QUERY, [7], row_factory=factory)]
        assert rows == cursor.fetchall()
    # The rows of the database stay what they are.
    as_usual = {None: (1, "ä1"), dict_row: {"a": 1, "b": "ä1"}, described: ("utf-8", ("a", 1), ("b", "ä1"))}
    assert database.fetch_one(QUERY, [1]) == as_usual[usual]
    database.close()


def test_rows_are_made_when_the_connection_is_given_back(config: dict[str, Any]) -> None:
    database = Database(prepared(config))  # of one connection
    seen: list[Any] = []

    class Busy:
        def __init__(self, a: int) -> None:
            seen.append((a, database.stats()["pool_available"]))

    for factory in (class_row(Busy), lambda cursor: lambda values: Busy(*values)):
        for _ in range(3):
            database.fetch_all("SELECT 7 AS a", row_factory=factory)
    assert seen == [(7, 1)] * 6
    database.close()


def test_a_class_that_is_made_for_one_call_is_not_kept(config: dict[str, Any]) -> None:
    database = Database(prepared(config))

    def once() -> weakref.ref[Any]:
        class Row:
            def __init__(self, a: int) -> None:
                self.a = a

        row = database.fetch_one("SELECT 7 AS a", row_factory=class_row(Row))
        assert row is not None
        assert row.a == 7
        return weakref.ref(Row)

    found = [once() for _ in range(4)]
    gc.collect()
    assert [reference() for reference in found] == [None] * 4
    database.close()


def test_a_row_factory_of_one_call_costs_no_round_trip(config: dict[str, Any]) -> None:
    settings = config["connection_settings"]
    with FaultProxy(settings["host"], int(settings["port"])) as proxy:
        database = Database(proxied(config, proxy))
        for _ in range(2):
            for factory in FACTORIES.values():
                database.fetch_one(QUERY, [1], row_factory=factory)
            database.fetch_values(QUERY, [1])
        before = proxy.round_trips
        for factory in FACTORIES.values():
            database.fetch_one(QUERY, [1], row_factory=factory)
        database.fetch_values(QUERY, [1])
        assert proxy.round_trips - before == len(FACTORIES) + 1
        before = proxy.round_trips
        with database.transaction():
            for factory in FACTORIES.values():
                database.fetch_exactly_one(QUERY, [1], row_factory=factory)
        assert proxy.round_trips - before == len(FACTORIES) + 1
        database.close()


def test_a_cursor_class_of_the_program_makes_its_rows_by_the_factory(config: dict[str, Any]) -> None:
    class OwnCursor(Cursor[Any]):
        def fetchone(self) -> Any:
            row = super().fetchone()
            return None if row is None else ("own", row)

    def configure(connection: Any) -> None:
        connection.cursor_factory = OwnCursor

    settings = prepared(config)
    settings["pool_settings"]["configure"] = settings["async_pool_settings"]["configure"] = configure
    database = Database(settings)
    for _ in range(3):
        row: Any = database.fetch_one("SELECT 7 AS a", row_factory=dict_row)
        assert row == ("own", {"a": 7})
        assert database.fetch_one("SELECT 7 AS a") == ("own", (7,))
        assert database.fetch_values("SELECT 7 AS a") == [7]
    database.close()


def test_exactly_one(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int); INSERT INTO t SELECT generate_series(1, 5)")
    database = Database(prepared(config))
    for _ in range(3):
        assert database.fetch_exactly_one("SELECT a FROM t WHERE a = %s", [3]) == (3,)
        with pytest.raises(NoRowError) as none:
            database.fetch_exactly_one("SELECT a\n FROM t WHERE a = %s", [9])
        told = "the statement returned no row where exactly one was expected: SELECT a FROM t WHERE a = %s"
        assert str(none.value) == told
        with pytest.raises(ManyRowsError) as many:
            database.fetch_exactly_one("SELECT a FROM t WHERE a > %s", [2])
        told = "the statement returned 3 rows where exactly one was expected: SELECT a FROM t WHERE a > %s"
        assert str(many.value) == told
        with pytest.raises(psycopg.ProgrammingError, match="didn't produce"):
            database.fetch_exactly_one("DELETE FROM t WHERE a = 1")
    for error, sqlstate in ((NoRowError(), "P0002"), (ManyRowsError(), "P0003")):
        assert isinstance(error, PgmonkeyError)
        assert error.sqlstate == sqlstate
    database.close()


def test_nothing_is_stored_where_exactly_one_was_expected(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int); INSERT INTO t SELECT generate_series(1, 5)")
    observer.execute("CREATE FUNCTION empty() RETURNS SETOF int LANGUAGE sql AS 'DELETE FROM t RETURNING a'")
    database = Database(prepared(config))
    for _ in range(3):
        for statement in ("DELETE FROM t RETURNING a", "SELECT * FROM empty()", "SELECT empty()"):
            with pytest.raises(ManyRowsError):
                database.fetch_exactly_one(statement)  # pyright: ignore[reportArgumentType]
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (5,)
    assert database.fetch_exactly_one("DELETE FROM t WHERE a = 5 RETURNING a") == (5,)
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (4,)
    # In a transaction, it is for that to say.
    with database.transaction():
        with pytest.raises(ManyRowsError):
            database.fetch_exactly_one("DELETE FROM t WHERE a > 2 RETURNING a")
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (2,)
    database.close()


def test_rows_per_call_with_session_values(config: dict[str, Any]) -> None:
    database = Database(prepared(config), session_values=lambda: {"app.tenant": 42})
    query = "SELECT current_setting('app.tenant', true) AS a"
    for _ in range(3):
        for factory, expected in ((dict_row, {"a": "42"}), (numbered, (0, "42"))):
            row: Any = database.fetch_one(query, row_factory=factory)
            assert row == expected
        assert database.fetch_values(query) == ["42"]
        assert database.fetch_exactly_one(query) == ("42",)
    database.close()
