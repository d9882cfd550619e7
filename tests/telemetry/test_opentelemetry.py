"""Spans and metrics of our own, as OpenTelemetry's SDK gets them, and their names in the semantic conventions."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import db_attributes as incubating
from opentelemetry.semconv._incubating.metrics import db_metrics
from opentelemetry.semconv.attributes import db_attributes, error_attributes, server_attributes
from opentelemetry.trace import SpanKind, StatusCode

from pgmonkey import AsyncDatabase, Database

from ..configs import pools, prepared

_exporter = InMemorySpanExporter()
_reader = InMemoryMetricReader()


@pytest.fixture(scope="module", autouse=True)
def _providers() -> None:
    """The SDK's providers, which can be set once in a process."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(_exporter))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([_reader]))


@pytest.fixture
def spans() -> Iterator[Callable[[], list[Any]]]:
    """A function that returns the spans that have ended since its last call."""
    _exporter.clear()

    def take() -> list[Any]:
        found = list(_exporter.get_finished_spans())
        _exporter.clear()
        return found

    yield take
    _exporter.clear()


def points(name: str) -> list[Any]:
    """Return the data points of the metric *name*."""
    data = _reader.get_metrics_data()
    if data is None:
        return []
    found = [
        metric
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
    ]
    return [point for metric in found for point in metric.data.data_points]


def test_a_statement_is_a_span_with_the_stable_attributes(
    config: dict[str, Any], spans: Callable[[], list[Any]]
) -> None:
    database = Database(prepared(config))
    connect = config["connection_settings"]
    database.execute("CREATE TABLE t (a int PRIMARY KEY)")
    spans()
    before = time.time_ns()
    for _ in range(3):
        with trace.get_tracer("test").start_as_current_span("request") as request:
            database.fetch_all("SELECT a FROM t WHERE a = 1 OR a = %s", (2,))
        statement, _ = spans()
        assert (statement.name, statement.kind) == ("SELECT t", SpanKind.CLIENT)
        assert statement.parent.span_id == request.get_span_context().span_id
        assert before <= statement.start_time <= statement.end_time <= time.time_ns()
        assert dict(statement.attributes) == {
            "db.system.name": "postgresql",
            "db.namespace": connect["dbname"],
            "db.operation.name": "SELECT",
            "db.query.summary": "SELECT t",
            "db.query.text": "SELECT a FROM t WHERE a = ? OR a = %s",
            "db.response.returned_rows": 0,
            "server.address": connect["host"],
            "server.port": int(connect["port"]),
        }
        assert statement.instrumentation_scope.name == "pgmonkey"
    database.close()


def test_an_error_is_told_by_its_code(config: dict[str, Any], spans: Callable[[], list[Any]]) -> None:
    database = Database(prepared(config))
    for _ in range(3):
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            database.fetch_one("SELECT %s::text::int", ("hunter2",))
        (statement,) = spans()
        assert statement.status.status_code is StatusCode.ERROR
        assert statement.attributes["error.type"] == statement.attributes["db.response.status_code"] == "22P02"
        assert "hunter2" not in statement.to_json()
    database.close()


def test_a_transaction_is_a_span_around_its_statements(config: dict[str, Any], spans: Callable[[], list[Any]]) -> None:
    database = Database(prepared(config))
    for _ in range(2):
        with database.transaction() as connection:
            database.fetch_one("SELECT 1")
            connection.execute("SELECT 2")
            database.execute_many("SELECT %s", [(1,), (2,)])
        *statements, transaction = spans()
        assert [statement.name for statement in statements] == ["SELECT"] * 3
        assert {statement.parent.span_id for statement in statements} == {transaction.context.span_id}
        assert statements[2].attributes["db.operation.name"] == "BATCH SELECT"
        assert statements[2].attributes["db.operation.batch.size"] == 2
        assert transaction.attributes["pgmonkey.transaction.outcome"] == "commit"
        assert transaction.attributes["pgmonkey.transaction.statements"] == 3
        assert transaction.start_time <= statements[0].start_time
        assert transaction.end_time >= statements[2].end_time
        with pytest.raises(ZeroDivisionError), database.transaction():
            database.fetch_one("SELECT 1")
            raise ZeroDivisionError
        *_, transaction = spans()
        assert transaction.attributes["pgmonkey.transaction.outcome"] == "rollback"
        assert transaction.attributes["pgmonkey.transaction.reason"] == "ZeroDivisionError"
    database.close()


async def test_a_long_wait_for_a_connection_is_a_span(config: dict[str, Any], spans: Callable[[], list[Any]]) -> None:
    database = AsyncDatabase(pools(config, max_size=1))
    await database.connect()
    await asyncio.gather(*(database.fetch_one("SELECT pg_sleep(0.1)") for _ in range(2)))
    names = sorted(span.name for span in spans())
    assert names == ["SELECT", "SELECT", "wait for a connection"]
    await database.close()


def test_the_metrics(config: dict[str, Any]) -> None:
    database = Database(pools(config, name="measured", min_size=1, max_size=3))
    mine = {"db.client.connection.pool.name": "pool 'measured'"}
    for _ in range(10):
        database.fetch_one("SELECT 1 AS measured")
    with database.connection():
        states = points("db.client.connection.count")
        found = {
            point.attributes["db.client.connection.state"]: point.value
            for point in states
            if mine.items() <= dict(point.attributes).items()
        }
        assert found == {"idle": 0, "used": 1}
    durations = [
        point
        for point in points("db.client.operation.duration")
        if point.attributes["db.namespace"] == config["connection_settings"]["dbname"]
    ]
    assert [point.count for point in durations] == [10]
    assert durations[0].explicit_bounds == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
    for name, value in (("max", 3), ("idle.min", 1), ("pending_requests", 0), ("timeouts", 0)):
        assert [point.value for point in points(f"db.client.connection.{name}") if mine == dict(point.attributes)] == [
            value
        ], name
    (created,) = [point for point in points("db.client.connection.create_time") if mine == dict(point.attributes)]
    assert created.count == 1
    for name in ("wait_time", "use_time"):
        (point,) = [point for point in points(f"db.client.connection.{name}") if mine == dict(point.attributes)]
        assert point.count == 11
    database.close()


def test_every_name_is_one_of_the_semantic_conventions(config: dict[str, Any], spans: Callable[[], list[Any]]) -> None:
    database = Database(prepared(config))
    with pytest.raises(psycopg.Error), database.transaction():
        database.fetch_one("SELECT 1 / 0")
    known = {
        value
        for module in (db_attributes, incubating, error_attributes, server_attributes)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str)
    }
    for span in spans():
        assert {name for name in span.attributes if not name.startswith("pgmonkey.")} <= known
    # As the released package declares them: its functions make the instruments.
    declared: dict[str, tuple[str, str]] = {}

    class Meter:
        def __getattr__(self, kind: str) -> Callable[..., None]:
            def make(name: str, callbacks: object = None, *, unit: str = "", **_: object) -> None:
                declared[name] = kind.replace("observable_", ""), unit

            return make

    for name, function in vars(db_metrics).items():
        if name.startswith("create_db_client"):
            arguments: tuple[Any, ...] = (Meter(), ()) if "callbacks" in function.__annotations__ else (Meter(),)
            function(*arguments)
    data = _reader.get_metrics_data()
    assert data is not None
    found = {
        metric.name: (kind_of(metric), metric.unit)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if scope.scope.name == "pgmonkey"
    }
    standard = {name: what for name, what in found.items() if name.startswith("db.")}
    assert len(standard) >= 10
    assert standard == {name: declared[name] for name in standard}
    assert all(re.fullmatch(r"pgmonkey\.[a-z.]+", name) for name in found.keys() - standard.keys())
    database.close()


def kind_of(metric: Any) -> str:
    if not hasattr(metric.data, "is_monotonic"):
        return "create_histogram"
    return "create_counter" if metric.data.is_monotonic else "create_up_down_counter"


def test_the_file_can_say_no(config: dict[str, Any], spans: Callable[[], list[Any]]) -> None:
    settings = prepared(config)
    settings["connection_settings"]["telemetry"] = False
    settings["pool_settings"]["name"] = "silent"
    database = Database(settings)
    for _ in range(3):
        database.fetch_one("SELECT 1")
    assert not spans()
    assert all("silent" not in str(dict(point.attributes)) for point in points("db.client.connection.count"))
    database.close()
