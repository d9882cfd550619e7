# Generated from test_fast_async.py by tools/twins.py: change that file, then run the tool.

"""The short way for prepared statements gives what psycopg gives: this file is the source of its synchronous twin."""

from __future__ import annotations

import dataclasses
import datetime as dt
import ipaddress
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection, sql
from psycopg.rows import args_row, class_row, dict_row, kwargs_row, namedtuple_row, scalar_row
from psycopg.types.json import Json, Jsonb
from psycopg.types.range import Range

from pgmonkey import CommandTimeoutError, Database
from pgmonkey._driver.plan import MISS
from pgmonkey._sync import fastpath as fast

from ._colour import run_to_end

Observer = psycopg.Connection[Any]
Way = Callable[[], int]


@pytest.fixture
def short_ways(monkeypatch: pytest.MonkeyPatch) -> Way:
    """A function that returns how many statements took the short way so far; the way itself is as ever."""
    taken = 0
    usual = fast.FastPath.run

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal taken
        result = None
        try:
            result = usual(self, *arguments)
        finally:
            taken += result is not MISS
        return result

    monkeypatch.setattr(fast.FastPath, "run", counted)
    return lambda: taken


def prepared(config: dict[str, Any], threshold: int = 0) -> dict[str, Any]:
    """A pool of one connection, which prepares at once."""
    pool = {"min_size": 1, "max_size": 1, "timeout": 5}
    connect = {**config["connection_settings"], "prepare_threshold": threshold}
    return {"connection_settings": connect, "pool_settings": dict(pool), "async_pool_settings": dict(pool)}


small = st.integers(-(2**15), 2**15 - 1)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
moments = st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30))
numbers = st.decimals(allow_nan=False, allow_infinity=False, places=5, min_value=-(10**20), max_value=10**20)
documents = st.recursive(
    st.none() | st.booleans() | small | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=5,
)
VALUES: dict[str, Any] = {
    "bool": st.booleans(),
    "int2": small,
    "int4": st.integers(-(2**31), 2**31 - 1),
    "int8": st.integers(-(2**63), 2**63 - 1),
    "numeric": numbers | st.integers(-(2**90), 2**90),
    "float4": st.floats(width=32),
    "float8": st.floats(),
    "text": texts,
    "varchar": texts,
    "bytea": st.binary(max_size=40),
    "date": st.dates(),
    "time": st.times(),
    "timestamp": moments,
    "timestamptz": st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9998, 1, 1), timezones=st.just(dt.timezone.utc)),
    "interval": st.timedeltas(dt.timedelta(-10000), dt.timedelta(10000)),
    "uuid": st.uuids(),
    "inet": st.ip_addresses(),
    "cidr": st.ip_addresses(v=4).map(lambda address: ipaddress.ip_network(f"{address}/32")),
    "jsonb": documents.map(Jsonb),
    "json": documents.map(Json),
    "int4range": st.tuples(small, small).map(lambda ends: Range(min(ends), max(ends) + 1)),
    "int8[]": st.lists(st.integers(-(2**40), 2**40) | st.none(), min_size=1, max_size=4),
    "text[]": st.lists(texts, max_size=4),
    "numeric[]": st.lists(numbers, min_size=1, max_size=3),
    "timestamp[]": st.lists(moments, min_size=1, max_size=3),
    "uuid[]": st.lists(st.uuids(), min_size=1, max_size=3),
}


@pytest.mark.parametrize("name", VALUES)
def test_every_built_in_type(name: str, config: dict[str, Any], observer: Observer, short_ways: Way) -> None:
    database = Database(prepared(config))
    query: Any = f"SELECT %s::{name} AS a, pg_typeof(%s)::text AS b"
    pairs: list[tuple[Any, Any]] = []

    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        database=None,
    )
    @given(value=VALUES[name] | st.none(), other=small | st.none() | texts)
    def collect(value: Any, other: Any) -> None:
        pairs.append((value, other))

    collect()
    for pair in pairs:
        expected = outcome(partial(_first, observer, query, pair))
        for _ in range(3):
            found = run_to_end(partial(database.fetch_one, query, pair))
            assert repr(found) == repr(expected), pair
    assert short_ways() > len(pairs) // 3
    database.close()


def _first(connection: Observer, query: str, params: Any) -> Any:
    return connection.execute(query.encode(), params).fetchone()


def outcome(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        return error


@dataclasses.dataclass
class Pair:
    a: int
    b: str


FACTORIES: dict[str, Any] = {
    "tuple": None,
    "dict": dict_row,
    "namedtuple": namedtuple_row,
    "class": class_row(Pair),
    "args": args_row(lambda *values: list(values)),
    "kwargs": kwargs_row(lambda **values: values),
    "scalar": scalar_row,
}


@pytest.mark.parametrize("name", FACTORIES)
def test_rows_of_every_kind(name: str, config: dict[str, Any], server: Any, dbname: str, short_ways: Way) -> None:
    database: Database[Any] = Database(prepared(config), row_factory=FACTORIES[name])
    query = "SELECT a, 'x' || a AS b FROM generate_series(1, %s) AS a"
    with Connection.connect(server.dsn(dbname)) as plain:
        if FACTORIES[name] is not None:
            plain.row_factory = FACTORIES[name]
        for count in (3, 0, 1, 200, 3):
            cursor = plain.execute(query, [count])
            expected = cursor.fetchall()
            assert database.fetch_all(query, [count]) == expected
            assert database.fetch_one(query, [count]) == (expected[0] if expected else None)
    assert database.fetch_value(query, [2]) == 1
    assert database.fetch_value(query, [0]) is None
    assert short_ways() >= 10
    database.close()


def test_what_is_affected(config: dict[str, Any], observer: Observer, short_ways: Way) -> None:
    observer.execute("CREATE TABLE t (a int PRIMARY KEY, b text)")
    database = Database(prepared(config))
    for a in range(10):
        assert database.execute("INSERT INTO t VALUES (%(a)s, %(b)s)", {"b": "x", "a": a}) == 1
    assert database.execute("UPDATE t SET b = %s WHERE a < %s", ["y", 5]) == 5
    assert database.execute("UPDATE t SET b = %s WHERE a < %s", ["y", 3]) == 3
    for _ in range(3):
        assert database.execute("SELECT * FROM t") == 10
        assert database.fetch_all("SELECT count(*) FROM t WHERE b = 'y'") == [(5,)]
        assert database.fetch_one("UPDATE t SET b = b WHERE a = %s RETURNING a", [4]) == (4,)
    for _ in range(3):
        assert database.execute("UPDATE t SET b = b") == 10
        with pytest.raises(psycopg.ProgrammingError, match="didn't produce"):
            database.fetch_one("UPDATE t SET b = b")
    assert short_ways() > 10
    database.close()


def test_errors_are_psycopgs_own(config: dict[str, Any], observer: Observer, short_ways: Way) -> None:
    observer.execute("CREATE TABLE t (a int PRIMARY KEY)")
    database = Database(prepared(config))
    insert, divide = "INSERT INTO t VALUES (%s)", "SELECT 1 / %s"
    assert database.execute(insert, [1]) == 1
    assert database.fetch_one(divide, [1]) == (1,)
    for _ in range(3):
        with pytest.raises(psycopg.errors.UniqueViolation) as caught:
            database.execute(insert, [1])
        assert caught.value.diag.constraint_name == "t_pkey"
        with pytest.raises(psycopg.errors.DivisionByZero):
            database.fetch_one(divide, [0])
        with pytest.raises(psycopg.ProgrammingError, match="but 2 parameters"):
            database.fetch_one(divide, [1, 2])
        with pytest.raises(TypeError, match="require a sequence of parameters"):
            database.fetch_one(divide, {"a": 1})
        with pytest.raises(psycopg.ProgrammingError, match="cannot adapt type"):
            database.fetch_one(divide, [object()])
    assert short_ways() > 0
    stats = database.stats()
    assert stats["pool_available"] == stats["pool_size"] == 1
    database.close()


def test_only_prepared_text_takes_the_short_way(config: dict[str, Any], short_ways: Way) -> None:
    database = Database(prepared(config, threshold=5))
    for _ in range(6):
        database.fetch_value("SELECT 1")
    assert short_ways() == 0
    database.fetch_value("SELECT 1")
    assert short_ways() == 1
    for statement in (sql.SQL("SELECT 2"), b"SELECT 3", "SELECT set_config('work_mem', '123kB', false)"):
        for _ in range(8):
            database.fetch_value(statement)
    assert short_ways() == 1
    assert database.fetch_value("SHOW work_mem") == "4MB"
    with database.transaction():
        database.fetch_value("SELECT 1")
    assert short_ways() == 1
    database.close()


def test_percent_signs_and_parameters(config: dict[str, Any], short_ways: Way) -> None:
    database = Database(prepared(config))
    for _ in range(3):
        assert database.fetch_value("SELECT 'a%'") == "a%"
        assert database.fetch_value("SELECT 'a%%' || %s", ["b"]) == "a%b"
        assert database.fetch_value("SELECT %(x)s::int + %(x)s::int", {"x": 2, "y": 3}) == 4
        assert database.fetch_value("SELECT 'a%%'", []) == "a%"
    assert short_ways() >= 6
    database.close()


class Odd(int):
    """A number that is dumped in a way of its own."""


def test_types_that_are_registered_later(config: dict[str, Any], short_ways: Way) -> None:
    from psycopg.adapt import Dumper

    class OddDumper(Dumper):
        oid = 20

        def dump(self, obj: Any) -> bytes:
            return str(int(obj) * 1000).encode()

    database = Database(prepared(config))
    for _ in range(3):
        assert database.fetch_value("SELECT %s::int8", [Odd(7)]) == 7
    psycopg.adapters.register_dumper(Odd, OddDumper)
    for _ in range(3):
        assert database.fetch_value("SELECT %s::int8", [Odd(7)]) == 7000
    assert short_ways() >= 3
    database.close()


def test_tables_and_types_that_change(config: dict[str, Any], observer: Observer, short_ways: Way) -> None:
    observer.execute(
        "CREATE TYPE mood AS ENUM ('fine'); CREATE TABLE t (a int, m mood); INSERT INTO t VALUES (1, 'fine')"
    )
    database = Database(prepared(config))
    query = "SELECT * FROM t"
    for change in (
        *("SELECT 1", "ALTER TABLE t ADD c int DEFAULT 5", "ALTER TABLE t ALTER a TYPE text", "ALTER TABLE t DROP c"),
        "DROP TABLE t; DROP TYPE mood; CREATE TYPE mood AS ENUM ('bad');"
        "CREATE TABLE t (m mood, z numeric); INSERT INTO t VALUES ('bad', 1.5)",
    ):
        observer.execute(change.encode())
        for _ in range(4):
            assert database.fetch_all(query) == observer.execute(query, prepare=False).fetchall()
    assert short_ways() >= 8
    database.close()


def test_a_deadline_holds_on_the_short_way(config: dict[str, Any], short_ways: Way) -> None:
    config["connection_settings"]["command_timeout"] = 0.4
    database = Database(prepared(config))
    for _ in range(3):
        database.fetch_value("SELECT pg_sleep(%s)", [0.01])
    taken = short_ways()
    assert taken > 0
    with pytest.raises(CommandTimeoutError):
        database.fetch_value("SELECT pg_sleep(%s)", [30.0])
    assert database.fetch_value("SELECT 1") == 1
    database.close()


def test_a_slow_answer_is_complete(config: dict[str, Any], short_ways: Way) -> None:
    database = Database(prepared(config))
    query = "SELECT repeat('x', 1000) || pg_sleep(%s) FROM generate_series(1, 3000)"
    for pause in (0.0, 0.0, 0.0001, 0.0):
        rows = database.fetch_all(query, [pause])
        assert len(rows) == 3000
        assert {len(row[0]) for row in rows} == {1000}
    assert short_ways() >= 2
    database.close()


def test_a_lost_connection_on_the_short_way(config: dict[str, Any], observer: Observer, short_ways: Way) -> None:
    database = Database(prepared(config))
    kill = "SELECT pg_terminate_backend(pg_backend_pid()), %s::int"
    with pytest.raises(psycopg.OperationalError):
        database.fetch_value(kill, [1])
    query = "SELECT pg_sleep(%s)"
    for _ in range(3):
        database.fetch_value(query, [0])
    threading.Timer(
        0.3,
        lambda: observer.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND datname = current_database()"
        ),
    ).start()
    with pytest.raises(psycopg.errors.AdminShutdown):
        database.fetch_value(query, [30])
    assert database.fetch_value("SELECT 1") == 1
    database.close()


def test_rows_are_of_the_database_whatever_verb_came_first(config: dict[str, Any], short_ways: Way) -> None:
    database = Database(prepared(config), row_factory=dict_row)
    for _ in range(3):
        assert database.fetch_value("SELECT 1 AS a") == 1
    assert database.fetch_one("SELECT 1 AS a") == {"a": 1}
    assert database.fetch_all("SELECT 1 AS a") == [{"a": 1}]
    assert short_ways() >= 3
    database.close()


def test_nothing_large_is_kept(config: dict[str, Any], short_ways: Way) -> None:
    database = Database(prepared(config))
    for _ in range(3):
        assert database.fetch_value("SELECT %s::text", ["x" * 100]) == "x" * 100
        assert database.fetch_one("SELECT %(a)s::text", {"a": "x" * 100}) == ("x" * 100,)
        assert database.fetch_all("SELECT repeat('x', 100)") == [("x" * 100,)]
    assert short_ways() == 6
    with database.transaction() as connection:
        cursor = connection.execute("SELECT %s::int", [1])
        assert cursor.fetchone() == (1,)
        plans = connection.__dict__["pooled"].plans
    assert len(plans._plans) > 4
    for plan in plans._plans.values():
        assert plan.transformer.pgresult is None
        assert plan.params is None
        assert plan._converter.params is None
    database.close()
