"""What the hot paths cost, counted rather than timed: the functions that are called, in Python and in C.

A limit is what was counted when it was set, and a tenth more.  Whoever makes a path dearer sees it here, on whatever
machine; whoever makes it cheaper lowers the limit.  For the time that it takes there is ``nox -s benchmarks``.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from contextvars import Context
from functools import partial
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import anyio.to_thread
import psycopg
import pytest
from fastapi import FastAPI
from flask import Flask
from psycopg import sql
from psycopg.adapt import Dumper, Loader
from werkzeug.test import create_environ, run_wsgi_app

import fastapi_pgmonkey
import flask_pgmonkey
from pgmonkey import AsyncDatabase, Database, PGConnectionManager

from .configs import prepared, proxied
from .conftest import ROOT
from .django.projects import ok, run
from .faults.proxy import FaultProxy

pytestmark = pytest.mark.skipif(
    psycopg.pq.__impl__ == "python", reason="the limits are for psycopg in C: in Python it calls more"
)


def calls(function: Callable[[], Any]) -> int:
    """Return how many functions *function* calls, the least of a few times, in a context in which nothing was done."""
    return min(Context().run(_count, function) for _ in range(5))


def _count(function: Callable[[], Any]) -> int:
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


# In threads and in tasks.
LIMITS = {
    "fetch_one": (31, 84),
    "fetch_one with parameters": (33, 86),
    "unit of work that reads once": (84, 195),
    "transaction with one statement": (132, 247),
    "transaction with a query method": (112, 243),
    "connection for one statement": (138, 258),
}
# How statements are written, and with which parameters; the first one is what the others are compared with.
SPELLINGS: dict[str, tuple[Any, Any]] = {
    "plain": ("SELECT a FROM t WHERE a = %s", (1,)),
    "comment before": ("-- a\nSELECT a FROM t WHERE a = %s", (1,)),
    "comment behind": ("SELECT a FROM t WHERE a = %s /* a */", (1,)),
    "semicolon": ("SELECT a FROM t WHERE a = %s;", (1,)),
    "date()": ("SELECT date(b) FROM t WHERE a = %s", (1,)),
    "names of columns": ("SELECT x FROM (SELECT %s::int) AS t(x)", (1,)),
    "names of columns in WITH": ("WITH t(x) AS (SELECT %s::int) SELECT x FROM t", (1,)),
    "a column named age": ("SELECT age FROM t WHERE a = %s", (1,)),
    "for in a string": ("SELECT 'for update' FROM t WHERE a = %s", (1,)),
    "for update": ("SELECT a FROM t WHERE a = %s FOR UPDATE", (1,)),
    "bytes": (b"SELECT a FROM t WHERE a = %s", (1,)),
    "sql.SQL": (sql.SQL("SELECT a FROM t WHERE a = %s"), (1,)),
    "20,000 characters": (f"SELECT a FROM t WHERE a = %s /* {'a' * 20_000} */", (1,)),
    "no parameters": ("SELECT a FROM t WHERE a = 1", None),
    # What psycopg itself does for a name and a statement of several parts comes on top.
    "named parameters": ("SELECT a FROM t WHERE a = %(a)s", {"a": 1}),
    "composed": (sql.SQL("SELECT a FROM {} WHERE a = %s").format(sql.Identifier("t")), (1,)),
    # After which the session is cleaned, in one message with the COMMIT.
    "own function": ("SELECT own(a) FROM t WHERE a = %s", (1,)),
}
TABLE = """
    CREATE TABLE t (a int PRIMARY KEY, b timestamptz DEFAULT now(), age int);
    INSERT INTO t VALUES (1);
    CREATE FUNCTION own(int) RETURNS int LANGUAGE sql AS 'SELECT $1';
"""


@pytest.mark.parametrize("name", LIMITS)
def test_calls_in_threads(name: str, config: dict[str, Any]) -> None:
    database = Database(prepared(config))

    def unit() -> None:
        with database.unit_of_work():
            database.fetch_one("SELECT 1")

    def transaction() -> None:
        with database.transaction() as connection:
            connection.execute("SELECT 1").fetchone()

    def transaction_with_method() -> None:
        with database.transaction():
            database.fetch_one("SELECT 1")

    def connection() -> None:
        with database.connection() as connection:
            connection.execute("SELECT 1").fetchone()

    paths: dict[str, Callable[[], Any]] = {
        "fetch_one": lambda: database.fetch_one("SELECT 1"),
        "fetch_one with parameters": lambda: database.fetch_one("SELECT %s::int", (1,)),
        "unit of work that reads once": unit,
        "transaction with one statement": transaction,
        "transaction with a query method": transaction_with_method,
        "connection for one statement": connection,
    }
    for _ in range(3):
        paths[name]()
    found = calls(paths[name])
    database.close()
    assert found <= LIMITS[name][0]


@pytest.mark.parametrize("name", LIMITS)
def test_calls_in_tasks(name: str, config: dict[str, Any]) -> None:
    database = AsyncDatabase(prepared(config))

    async def unit() -> None:
        async with database.unit_of_work():
            await database.fetch_one("SELECT 1")

    async def transaction() -> None:
        async with database.transaction() as connection:
            cursor = await connection.execute("SELECT 1")
            await cursor.fetchone()

    async def transaction_with_method() -> None:
        async with database.transaction():
            await database.fetch_one("SELECT 1")

    async def connection() -> None:
        async with database.connection() as connection:
            cursor = await connection.execute("SELECT 1")
            await cursor.fetchone()

    paths: dict[str, Callable[[], Any]] = {
        "fetch_one": lambda: database.fetch_one("SELECT 1"),
        "fetch_one with parameters": lambda: database.fetch_one("SELECT %s::int", (1,)),
        "unit of work that reads once": unit,
        "transaction with one statement": transaction,
        "transaction with a query method": transaction_with_method,
        "connection for one statement": connection,
    }
    loop = asyncio.new_event_loop()

    async def often() -> None:
        for _ in range(20):  # beside which the loop's own beginning and end are little
            await paths[name]()

    for _ in range(2):
        loop.run_until_complete(often())
    found = calls(lambda: loop.run_until_complete(often())) / 20
    loop.run_until_complete(database.close())
    loop.close()
    # Before Python 3.13 asyncio itself calls more: before 3.12 its current_task() is Python, which calls twice.
    assert found <= LIMITS[name][1] + 20 * (sys.version_info < (3, 13))


def test_what_nobody_listens_to_costs_no_call(config: dict[str, Any]) -> None:
    """But for a look at who listens, once a second: so the least of several is counted."""
    database = Database(prepared(config))

    def requests() -> None:
        database.fetch_one("SELECT 1")
        with database.transaction() as connection:
            database.fetch_one("SELECT 1")
            connection.execute("SELECT 1").fetchone()

    def called() -> set[str]:
        found: set[str] = set()

        def profile(frame: FrameType, event: str, argument: object) -> None:
            if event == "call":
                found.add(frame.f_code.co_filename)

        sys.setprofile(profile)
        try:
            requests()
        finally:
            sys.setprofile(None)
        return {Path(file).parent.name for file in found} & {"_telemetry", "logging"}

    for _ in range(3):
        requests()
    silent = min((called() for _ in range(20)), key=len)
    logger = logging.getLogger("pgmonkey.sql")
    logger.setLevel(logging.DEBUG)
    try:
        told = called()
    finally:
        logger.setLevel(logging.NOTSET)
    database.close()
    assert (silent, told) == (set(), {"_telemetry", "logging"})


def test_calls_and_round_trips_by_spelling(config: dict[str, Any], observer: psycopg.Connection[Any]) -> None:
    observer.execute(TABLE)
    connect = config["connection_settings"]
    with FaultProxy(connect["host"], int(connect["port"])) as proxy:
        database = Database(proxied(config, proxy))

        def method(query: Any, params: Any) -> None:
            database.fetch_one(query, params)

        def unit(query: Any, params: Any) -> None:
            with database.unit_of_work():
                database.fetch_one(query, params)

        def transaction(query: Any, params: Any) -> None:
            with database.transaction() as connection:
                connection.execute(query, params).fetchone()

        paths: dict[Any, int] = {method: 1, unit: 2, transaction: 2}
        found = {}
        for path, trips in paths.items():
            for spelling, arguments in SPELLINGS.items():
                for _ in range(3):
                    path(*arguments)
                before = proxy.round_trips
                path(*arguments)
                assert proxy.round_trips - before == trips, (path.__name__, spelling)
                found[path.__name__, spelling] = calls(partial(path, *arguments))
        database.close()
    extra = {"named parameters": 6, "composed": 26, "own function": 24}
    dearer = {
        (path, spelling): count
        for (path, spelling), count in found.items()
        if count > found[path, "plain"] * 1.1 + extra.get(spelling, 0)
    }
    assert not dearer


def test_the_first_statement_of_a_request_takes_one_round_trip_before_it_is_prepared(config: dict[str, Any]) -> None:
    settings = config["connection_settings"]
    with FaultProxy(settings["host"], int(settings["port"])) as proxy:
        through = proxied(config, proxy)
        through["connection_settings"]["prepare_threshold"] = 3
        database = Database(through)
        database.connect()
        found = []
        for _ in range(6):
            before = proxy.round_trips
            with database.unit_of_work():
                database.fetch_one("SELECT %s::int", (1,))
            found.append(proxy.round_trips - before)
        database.close()
    assert found == [2] * 6


def test_calls_and_round_trips_with_session_values(config: dict[str, Any]) -> None:
    settings = config["connection_settings"]
    with FaultProxy(settings["host"], int(settings["port"])) as proxy:
        database = Database(proxied(config, proxy), session_values=lambda: {"app.tenant": 42})

        def method() -> None:
            database.fetch_one("SELECT 1")

        def unit() -> None:
            with database.unit_of_work():
                database.fetch_one("SELECT 1")

        def transaction() -> None:
            with database.transaction() as connection:
                connection.execute("SELECT 1").fetchone()

        found = {}
        for path in (method, unit, transaction):
            for _ in range(3):
                path()
            before = proxy.round_trips
            path()
            found[path.__name__] = proxy.round_trips - before, calls(path)
        database.close()
    assert {name: trips for name, (trips, _) in found.items()} == {"method": 2, "unit": 2, "transaction": 2}
    assert found["method"][1] <= 120
    assert found["unit"][1] <= 115
    assert found["transaction"][1] <= 172


def raised(connection: Any) -> None:
    connection.prepared_max = 1000


@pytest.mark.parametrize(("number", "configure"), [(50, None), (51, None), (100, None), (200, raised), (500, raised)])
def test_calls_in_a_rotation_of_many_statements(number: int, configure: Any, config: dict[str, Any]) -> None:
    settings = prepared(config)
    settings["pool_settings"]["configure"] = configure
    database = Database(settings)
    statements: list[Any] = [f"SELECT {number}" for number in range(number)]

    def rotation() -> None:
        for statement in statements:
            database.fetch_one(statement)

    for _ in range(3):
        rotation()
    found = calls(rotation) / len(statements)
    database.close()
    assert found <= 40


def test_calls_where_some_statements_are_frequent(config: dict[str, Any]) -> None:
    """The frequency of the nth of 300 statements is proportional to 1/n (Zipf's law)."""
    settings = prepared(config)
    settings["pool_settings"]["configure"] = raised
    database = Database(settings)
    statements: list[Any] = [f"SELECT {number}" for number in range(300)]
    frequencies = [1 / number for number in range(1, 301)]
    drawn = Random(1).choices(statements, frequencies, k=1000)
    for statement in (*statements, *statements, *drawn):
        database.fetch_one(statement)

    def draw() -> None:
        for statement in drawn:
            database.fetch_one(statement)

    found = _count(draw) / len(drawn)
    database.close()
    assert found <= 40


class Point:
    pass


class PointDumper(Dumper):
    def dump(self, obj: Any) -> bytes:
        return b"(1,2)"


class PointLoader(Loader):
    def load(self, data: Any) -> Point:
        return Point()


def test_calls_with_a_registered_type(config: dict[str, Any]) -> None:
    def configure(connection: Any) -> None:
        connection.adapters.register_dumper(Point, PointDumper)
        connection.adapters.register_loader("point", PointLoader)

    found = []
    for function in (None, configure):
        settings = prepared(config)
        settings["pool_settings"]["configure"] = function
        database = Database(settings)
        for _ in range(3):
            database.fetch_one("SELECT '(1,2)'::point")
        found.append(calls(lambda: database.fetch_one("SELECT '(1,2)'::point")))  # noqa: B023
        database.close()
    assert found[1] <= found[0] * 1.1


def test_calls_for_a_cached_connection(config_file: Any) -> None:
    manager = PGConnectionManager()
    manager.get_database_connection(config_file, "pool")
    found = calls(lambda: manager.get_database_connection(config_file, "pool"))
    manager.clear_cache()
    assert found <= 18


# -- a request that does not use the database: calls beyond those of the same application without an extension ---------


def test_calls_of_an_idle_request_of_fastapi(config: dict[str, Any]) -> None:
    async def idle() -> dict[str, int]:
        return {"a": 1}

    database = fastapi_pgmonkey.PGMonkey(config)
    found = []
    for lifespan in (None, database.lifespan):
        app = FastAPI(lifespan=lifespan)
        app.add_api_route("/", idle)
        found.append(asyncio.run(_requests_of_asgi(app)))
    assert found[1] - found[0] <= 33


async def _request_asgi(app: FastAPI) -> None:
    messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if not messages:
            await asyncio.Event().wait()  # the client stays
        return messages.pop()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    await app(scope, receive, send)


async def _requests_of_asgi(app: FastAPI) -> float:
    async def often() -> None:
        for _ in range(20):
            await _request_asgi(app)

    async with app.router.lifespan_context(app):
        await often()
        counts = []
        for _ in range(3):
            count = 0

            def profile(frame: FrameType, event: str, argument: object) -> None:
                nonlocal count
                count += event in ("call", "c_call")

            sys.setprofile(profile)
            await often()
            sys.setprofile(None)
            counts.append(count)
    return min(counts) / 20


def test_a_plain_endpoint_of_fastapi_takes_one_thread_more_for_its_commit(config: dict[str, Any]) -> None:
    database = fastapi_pgmonkey.PGMonkey(config)

    def idle() -> dict[str, int]:
        return {"a": 1}

    def read(connection: fastapi_pgmonkey.RequestSyncConnection) -> dict[str, int]:
        connection.execute("SELECT 1").fetchone()
        return {"a": 1}

    found = []
    for endpoint in (idle, read):
        app = FastAPI(lifespan=database.lifespan)
        app.add_api_route("/", endpoint)
        found.append(asyncio.run(_threads_of_asgi(app)))
    assert found[1] == found[0] + 1


async def _threads_of_asgi(app: FastAPI) -> int:
    # Kept, so that no other frame gets the address of one that has ended: each coroutine is a frame.
    found: set[FrameType] = set()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code is anyio.to_thread.run_sync.__code__:
            found.add(frame)

    async with app.router.lifespan_context(app):
        await _request_asgi(app)  # which opens the pool
        sys.setprofile(profile)
        await _request_asgi(app)
        sys.setprofile(None)
    return len(found)


def test_calls_of_an_idle_request_of_flask(config: dict[str, Any]) -> None:
    found = []
    for extended in (False, True):
        app = Flask(__name__)
        app.add_url_rule("/", view_func=lambda: {"a": 1})
        if extended:
            app.config["PGMONKEY_CONFIG"] = config
            flask_pgmonkey.PGMonkey(app)

        def request() -> None:
            environ = create_environ("/")
            _, status, _ = run_wsgi_app(app, environ, buffered=True)  # noqa: B023
            assert status == "200 OK"

        for _ in range(3):
            request()
        found.append(calls(request))
    assert found[1] - found[0] <= 60


IDLE_DJANGO = """
import sys
import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import JsonResponse
from django.urls import path
from werkzeug.test import create_environ, run_wsgi_app
sys.path.append({root!r})
from tests.test_cost import calls
settings.ALLOWED_HOSTS, settings.ROOT_URLCONF, settings.DEBUG = ["*"], __name__, False
urlpatterns = [path("", lambda request: JsonResponse({{"a": 1}}))]
def count(*middleware):
    settings.MIDDLEWARE = list(middleware)
    handler = WSGIHandler()
    def request():
        _, status, _ = run_wsgi_app(handler, create_environ("/"), buffered=True)
        assert status == "200 OK", status
    for _ in range(3):
        request()
    return calls(request)
print(count("django_pgmonkey.middleware.TransactionMiddleware") - count())
"""


def test_calls_of_an_idle_request_of_django(project: Path) -> None:
    assert int(ok(run(project, code=IDLE_DJANGO.format(root=str(ROOT))))) <= 95


def test_calls_for_a_borrow_of_django(project: Path) -> None:
    code = f"""
import sys
from django.db import connections
sys.path.append({str(ROOT)!r})
from tests.test_cost import calls
connection = connections["default"]
def borrow():
    connection.ensure_connection()
    connection.close()
for _ in range(3):
    borrow()
print(calls(borrow))
"""
    assert int(ok(run(project, code=code))) <= 105
