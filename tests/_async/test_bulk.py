"""Many rows at once: `execute_many`, and COPY from rows, from files and into files."""

from __future__ import annotations

import io
import pickle
import weakref
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import UniqueViolation
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from pgmonkey import AsyncDatabase, BadRowError

from ..configs import pools, proxied
from ..faults.proxy import FaultProxy

Observer = psycopg.Connection[Any]

INSERT = "INSERT INTO t VALUES (%s, %s)"


@dataclass
class Thing:
    """A row."""

    a: int
    b: str | None


class Pair(NamedTuple):
    """A row that is a tuple."""

    a: int
    b: str


@pytest.fixture
def database(config: dict[str, Any], observer: Observer) -> AsyncDatabase:
    observer.execute("CREATE TABLE t (a int PRIMARY KEY, b text)")
    return AsyncDatabase(config)


def stored(observer: Observer) -> list[tuple[Any, ...]]:
    return observer.execute("SELECT a, b FROM t ORDER BY a").fetchall()


# -- execute_many() ---------------------------------------------------------------------------------------------------


async def test_many_executions_are_one_transaction(database: AsyncDatabase, observer: Observer) -> None:
    rows = [(i, f"row {i}") for i in range(700)]  # more than are sent before the first answers are read
    assert await database.execute_many(INSERT, rows) == 700
    assert stored(observer) == rows
    with pytest.raises(UniqueViolation):
        await database.execute_many(INSERT, [(i, "again") for i in range(1000, 300, -1)])
    assert stored(observer) == rows
    assert await database.execute_many("UPDATE t SET b = %(b)s WHERE a < %(a)s", [{"a": 3, "b": "x"}] * 2) == 6
    assert await database.execute_many(INSERT, []) == 0
    await database.close()


async def test_the_rows_that_many_executions_return(database: AsyncDatabase, config: dict[str, Any]) -> None:
    insert = f"{INSERT} RETURNING a, b"
    assert await database.execute_many(insert, [(i, None) for i in range(300)], returning=True) == [
        (i, None) for i in range(300)
    ]
    nothing: list[Any] = await database.execute_many(INSERT, [(301, "x")], returning=True)
    assert nothing == []
    assert await database.execute_many(insert, [], returning=True) == []
    rows: Any
    for row_factory, rows in ((class_row(Thing), [Thing(400, "x")]), (dict_row, [{"a": 401, "b": "x"}])):
        other: AsyncDatabase[Any] = AsyncDatabase(config, row_factory=row_factory)
        number = rows[0].a if isinstance(rows[0], Thing) else 401
        assert await other.execute_many(insert, [(number, "x")], returning=True) == rows
    await database.close()


async def test_parameters_of_changing_types(database: AsyncDatabase, observer: Observer) -> None:
    # psycopg gives each number the smallest type that it fits; the statement is parsed once for each of them.
    numbers = [1, 2**20, 2, 2**21, None, 3, 2**40, 2**22, 4]
    observer.execute("CREATE TABLE u (id int GENERATED ALWAYS AS IDENTITY, a bigint, b numeric)")
    insert = "INSERT INTO u (a, b) VALUES (%s, %s)"
    for _ in range(3):
        assert await database.execute_many(insert, [(a, b) for a in numbers for b in (a, Decimal("1.5"))]) == 18
    found = observer.execute("SELECT a FROM u WHERE b = 1.5 ORDER BY id").fetchall()
    assert found == [(a,) for a in numbers] * 3
    # Nothing that it has prepared is left, also where a savepoint was rolled back.
    left = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'pgmonkey%'"
    assert await database.fetch_value(left) == 0
    async with database.transaction():
        with pytest.raises(UniqueViolation):
            await database.execute_many(INSERT, [(1, "x"), (2**20, "y"), (1, "z")])
    assert await database.fetch_value(left) == 0
    await database.close()


async def test_a_value_that_cannot_be_sent_undoes_what_was(database: AsyncDatabase, observer: Observer) -> None:
    for _ in range(3):
        with pytest.raises(psycopg.ProgrammingError, match="cannot adapt type 'object'"):
            await database.execute_many(INSERT, [*((i, "x") for i in range(200)), (200, object())])
    async with database.transaction():
        await database.execute(INSERT, (1, "before"))
        with pytest.raises(psycopg.ProgrammingError, match="cannot adapt type 'object'"):
            await database.execute_many(INSERT, [(2, "x"), (3, object())])
        await database.execute(INSERT, (4, "after"))
    assert stored(observer) == [(1, "before"), (4, "after")]
    assert database.stats()["connections_num"] == 1  # it was not closed
    await database.close()


@pytest.mark.parametrize("cursor", [psycopg.AsyncCursor, psycopg.AsyncClientCursor, psycopg.AsyncRawCursor])
async def test_cursors_of_all_kinds_execute_many(
    cursor: type[psycopg.AsyncCursor[Any]], config: dict[str, Any], observer: Observer
) -> None:
    async def configure(connection: psycopg.AsyncConnection[Any]) -> None:
        connection.cursor_factory = cursor

    observer.execute("CREATE TABLE t (a int, b text)")
    database = AsyncDatabase(pools(config, configure=configure))
    insert = "INSERT INTO t VALUES ($1, $2)" if cursor is psycopg.AsyncRawCursor else INSERT
    assert await database.execute_many(insert, [(i, "x") for i in range(5)]) == 5
    returning: Any = f"{insert} RETURNING a"
    assert await database.execute_many(returning, [(5, "y"), (6, "z")], returning=True) == [(5,), (6,)]
    assert len(stored(observer)) == 7
    await database.close()


class Wrapping(psycopg.AsyncCursor[Any]):
    """A class of the program's own, whose rows are others."""

    async def fetchone(self) -> Any:
        return "one", await super().fetchone()

    async def fetchall(self) -> Any:
        return ["all", await super().fetchall()]


@pytest.mark.parametrize("cursor", [psycopg.AsyncClientCursor, psycopg.AsyncRawCursor, Wrapping])
async def test_what_we_ask_ourselves_needs_no_certain_cursor(
    cursor: type[psycopg.AsyncCursor[Any]], config: dict[str, Any], observer: Observer
) -> None:
    async def configure(connection: psycopg.AsyncConnection[Any]) -> None:
        connection.cursor_factory, connection.row_factory = cursor, dict_row

    observer.execute("CREATE TABLE t (a int, b text)")
    heard: list[str] = []
    observer.add_notify_handler(lambda note: heard.append(note.payload))
    observer.execute("LISTEN orders")
    database = AsyncDatabase(pools(config, configure=configure))
    for number in range(3):
        assert await database.copy_rows("t", [(number, "x")]) == 1
        await database.notify("orders", str(number))
        async with database.transaction(), database.lock(number, wait=5):
            await database.notify("orders", f"{number} too")
        for session in (False, True):
            for wait in (True, False, 5):
                async with database.lock((number, 1), session=session, wait=wait):
                    pass
    assert stored(observer) == [(number, "x") for number in range(3)]
    observer.execute("SELECT 1")
    assert heard == ["0", "0 too", "1", "1 too", "2", "2 too"]
    await database.close()


async def test_ten_thousand_executions_take_two_round_trips(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int, b text)")
    settings = config["connection_settings"]
    with FaultProxy(settings["host"], int(settings["port"])) as proxy:
        database = AsyncDatabase(proxied(config, proxy))
        await database.fetch_value("SELECT 1")
        before = proxy.round_trips
        assert await database.execute_many(INSERT, [(i, "x") for i in range(100)]) == 100
        assert proxy.round_trips - before == 2  # COMMIT is the second
        await database.close()


# -- copy_rows() ------------------------------------------------------------------------------------------------------


async def test_rows_of_every_kind_are_copied(database: AsyncDatabase, observer: Observer) -> None:
    def made() -> Iterator[tuple[int, str]]:
        for i in range(1200):
            yield i, f"a\tb\n{i}\\"

    async def made_later() -> AsyncIterator[Pair]:
        for i in range(1200, 1300):
            yield Pair(i, "x")

    assert await database.copy_rows("t", made()) == 1200
    assert await database.copy_rows("public.t", made_later()) == 100
    assert await database.copy_rows(sql.Identifier("t"), [Thing(2000, "x"), Thing(2001, None)]) == 2
    assert await database.copy_rows("t", [{"b": "x", "a": 2002}, {"a": 2003, "b": "y"}]) == 2
    assert await database.copy_rows("t", [{"b": "x", "a": 2004, "c": 1}], ["a"]) == 1
    assert await database.copy_rows("t", [["z", 2005]], columns=["b", "a"]) == 1
    assert await database.copy_rows("t", []) == 0
    found = stored(observer)
    assert found[:1200] == list(made())
    assert found[1300:] == [(2000, "x"), (2001, None), (2002, "x"), (2003, "y"), (2004, None), (2005, "z")]
    await database.close()


NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=2)))
VALUES: dict[str, list[Any]] = {
    "bool": [True, False],
    "smallint": [1, -(2**15), "7"],
    "int": [1, 2**31 - 1, "7"],
    "bigint": [1, -(2**63), "7"],
    "double precision": [1.1, float("inf"), 1e300, 7, "1.5"],
    "numeric": [Decimal("1.10"), 7, 10**30, 1.5],
    "text": ["x", "\\N", "é\t\n", 5],
    "varchar(9)": ["x", "é"],
    "bytea": [b"\x00\\x", bytearray(b"x")],
    "uuid": [UUID(int=5), str(UUID(int=6))],
    "date": [date(2026, 1, 2), NOW, "2026-01-02"],
    "timestamp": [NOW.replace(tzinfo=None), NOW],
    "timestamptz": [NOW, NOW.replace(tzinfo=None), date(2026, 1, 2)],
    "jsonb": [Jsonb({"a": [1]}), '{"b": 2}'],
    "int[]": [[1, 2], []],
    "positive": [1, 2**40],
}


async def test_values_are_stored_as_psycopg_stores_them(database: AsyncDatabase, observer: Observer) -> None:
    """Also where the first ones were sent in binary, and those that follow cannot be."""
    observer.execute("CREATE DOMAIN positive AS bigint CHECK (VALUE > 0)")
    for number, (kind, values) in enumerate(VALUES.items()):
        # The last column is one for which binary is worth the trouble.
        made: Any = f"CREATE TABLE %s{number} (id int, x {kind}, y timestamptz)"
        for name in ("ours", "theirs"):
            observer.execute(made % name)
        for each in (*([value] for value in values), values, [None, *values, None] * 200):
            rows = [(i, value, NOW) for i, value in enumerate(each)]
            theirs: Any = f"COPY theirs{number} FROM STDIN"
            with observer.cursor().copy(theirs) as copy:
                for row in rows:
                    copy.write_row(row)
            assert await database.copy_rows(f"ours{number}", iter(rows)) == len(rows)
        differing: Any = "(TABLE {0} EXCEPT ALL TABLE {1}) UNION ALL (TABLE {1} EXCEPT ALL TABLE {0})"
        assert observer.execute(differing.format(f"ours{number}", f"theirs{number}")).fetchall() == [], kind
    await database.close()


async def test_a_database_without_an_encoding(config: dict[str, Any], observer: Observer) -> None:
    """In which psycopg returns text as bytes, the names of columns as well."""
    name = f"{config['connection_settings']['dbname']}_ascii"
    observer.execute(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE 'C'".encode())
    config["connection_settings"]["dbname"] = name
    database = AsyncDatabase(pools(config))
    await database.execute("CREATE TABLE t (a int, b timestamptz)")
    assert await database.copy_rows("t", [(1, NOW), (2, None)]) == 2
    assert await database.copy_rows("t", [{"a": 3}]) == 1
    assert await database.fetch_all("SELECT a, b FROM t ORDER BY a") == [(1, NOW), (2, None), (3, None)]
    await database.close()
    observer.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def test_what_does_not_fit_is_never_cut_off(database: AsyncDatabase, observer: Observer) -> None:
    observer.execute("CREATE TABLE u (a int, b timestamptz)")
    for value in (2**31, -(2**40), 1e300, "x", 1.5):
        for before in (0, 600):
            with pytest.raises(BadRowError) as caught:
                await database.copy_rows("u", [*((i, NOW) for i in range(before)), (value, NOW)])
            assert (caught.value.index, caught.value.column, caught.value.value) == (before, "a", value)
    assert observer.execute("SELECT count(*) FROM u").fetchone() == (0,)
    await database.close()


BAD: list[tuple[list[Any], int, str | None, Any, str]] = [
    ([(1, "x"), (2, "y", "z")], 1, None, None, "3 values for 2 columns"),
    ([(1, "x"), (2,)], 1, None, None, "1 values for 2 columns"),
    ([(1, "x"), ("two", "y")], 1, "a", "two", "invalid input syntax for type integer"),
    ([(1, "x"), (None, "y")], 1, "a", None, "null value in column"),
    ([(1, "x"), (2, "\ud800")], 1, "b", "\ud800", "surrogates"),
    ([{"a": 1, "b": "x"}, {"a": 2}], 1, None, None, "'b'"),
    ([{"a": 1}, {"a": 2, "b": "lost"}], 1, None, None, "'b'|: b"),
    ([Thing(1, "x"), (2, "y")], 1, None, None, "a tuple that is not as the first row"),
    ([(1, "x"), Thing(2, "y")], 1, None, None, "a Thing that is not as the first row"),
]


async def test_a_bad_row_is_named_and_nothing_is_stored(database: AsyncDatabase, observer: Observer) -> None:
    for rows, index, column, value, message in BAD:
        with pytest.raises(BadRowError, match=message) as caught:
            await database.copy_rows("t", rows)
        assert (caught.value.index, caught.value.column, caught.value.value) == (index, column, value)
        assert str(caught.value).startswith(f"rows[{index}]")
    with pytest.raises(BadRowError, match=r"^rows\[1\].*0x00"):  # psycopg 3.2 leaves it to the server
        await database.copy_rows("t", [(1, "x"), (2, "y\0")])
    assert stored(observer) == []
    async with database.transaction():
        await database.execute(INSERT, (10, "before"))
        for rows, *_, message in BAD:
            with pytest.raises(BadRowError, match=message):
                await database.copy_rows("t", iter(rows))
        await database.execute(INSERT, (11, "after"))
    assert stored(observer) == [(10, "before"), (11, "after")]
    await database.close()


async def test_a_row_that_the_server_refuses_is_an_error_of_its_class(database: AsyncDatabase) -> None:
    with pytest.raises(UniqueViolation, match=r"^rows\[2\]: duplicate key .* \(Key \(a\)=\(1\) already") as caught:
        await database.copy_rows("t", [(1, "x"), (2, "y"), (1, "z")])
    error: Any = caught.value
    assert isinstance(error, BadRowError)
    assert (error.sqlstate, error.diag.constraint_name, type(error.__cause__)) == ("23505", "t_pkey", UniqueViolation)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.index) == (BadRowError, str(error), 2)
    await database.close()


async def test_what_is_no_fault_of_a_row_is_raised_as_it_is(database: AsyncDatabase, observer: Observer) -> None:
    def failing() -> Iterator[tuple[int, str]]:
        yield 1, "x"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.copy_rows("t", failing())
    with pytest.raises(psycopg.errors.UndefinedTable):
        await database.copy_rows("missing", [(1,)])
    with pytest.raises(psycopg.errors.UndefinedColumn):
        await database.copy_rows("t", [(1,)], ["missing"])
    for row in (5, "text", object()):
        with pytest.raises(TypeError, match="a row is a tuple, a list, a dictionary or a dataclass"):
            await database.copy_rows("t", [row])
    with pytest.raises(TypeError, match="a dictionary without keys names no columns"):
        await database.copy_rows("t", [{}])
    assert stored(observer) == []
    await database.close()


async def test_large_rows_are_not_in_memory_together(database: AsyncDatabase, observer: Observer) -> None:
    class Row(list[Any]):
        """A list that can be referred to weakly."""

    alive: list[weakref.ref[Row]] = []
    most = 0

    def made() -> Iterator[Row]:
        nonlocal most
        for i in range(100):
            row = Row([i, "x" * 100_000])
            alive.append(weakref.ref(row))
            most = max(most, sum(each() is not None for each in alive))
            yield row

    assert await database.copy_rows("t", made()) == 100
    assert most < 40
    assert observer.execute("SELECT count(*), min(length(b)) FROM t").fetchone() == (100, 100_000)
    await database.close()


async def test_what_the_rows_raise_is_raised_as_it_is(database: AsyncDatabase, observer: Observer) -> None:
    """Also where it is what a server says about a row, but another one."""
    observer.execute("CREATE TABLE u (a int)")

    def failing() -> Iterator[tuple[int, str]]:
        for i in range(600):  # by which COPY has begun
            yield i, "x"
        with observer.cursor().copy("COPY u FROM STDIN") as copy:
            copy.write("1\n2\nthree\n")

    for _ in range(2):
        with pytest.raises(psycopg.errors.InvalidTextRepresentation, match=r"^invalid input") as caught:
            await database.copy_rows("t", failing())
        assert not isinstance(caught.value, BadRowError)
    assert await database.copy_rows("t", [(1, "x")]) == 1
    assert stored(observer) == [(1, "x")]
    await database.close()


async def test_rows_cannot_use_the_transaction_that_they_are_copied_in(
    database: AsyncDatabase, observer: Observer
) -> None:
    async def looked_up() -> AsyncIterator[tuple[int, str]]:
        for i in range(3):
            yield i, await database.fetch_value("SELECT 'found'")

    async with database.transaction():
        with pytest.raises(psycopg.ProgrammingError, match="is executing a statement"):
            await database.copy_rows("t", looked_up())
    # A stream has a connection of its own.
    stream = database.stream("SELECT i, 'streamed' FROM generate_series(1, 2500) AS i")
    async with database.transaction():
        assert await database.copy_rows("t", stream) == 2500
    assert len(stored(observer)) == 2500
    await database.close()


# -- files ------------------------------------------------------------------------------------------------------------


async def test_a_file_that_was_written_is_read_again(
    database: AsyncDatabase, observer: Observer, tmp_path: Path
) -> None:
    rows = [(1, "x"), (2, None), (3, ""), (4, 'a "quoted", long\nvalue'), (5, "é")]
    await database.copy_rows("t", rows)
    for number, options in enumerate(
        (
            {},
            {"header": False},
            {"delimiter": ";", "null": "-"},
            {"encoding": "latin1"},
            {"format": "text"},
            {"format": "binary"},
        )
    ):
        given: Any = options
        path = tmp_path / f"{number}.csv"
        assert await database.copy_to("SELECT a, b FROM t ORDER BY a -- all", path, **given) == 5
        buffer = io.BytesIO()
        assert await database.copy_to(b"SELECT a, b FROM t ORDER BY a", buffer, **given) == 5
        assert buffer.getvalue() == path.read_bytes()
        async with database.transaction():
            await database.execute("DELETE FROM t")
            assert await database.copy_from("t", path, **given) == 5
            await database.execute("DELETE FROM t")
            assert await database.copy_from("t", io.BytesIO(buffer.getvalue()), **given) == 5
        assert stored(observer) == rows
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number}.csv" for number in range(6)]
    await database.close()


async def test_the_header_names_the_columns(database: AsyncDatabase, observer: Observer, tmp_path: Path) -> None:
    def file(text: str) -> io.BytesIO:
        return io.BytesIO(text.encode())

    assert await database.copy_from("t", file("b,a\nx,1\n")) == 1
    assert await database.copy_from("t", file('\ufeff"a"\r\n2\r\n')) == 1
    assert await database.copy_from("t", file("id;text\n3;z\n"), ["a", "b"], delimiter=";") == 1
    assert await database.copy_from("t", file("4,y"), header=False) == 1
    assert await database.copy_from("t", file("")) == 0
    assert await database.copy_from("t", file("a,b")) == 0
    assert stored(observer) == [(1, "x"), (2, None), (3, "z"), (4, "y")]
    with pytest.raises(psycopg.errors.UndefinedColumn):
        await database.copy_from("t", file("a,c\n1,x\n"))
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        await database.copy_from("t", file("a,b\n9,x\nnine,x\n"))
    with pytest.raises(TypeError, match="binary mode"):
        await database.copy_from("t", io.StringIO("a,b\n"))
    with pytest.raises(ValueError, match="'xml' is none of"):
        await database.copy_to("SELECT 1", tmp_path / "x", format="xml")  # type: ignore[arg-type]
    assert len(stored(observer)) == 4
    await database.close()


async def test_a_file_that_cannot_be_completed_is_not_there(database: AsyncDatabase, tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("as it was")
    for name in ("old.csv", "new.csv"):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await database.copy_to("SELECT 1 / (50000 - i) FROM generate_series(1, 50001) AS i", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old.csv"]
    assert (tmp_path / "old.csv").read_text() == "as it was"
    assert await database.copy_to("SELECT %s AS a", tmp_path / "old.csv", ["x"]) == 1
    assert (tmp_path / "old.csv").read_text() == "a\nx\n"
    await database.close()


async def test_many_rows_under_pgbouncers_setting(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int PRIMARY KEY, b text)")
    through = pools(config)
    through["connection_settings"]["pgbouncer"] = True
    through["sync_settings"], through["async_settings"] = {"timezone": "Asia/Tokyo"}, {"timezone": "Asia/Tokyo"}
    database = AsyncDatabase(through)
    assert await database.execute_many(INSERT, [(i, "x") for i in (1, 2**20, 2, 2**21)]) == 4
    zone = await database.execute_many("UPDATE t SET b = current_setting('timezone') RETURNING b", [()], returning=True)
    assert zone == [("Asia/Tokyo",)] * 4
    assert await database.copy_rows("t", [(5, "x")]) == 1
    await database.close()
