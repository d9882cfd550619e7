"""Programs of all kinds do with pgmonkey what they do with psycopg alone: the same values, errors and stored bytes.

Each program is run twice: here on a pool of one connection, there on a plain connection for each unit of work.  So
each unit finds the session as the first one did, whatever was done before it.  PGMONKEY_PROPERTIES is the number of
programs, 500 by default; ``nox -s properties`` runs 20,000.
"""

from __future__ import annotations

import datetime as dt
import importlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.adapt import Dumper
from psycopg.pq import TransactionStatus
from psycopg.rows import class_row, dict_row, namedtuple_row, scalar_row, tuple_row
from psycopg.types.json import Jsonb, JsonbDumper, set_json_loads

from pgmonkey import Database
from pgmonkey._driver.plan import Plan, Plans
from pgmonkey.embedded import Server

from ..values import VALUES, outcome, small, texts

SQL: Any = sql.SQL
templatelib: Any = None
with suppress(ImportError):  # before Python 3.14
    templatelib = importlib.import_module("string.templatelib")

COUNT = int(os.environ.get("PGMONKEY_PROPERTIES", "500"))
pytestmark = pytest.mark.timeout(10 * COUNT)  # seconds: ten a program, on a busy machine
TABLES = """
    CREATE TABLE t (a text); CREATE TABLE k (a int PRIMARY KEY); CREATE TABLE m (a timestamptz, b date);
    CREATE TABLE w (a text); CREATE SCHEMA other; CREATE VIEW other.k AS SELECT a FROM k
"""
CONTENT = """
    SELECT (SELECT array_agg(encode(convert_to(a, 'UTF8'), 'hex') ORDER BY a COLLATE "C") FROM t),
           (SELECT array_agg(a ORDER BY a) FROM k),
           (SELECT array_agg(extract(epoch FROM a)::text || b - DATE '2000-01-01' ORDER BY a, b) FROM m),
           (SELECT array_agg(a::text ORDER BY a::text) FROM w)
"""
EMPTY = "TRUNCATE t, k, m; ALTER TABLE w ALTER a TYPE text; TRUNCATE w"

# -- what programs are made of -----------------------------------------------------------------------------------------

# What psycopg's adapters look at, and what changes the meaning of a statement.
PARAMETERS = {
    "TimeZone": ["UTC", "America/New_York", "Asia/Tokyo"],
    "DateStyle": ["ISO, MDY", "ISO, DMY", "SQL, DMY", "German"],
    "IntervalStyle": ["postgres", "iso_8601", "sql_standard"],
    "client_encoding": ["UTF8", "LATIN1"],
    "bytea_output": ["hex", "escape"],
    "extra_float_digits": ["1", "-5"],
    "search_path": ["public", "other, public"],
}
SETTINGS = st.sampled_from([(name, value) for name, values in PARAMETERS.items() for value in values])
LASTING = SETTINGS.filter(lambda pair: pair[0] in ("TimeZone", "DateStyle", "IntervalStyle"))
TEXTS = st.sampled_from(["", "a", "caf\u00e9", "\u20ac", "it's", "100%", "01/02/2024", "7"])
NUMBERS = st.sampled_from([0, 1, -1, 7, 40_000, 3_000_000_000])
MOMENTS = st.sampled_from(
    [dt.datetime(2024, 1, 2, 3, 4, 5), dt.datetime(2024, 7, 2, 23, tzinfo=dt.timezone.utc), dt.datetime(1900, 1, 1)]
)
DOCUMENTS = st.sampled_from([Jsonb({"a": 1}), Jsonb([1, "\u00e9"]), {"a": 2}])


def call(text: str, *params: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, Any]]:
    """A statement with parameters; of *text* alone without any."""
    return st.tuples(st.just(text), st.lists(st.nothing()) if not params else st.tuples(*params)).map(
        lambda pair: (pair[0], list(pair[1]) or None)
    )


READS = st.one_of(
    call("SELECT '2024-02-01 12:00+00'::timestamptz AS a, make_date(2024, 2, 1) AS b"),
    call("SELECT '40 days 01:02:03'::interval, '-1 mon'::interval"),
    call("SELECT 'caf' || chr(233) AS a"),
    call("SELECT '\\x00ff'::bytea, 0.1::float8 + 0.2::float8"),
    call("SELECT 1 AS same, 2 AS same"),
    call("SELECT ROW(1, 'a', NULL, '2024-02-01 12:00+00'::timestamptz), ARRAY['2024-02-01 12:00+00'::timestamptz]"),
    call("SELECT m FROM m"),
    call("SELECT tstzrange('2024-02-01 12:00+00', NULL), ARRAY['40 days'::interval, NULL], '{[1,3)}'::int4multirange"),
    call("SELECT generate_series(1, 3) AS a"),
    call("SELECT a FROM t WHERE false"),
    call("SELECT current_setting('search_path'), current_user, current_setting('app.tenant', true)"),
    call("SELECT %s::text AS a, pg_typeof(%s)::text AS b", TEXTS, st.one_of(NUMBERS, TEXTS, MOMENTS, st.none())),
    call("SELECT %s::timestamptz, %s::date", MOMENTS, st.one_of(MOMENTS, TEXTS)),
    call("SELECT %s + 1 AS a", NUMBERS),
    call("SELECT 1 / %s::bigint", NUMBERS),
    call("SELECT %s::jsonb, %s::jsonb -> 'a'", DOCUMENTS, DOCUMENTS),
    call("SELECT %s::int8[]", st.lists(NUMBERS, max_size=2)),
    call("SELECT 'a%%', %s", TEXTS),
    call("SELECT 'infinity'::date"),
    call("SELECT count(*) FROM t WHERE a = %s", TEXTS),
    call("SELECT no_such_column"),
    *(
        call(f"SELECT %s::{name} AS a, pg_typeof(%s)::text AS b", values | st.none(), small | st.none() | texts)
        for name, values in VALUES.items()
    ),
)
WRITES = st.one_of(
    call("INSERT INTO t VALUES (%s)", TEXTS),
    call("INSERT INTO t VALUES (%s) RETURNING a", TEXTS),
    call("UPDATE t SET a = a || %s", TEXTS),
    call("INSERT INTO k VALUES (%s)", NUMBERS),
    call("DELETE FROM k"),
    call("INSERT INTO m VALUES (%s, %s)", MOMENTS, MOMENTS),
    call("/* SELECT */ INSERT INTO t VALUES ('commented')"),
)
# Of a table that changes: only a query method alone, or a first statement, does not notice.
CHANGING = st.one_of(
    call("INSERT INTO w VALUES (%s)", st.sampled_from(["7", "2024-01-02", "x"])),
    call("SELECT a FROM w WHERE a = %s", st.sampled_from(["7", "2024-01-02", "x"])),
    call("SELECT * FROM w"),
)
TYPES = ("text", "int", "date", "jsonb", "varchar(20)")


def composed(text: str, params: Any) -> tuple[Any, Any]:
    first, *rest = text.split(" ")
    return sql.Composed([SQL(first), *(SQL(" " + each) for each in rest)]), params


def template(text: str, params: Any) -> tuple[Any, Any]:
    parts = (text.replace("%%", "%") if params else text).split("%s")
    pairs = itertools.zip_longest(parts, [templatelib.Interpolation(value, "value") for value in params or ()])
    return templatelib.Template(*(part for pair in pairs for part in pair if part is not None)), None


FORMS: list[Callable[[str, Any], tuple[Any, Any]]] = [
    *[lambda text, params: (text, params)] * 3,
    lambda text, params: (text.encode(), params),
    lambda text, params: (SQL(text), params),
    lambda text, params: (text, tuple(params) if params else None),
    composed,
    *([template] if templatelib else []),
]


class Thing:
    def __init__(self, **values: Any) -> None:
        self.values = values

    def __repr__(self) -> str:
        return f"Thing({self.values})"


def numbered(cursor: Any) -> Any:
    """A row factory that keeps count of the rows of one result."""
    numbers = itertools.count()
    return lambda values: (next(numbers), *values)


class Odd(Dumper):
    oid = 20

    def dump(self, obj: Any) -> bytes:
        return str(int(obj) + 1000).encode()


def registered(connection: Any) -> None:
    connection.adapters.register_dumper(dict, JsonbDumper)
    set_json_loads(lambda text: ["loaded", text], connection)


def other_numbers(connection: Any) -> None:
    connection.adapters.register_dumper(int, Odd)


def with_attribute(name: str, value: Any) -> Callable[[Any], None]:
    return lambda connection: setattr(connection, name, value)


FACTORIES = (None, None, dict_row, namedtuple_row, class_row(Thing), scalar_row, numbered)
# What is done to a connection: by configure to each, or by a borrower to its own.
ALTERATIONS: tuple[Callable[[Any], None], ...] = (
    *(registered, other_numbers),
    *(with_attribute("row_factory", factory) for factory in FACTORIES if factory),
    with_attribute("cursor_factory", psycopg.ClientCursor),
    with_attribute("prepare_threshold", None),
)


def with_setting(name: str, value: str) -> Callable[[Any], None]:
    def configure(connection: Any) -> None:
        psycopg.Cursor(connection, row_factory=tuple_row).execute("SELECT set_config(%s, %s, false)", [name, value])
        connection.commit()

    return configure


CONFIGURATIONS = (
    None,
    *ALTERATIONS,
    with_setting("TimeZone", "Asia/Tokyo"),
    with_setting("DateStyle", "German"),
    with_setting("search_path", "other, public"),
    with_setting("app.tenant", "configured"),
)


@dataclass
class Step:
    """One statement, a number of times."""

    statement: tuple[str, Any]
    form: int
    method: str
    by_connection: bool
    times: int


@dataclass
class Unit:
    """What is done in one transaction; by a query method alone, or in a block that ends in one of two ways."""

    kind: str
    steps: list[Step | tuple[str, str, bool] | int]
    fails: bool


@dataclass
class Program:
    """A configuration, and what is done with it: units, tables that change, a server that is configured anew."""

    threshold: int | None
    factory: int
    configure: int
    database: tuple[str, str] | None
    values: list[tuple[str, str]]
    units: list[Unit | str | tuple[str, str]] = field(default_factory=list)


METHODS = st.sampled_from(["fetch_one", "fetch_all", "fetch_value", "execute"])
FORM = st.integers(0, len(FORMS) - 1)
TIMES = st.sampled_from([1, 3, 5])
steps = st.builds(Step, st.one_of(READS, WRITES), FORM, METHODS, st.booleans(), TIMES)
lone = st.builds(Step, st.one_of(READS, WRITES, CHANGING), FORM, METHODS, st.just(False), TIMES)
inside = st.one_of(
    *[steps] * 5,
    st.tuples(*[SETTINGS, st.booleans()]).map(lambda s: (*s[0], s[1])),
    st.integers(0, len(ALTERATIONS) - 1),
)
units = st.one_of(
    st.builds(Unit, st.just("alone"), st.lists(lone, min_size=1, max_size=2), st.just(False)),
    st.builds(
        Unit, st.sampled_from(["transaction", "connection"]), st.lists(inside, min_size=1, max_size=5), st.booleans()
    ),
)
# The server reads its configuration rarely: it takes its time.
alterations = st.integers(0, 19).flatmap(lambda number: st.sampled_from(TYPES) if number else LASTING)
programs = st.builds(
    Program,
    threshold=st.sampled_from([0, 0, 0, 1, None]),
    factory=st.integers(0, len(FACTORIES) - 1),
    configure=st.just(0) | st.integers(0, len(CONFIGURATIONS) - 1),
    database=st.none() | st.none() | LASTING,
    values=st.just([]) | st.lists(st.one_of(SETTINGS, st.just(("app.tenant", "o'ne"))), max_size=2),
    units=st.lists(st.one_of(*[units] * 6, alterations), min_size=1, max_size=6),
)

# -- both sides --------------------------------------------------------------------------------------------------------


class Ours:
    """A program on a pool of one connection."""

    def __init__(self, program: Program, server: Server, dbname: str) -> None:
        connect = {**server.config(dbname)["connection_settings"], "prepare_threshold": program.threshold}
        pool: dict[str, Any] = {"min_size": 1, "max_size": 1, "timeout": 60}
        if (configure := CONFIGURATIONS[program.configure]) is not None:
            pool["configure"] = configure
        values = dict(program.values)
        config = {"connection_settings": connect, "pool_settings": pool}
        factory: Any = FACTORIES[program.factory]
        self.database: Database[Any] = Database(
            config, row_factory=factory, session_values=(lambda: values) if values else None
        )

    def alone(self, method: str, query: Any, params: Any) -> Any:
        return getattr(self.database, method)(query, params)

    def block(self, kind: str) -> Any:
        return getattr(self.database, kind)()

    def method(self, connection: Any, kind: str, name: str, query: Any, params: Any) -> Any:
        if kind == "transaction":
            return getattr(self.database, name)(query, params)
        return fetch(connection, name, query, params)

    def close(self) -> None:
        self.database.close()


class Plain:
    """The same on connections of psycopg's own."""

    def __init__(self, program: Program, server: Server, dbname: str) -> None:
        self.program, self.dsn = program, server.dsn(dbname)
        self.untouched: psycopg.Connection[Any] | None = None
        """A connection on which nothing was done that could last."""

    def alone(self, method: str, query: Any, params: Any) -> Any:
        with self.block("alone") as connection:
            return fetch(connection, method, query, params)

    @contextmanager
    def block(self, kind: str) -> Iterator[Any]:
        connection, self.untouched = self.untouched or self.connect(), None
        try:
            with connection.transaction():
                for pair in self.program.values:
                    psycopg.Cursor(connection, row_factory=tuple_row).execute("SELECT set_config(%s, %s, true)", pair)
                yield connection
                if connection.info.transaction_status == TransactionStatus.INERROR:
                    raise psycopg.errors.InFailedSqlTransaction
        finally:
            if kind == "alone":
                self.untouched = connection
            else:
                connection.close()

    def connect(self) -> psycopg.Connection[Any]:
        program = self.program
        connection: psycopg.Connection[Any] = psycopg.connect(self.dsn, autocommit=True, prepare_threshold=None)
        if (configure := CONFIGURATIONS[program.configure]) is not None:
            configure(connection)
        if (factory := FACTORIES[program.factory]) is not None:
            connection.row_factory = factory
        return connection

    def method(self, connection: Any, kind: str, name: str, query: Any, params: Any) -> Any:
        return fetch(connection, name, query, params)

    def close(self) -> None:
        if self.untouched is not None:
            self.untouched.close()
            self.untouched = None


def fetch(connection: Any, method: str, query: Any, params: Any) -> Any:
    cursor = connection.cursor(row_factory=tuple_row if method == "fetch_value" else connection.row_factory)
    cursor.execute(query, params)
    if method == "execute":
        return cursor.rowcount
    if method == "fetch_all":
        return cursor.fetchall()
    row = cursor.fetchone()
    return row[0] if row is not None and method == "fetch_value" else row


class Refused(Exception):
    """What makes a block fail."""


def run(unit: Unit, side: Ours | Plain) -> list[str]:
    """Run *unit*; return all that is seen."""
    found: list[str] = []

    def do(step: Step | tuple[str, str, bool] | int, connection: Any) -> object:
        if isinstance(step, int):
            return ALTERATIONS[step](connection)
        if isinstance(step, tuple):
            name, value, local = step
            connection.execute(sql.SQL("SELECT set_config({}, {}, {})").format(name, value, local))
            return None
        query, params = FORMS[step.form](*step.statement)
        if connection is None:
            return side.alone(step.method, query, params)
        if step.by_connection:
            return fetch(connection, step.method, query, params)
        return side.method(connection, unit.kind, step.method, query, params)

    def do_all(connection: Any) -> None:
        for step in unit.steps:
            for _ in range(step.times if isinstance(step, Step) else 1):
                found.append(seen(partial(do, step, connection)))

    def block() -> None:
        with side.block(unit.kind) as connection:
            do_all(connection)
            if unit.fails:
                raise Refused

    if unit.kind == "alone":
        do_all(None)
    else:
        found.append(seen(block))
    return found


def seen(function: Callable[[], Any]) -> str:
    """What can be seen of a call: the value, or the kind of the error."""
    found = outcome(function)
    if isinstance(found, psycopg.Error):
        return f"{type(found).__name__} {found.sqlstate}"
    return repr(type(found)) if isinstance(found, Exception) else repr(found)


# -- the test ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, psycopg.Connection[Any], list[psycopg.Connection[Any]]]]:
    """A server of this module's own, which it may configure anew, and who looks at both of its databases."""
    with Server() as server, psycopg.connect(server.dsn("postgres"), autocommit=True) as admin:
        observers = []
        for name in ("ours", "plain"):
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            observers.append(psycopg.connect(server.dsn(name), autocommit=True))
            observers[-1].execute(TABLES.encode())
        yield server, admin, observers
        for observer in observers:
            observer.close()


def reload(admin: psycopg.Connection[Any], number: int, ours: Ours | None = None) -> None:
    """Have the server read its configuration; wait until all have seen it, by *number*, new connections and *ours*."""
    admin.execute(sql.SQL("ALTER SYSTEM SET deadlock_timeout TO {}").format(sql.Literal(f"{number}ms")))
    admin.execute("SELECT pg_reload_conf()")

    def fresh() -> Any:
        return psycopg.connect(admin.info.dsn, password=admin.info.password)

    for connect in (fresh, *([ours.database.connection] if ours is not None else [])):
        for _ in range(500):
            with connect() as connection:
                cursor = psycopg.Cursor(connection, row_factory=tuple_row).execute("SHOW deadlock_timeout")
                if cursor.fetchone() == (f"{number}ms",):
                    break
            time.sleep(0.01)


@pytest.fixture
def plans_used(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail when the fast path is hardly ever taken, about which nothing would be said then."""
    taken = 0
    usual = Plans.find

    def counted(self: Plans, *arguments: Any) -> Plan | None:
        nonlocal taken
        plan = usual(self, *arguments)
        taken += plan is not None
        return plan

    monkeypatch.setattr(Plans, "find", counted)
    yield
    assert taken > COUNT // 3


numbers = itertools.count(1001)


@settings(
    max_examples=COUNT,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
@given(program=programs)
@pytest.mark.usefixtures("plans_used")
def test_the_same_as_with_psycopg_alone(program: Program, servers: Any) -> None:
    server, admin, observers = servers
    if program.database is not None:
        for name in ("ours", "plain"):
            admin.execute(
                sql.SQL("ALTER DATABASE {} SET {} TO {}").format(
                    sql.Identifier(name), sql.Identifier(program.database[0]), sql.Literal(program.database[1])
                )
            )
    sides: tuple[Ours, Plain] = Ours(program, server, "ours"), Plain(program, server, "plain")
    configured = False
    try:
        for unit in program.units:
            if isinstance(unit, str):
                change = f"ALTER TABLE w ALTER a TYPE {unit} USING NULL"
                for observer in observers:
                    observer.execute(change.encode())
            elif isinstance(unit, tuple):
                configured = True
                name, value = unit
                admin.execute(sql.SQL("ALTER SYSTEM SET {} TO {}").format(sql.Identifier(name), sql.Literal(value)))
                sides[1].close()
                reload(admin, next(numbers), sides[0])
            else:
                found, expected = (run(unit, side) for side in sides)
                note(f"{unit}: {expected}")
                assert found == expected
        stored = [observer.execute(CONTENT).fetchone() for observer in observers]
        assert stored[0] == stored[1]
    finally:
        for side in sides:
            side.close()
        for observer in observers:
            observer.execute(EMPTY.encode())
        if program.database is not None:
            for name in ("ours", "plain"):
                admin.execute(sql.SQL("ALTER DATABASE {} RESET ALL").format(sql.Identifier(name)))
        if configured:
            admin.execute("ALTER SYSTEM RESET ALL")
            reload(admin, next(numbers))
