# Generated from tests/_async/test_fast_path.py by tools/twins.py: change that file, then run the tool.

"""The fast path for prepared statements gives what psycopg gives."""

from __future__ import annotations

import dataclasses
import itertools
import json
import threading
from collections.abc import Callable
from functools import cached_property, partial, wraps
from typing import Any

import psycopg
import pytest
from psycopg import Connection, sql
from psycopg.adapt import Loader
from psycopg.rows import args_row, class_row, dict_row, kwargs_row, namedtuple_row, scalar_row, tuple_row

from pgmonkey import CommandTimeoutError, Database
from pgmonkey._driver.plan import Declined
from pgmonkey._sync import fastpath as fast

from ..configs import prepared
from ..values import outcome
from .concurrency import run_to_end

Observer = psycopg.Connection[Any]
Hits = Callable[[], int]


@pytest.fixture
def fast_path_hits(monkeypatch: pytest.MonkeyPatch) -> Hits:
    """A function that returns how many statements took the fast path so far; the path itself is unchanged."""
    taken = 0
    usual = fast.FastPath.run

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal taken
        result = None
        try:
            result = usual(self, *arguments)
        finally:
            taken += result.__class__ is not Declined
        return result

    monkeypatch.setattr(fast.FastPath, "run", counted)
    return lambda: taken


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
def test_rows_of_every_kind(name: str, config: dict[str, Any], server: Any, dbname: str, fast_path_hits: Hits) -> None:
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
    assert fast_path_hits() >= 10
    database.close()


def test_row_counts(config: dict[str, Any], observer: Observer, fast_path_hits: Hits) -> None:
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
    assert fast_path_hits() > 10
    database.close()


def test_errors_are_psycopgs_own(config: dict[str, Any], observer: Observer, fast_path_hits: Hits) -> None:
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
    assert fast_path_hits() > 0
    stats = database.stats()
    assert stats["pool_available"] == stats["pool_size"] == 1
    database.close()


def test_only_what_is_prepared_takes_the_fast_path(config: dict[str, Any], fast_path_hits: Hits) -> None:
    database = Database(prepared(config, threshold=5))
    for _ in range(6):
        database.fetch_value("SELECT 1")
    assert fast_path_hits() == 0
    database.fetch_value("SELECT 1")
    assert fast_path_hits() == 1
    composed = sql.SQL("SELECT {}").format(sql.Literal(4))
    forms: list[Any] = [sql.SQL("SELECT 2"), b"SELECT 3", composed, "SELECT 5"]
    for hits, statement in zip((3, 5, 7, 9), forms, strict=True):
        for _ in range(8):
            database.fetch_value(statement)
        assert fast_path_hits() == hits
    for _ in range(8):
        database.fetch_value("SELECT set_config('work_mem', '123kB', false)")
    assert fast_path_hits() == 9
    assert database.fetch_value("SHOW work_mem") == "4MB"
    with database.transaction():
        database.fetch_value("SELECT 1")
    assert fast_path_hits() == 9
    database.close()


def test_percent_signs_and_parameters(config: dict[str, Any], fast_path_hits: Hits) -> None:
    database = Database(prepared(config))
    for _ in range(3):
        assert database.fetch_value("SELECT 'a%'") == "a%"
        assert database.fetch_value("SELECT 'a%%' || %s", ["b"]) == "a%b"
        assert database.fetch_value("SELECT %(x)s::int + %(x)s::int", {"x": 2, "y": 3}) == 4
        assert database.fetch_value("SELECT 'a%%'", []) == "a%"
    assert fast_path_hits() >= 6
    database.close()


class Odd(int):
    """A number with a dumper of its own."""


def test_types_that_are_registered_later(config: dict[str, Any], fast_path_hits: Hits) -> None:
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
    assert fast_path_hits() >= 3
    database.close()


# What psycopg's adapters look at, each with two values under which the same statement has another text.
PARAMETERS: list[tuple[str, str, str, Any]] = [
    ("TimeZone", "America/New_York", "Asia/Tokyo", "SELECT '2024-01-02 03:04:05+00'::timestamptz"),
    ("DateStyle", "SQL, DMY", "SQL, MDY", "SELECT make_date(2024, 2, 1)"),
    ("IntervalStyle", "iso_8601", "postgres_verbose", "SELECT '40 days'::interval"),
    ("client_encoding", "LATIN1", "UTF8", "SELECT 'caf' || chr(233)"),
]


@pytest.mark.parametrize(("name", "one", "other", "query"), PARAMETERS, ids=[each[0] for each in PARAMETERS])
def test_session_parameters(
    name: str, one: str, other: str, query: Any, config: dict[str, Any], observer: Observer
) -> None:
    database = Database(prepared(config))

    def expected(value: str) -> str:
        with observer.transaction():
            observer.execute("SELECT set_config(%s, %s, true)", [name, value])
            return repr(outcome(partial(run_sync, observer, query)))

    usual = repr(run_sync(observer, query))
    for value in (one, other, one, other):
        with database.transaction() as connection:
            connection.execute("SELECT set_config(%s, %s, true)", [name, value])
            for _ in range(4):
                assert repr(run_to_end(partial(database.fetch_value, query))) == expected(value)
                assert repr(run_to_end(partial(value_of, connection, query))) == expected(value)
        assert repr(database.fetch_value(query)) == usual, "the next borrower has the usual value"
    database.close()


def test_a_literal_is_read_under_the_time_zone_in_which_it_was_prepared(
    config: dict[str, Any], server: Any, dbname: str
) -> None:
    """As with psycopg, which prepares a statement once for all sessions, too."""
    database = Database(prepared(config))
    query: Any = "SELECT extract(epoch FROM timestamptz '2024-01-01 00:00')::int"
    with Connection.connect(server.dsn(dbname), prepare_threshold=0) as plain:
        for zone in ("UTC", "Asia/Tokyo"):
            theirs = []
            with database.transaction() as connection, plain.transaction():
                for each in (connection, plain):
                    each.execute("SELECT set_config('TimeZone', %s, true)", [zone])
                for _ in range(3):
                    cursor = plain.execute(query)
                    theirs += cursor.fetchall()
                assert [database.fetch_one(query) for _ in range(3)] == theirs
    database.close()


def test_text_is_stored_in_the_encoding_of_the_session(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a text)")
    database = Database(prepared(config))
    insert, text = "INSERT INTO t VALUES (%s)", "caf\u00e9"
    for encoding in ("UTF8", "LATIN1", "UTF8"):
        with database.transaction() as connection:
            connection.execute("SELECT set_config('client_encoding', %s, true)", [encoding])
            for _ in range(3):
                database.execute(insert, [text])
                connection.execute(insert, [text])
    assert observer.execute("SELECT DISTINCT a FROM t").fetchall() == [(text,)]
    database.close()


def test_a_type_of_the_borrowers_own_is_not_learnt(config: dict[str, Any], observer: Observer) -> None:
    from psycopg.types.json import JsonbDumper

    observer.execute("CREATE TABLE t (a jsonb)")
    database = Database(prepared(config))
    for number in range(8):
        with database.connection() as connection:
            connection.adapters.register_dumper(dict, JsonbDumper)
            connection.execute("INSERT INTO t VALUES (%s)", [{"number": number}])
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (8,)
    database.close()


def test_types_that_configure_registers(config: dict[str, Any], observer: Observer, fast_path_hits: Hits) -> None:
    from psycopg.types.json import JsonbDumper, set_json_loads

    settings = prepared(config)
    observer.execute("CREATE TABLE t (a jsonb)")

    def configure(connection: Any) -> None:
        connection.adapters.register_dumper(dict, JsonbDumper)
        set_json_loads(lambda text: ["loaded", text], connection)

    settings["pool_settings"]["configure"] = settings["async_pool_settings"]["configure"] = configure
    database = Database(settings)
    for _ in range(5):
        assert database.execute("INSERT INTO t VALUES (%s)", [{}]) == 1
        assert database.fetch_value("SELECT a FROM t LIMIT 1") == ["loaded", b"{}"]
    assert fast_path_hits() >= 8
    with database.transaction() as connection:
        set_json_loads(lambda text: "the borrower's", connection)
        for _ in range(3):
            assert database.fetch_value("SELECT a FROM t LIMIT 1") == "the borrower's"
            assert value_of(connection, "SELECT a FROM t LIMIT 1") == "the borrower's"
    assert database.fetch_value("SELECT a FROM t LIMIT 1") == ["loaded", b"{}"]
    database.close()


def test_a_row_factory_that_configure_sets(config: dict[str, Any], fast_path_hits: Hits) -> None:
    settings = prepared(config)

    def configure(connection: Any) -> None:
        connection.row_factory = dict_row

    settings["pool_settings"]["configure"] = settings["async_pool_settings"]["configure"] = configure
    database: Database[Any] = Database(settings)
    for _ in range(4):
        assert database.fetch_one("SELECT 1 AS a") == {"a": 1}
        assert database.fetch_value("SELECT 1 AS a") == 1
    taken = fast_path_hits()
    assert taken >= 6
    with database.transaction() as connection:
        connection.row_factory = scalar_row
        for _ in range(3):
            assert database.fetch_one("SELECT 1 AS a") == 1
    assert database.fetch_one("SELECT 1 AS a") == {"a": 1}
    database.close()


def test_a_row_factory_is_asked_anew_for_each_result(config: dict[str, Any]) -> None:
    def numbered(cursor: Any) -> Any:
        numbers = itertools.count(1)
        return lambda values: (next(numbers), *values)

    database: Database[Any] = Database(prepared(config), row_factory=numbered)
    for _ in range(4):
        assert database.fetch_all("SELECT 'a' UNION ALL SELECT 'b'") == [(1, "a"), (2, "b")]
    database.close()


def test_a_row_factory_that_wraps_one_of_psycopgs(config: dict[str, Any]) -> None:
    @wraps(tuple_row)
    def numbered(cursor: Any) -> Any:
        numbers = itertools.count(1)
        return lambda values: (next(numbers), *values)

    database: Database[Any] = Database(prepared(config), row_factory=numbered)
    for _ in range(4):
        assert database.fetch_all("SELECT 'a' UNION ALL SELECT 'b'") == [(1, "a"), (2, "b")]
    database.close()


def test_json_functions_that_are_set_for_all_later(config: dict[str, Any], fast_path_hits: Hits) -> None:
    from psycopg.types.json import Jsonb, set_json_dumps, set_json_loads

    def dumps(name: str, value: Any) -> str:
        return json.dumps([name, value])

    def loads(name: str, text: Any) -> Any:
        return [name, json.loads(text)]

    database = Database(prepared(config))
    echo = "SELECT %s::jsonb"
    try:
        for name in "abcabc":
            set_json_dumps(partial(dumps, name))
            set_json_loads(partial(loads, name))
            hits = fast_path_hits()
            for _ in range(4):
                assert database.fetch_value(echo, [Jsonb(1)]) == [name, [name, 1]]
            assert fast_path_hits() > hits
    finally:
        set_json_dumps(json.dumps)
        set_json_loads(json.loads)
    database.close()


class AtOnce(Loader):
    """Looks at the session when it is made."""

    def __init__(self, oid: int, context: Any = None) -> None:
        super().__init__(oid, context)
        self._prefix = context.connection.info.parameter_status("application_name")

    def load(self, data: Any) -> str:
        return f"{self._prefix} {bytes(data).decode()}"


class AtFirst(Loader):
    """Looks at the session when it is first used."""

    _prefix = ""

    def load(self, data: Any) -> str:
        assert self.connection is not None
        self._prefix = self._prefix or self.connection.info.parameter_status("application_name") or ""
        return f"{self._prefix} {bytes(data).decode()}"


class AtFirstAsked(Loader):
    """Looks at the session when it is first asked for what it finds there."""

    @cached_property
    def _prefix(self) -> str:
        assert self.connection is not None
        return self.connection.info.parameter_status("application_name") or ""

    def load(self, data: Any) -> str:
        return f"{self._prefix} {bytes(data).decode()}"


class Derived(AtFirst):
    """Does so, too."""


@pytest.mark.parametrize("loader", [AtOnce, AtFirst, AtFirstAsked, Derived])
def test_an_adapter_that_keeps_what_it_finds_in_the_session(loader: type[Loader], config: dict[str, Any]) -> None:
    def configure(connection: Any) -> None:
        connection.adapters.register_loader("text", loader)

    settings = prepared(config)
    settings["pool_settings"]["configure"] = settings["async_pool_settings"]["configure"] = configure
    database = Database(settings)
    for name in "abcdef":
        with database.transaction():
            database.execute("SELECT set_config('application_name', %s, true)", [name])
            assert database.fetch_value("SELECT ARRAY['x']") == [f"{name} x"]
            assert database.fetch_value("SELECT 'x'::text") == f"{name} x"
    database.close()


def test_many_statements_in_rotation(config: dict[str, Any], fast_path_hits: Hits) -> None:
    settings = prepared(config)

    def configure(connection: Any) -> None:
        connection.prepared_max = 600

    settings["pool_settings"]["configure"] = settings["async_pool_settings"]["configure"] = configure
    database = Database(settings)
    statements: list[Any] = [f"SELECT {number}" for number in range(500)]
    for _ in range(3):
        for number, statement in enumerate(statements):
            assert database.fetch_value(statement) == number
    assert fast_path_hits() >= 1000
    database.close()


def test_what_is_remembered_is_bounded(config: dict[str, Any]) -> None:
    database = Database(prepared(config))
    statements: list[Any] = [f"/**/SELECT {number}" for number in range(1100)]
    for number, statement in enumerate(statements):
        assert database.fetch_value(statement) == number
    for zone in range(40):
        with database.transaction() as connection:
            connection.execute("SELECT set_config('TimeZone', %s, true)", [f"UTC{zone % 14 + 1}:{zone}"])
            for _ in range(2):
                database.fetch_value("SELECT now()")
    with database.connection() as connection:
        state = connection.__dict__["pooled"]()
    plans, fast = state.plans._plans, database._fast
    assert fast is not None
    assert len(plans) <= 400
    assert len(fast._without) <= 400
    assert len(database._returning) <= 1000
    assert max(len(plan.variants) for plan in plans.values()) <= 32
    database.close()


def run_sync(connection: psycopg.Connection[Any], query: Any) -> Any:
    row: Any = connection.execute(query).fetchone()
    return row[0]


def value_of(connection: psycopg.Connection[Any], query: Any) -> Any:
    cursor = connection.execute(query)
    row: Any = cursor.fetchone()
    return row[0]


def test_tables_and_types_that_change(config: dict[str, Any], observer: Observer, fast_path_hits: Hits) -> None:
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
        for _ in range(5):
            assert database.fetch_all(query) == observer.execute(query, prepare=False).fetchall()
    assert fast_path_hits() >= 8
    database.close()


def test_command_timeout_holds_on_the_fast_path(config: dict[str, Any], fast_path_hits: Hits) -> None:
    config["connection_settings"]["command_timeout"] = 0.4
    database = Database(prepared(config))
    for _ in range(3):
        database.fetch_value("SELECT pg_sleep(%s)", [0.01])
    taken = fast_path_hits()
    assert taken > 0
    with pytest.raises(CommandTimeoutError):
        database.fetch_value("SELECT pg_sleep(%s)", [30.0])
    assert database.fetch_value("SELECT 1") == 1
    database.close()


def test_a_slow_answer_is_complete(config: dict[str, Any], fast_path_hits: Hits) -> None:
    database = Database(prepared(config))
    query = "SELECT repeat('x', 1000) || pg_sleep(%s) FROM generate_series(1, 3000)"
    for pause in (0.0, 0.0, 0.0001, 0.0):
        rows = database.fetch_all(query, [pause])
        assert len(rows) == 3000
        assert {len(row[0]) for row in rows} == {1000}
    assert fast_path_hits() >= 2
    database.close()


def test_a_lost_connection_on_the_fast_path(config: dict[str, Any], observer: Observer, fast_path_hits: Hits) -> None:
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


def test_fetch_value_leaves_the_row_factory_to_the_other_methods(config: dict[str, Any], fast_path_hits: Hits) -> None:
    database = Database(prepared(config), row_factory=dict_row)
    for _ in range(3):
        assert database.fetch_value("SELECT 1 AS a") == 1
    assert database.fetch_one("SELECT 1 AS a") == {"a": 1}
    assert database.fetch_all("SELECT 1 AS a") == [{"a": 1}]
    assert fast_path_hits() >= 3
    database.close()


def test_plans_keep_no_parameters_and_no_results(config: dict[str, Any], fast_path_hits: Hits) -> None:
    database = Database(prepared(config))
    for _ in range(3):
        assert database.fetch_value("SELECT %s::text", ["x" * 100]) == "x" * 100
        assert database.fetch_one("SELECT %(a)s::text", {"a": "x" * 100}) == ("x" * 100,)
        assert database.fetch_all("SELECT repeat('x', 100)") == [("x" * 100,)]
    assert fast_path_hits() == 6
    with database.transaction() as connection:
        cursor = connection.execute("SELECT %s::int", [1])
        assert cursor.fetchone() == (1,)
        plans = connection.__dict__["pooled"]().plans
    assert len(plans._plans) > 4
    for plan in plans._plans.values():
        assert plan.transformer.pgresult is None
        assert plan.params is None
        assert plan._converter.params is None
    database.close()
