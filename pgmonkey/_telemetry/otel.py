"""OpenTelemetry: spans and metrics by the names of its semantic conventions.

Of OpenTelemetry only the API is used, and only where the program has loaded it: without a provider nobody listens.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any

import psycopg

from .events import Borrow, Connect, Ending, Execution, Listener, Loan, Return
from .statements import Shown, shown

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation

SCOPE = "pgmonkey"
"""The name of the instrumentation scope."""
# Of the semantic conventions: the attributes' names are those of version 1.33, where they became stable, and later.
_SCHEMA = "https://opentelemetry.io/schemas/1.33.0"
DURATION_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""The boundaries that the conventions ask for, in seconds."""
# A span shows a wait for a connection that is longer, in seconds.
_LONG_WAIT = 0.01

Statistics = Callable[[], Iterable[tuple[str, dict[str, int]]]]
"""Returns the names of the pools and their counters."""


class OpenTelemetry(Listener):
    """Tells the providers that are set; *spans* tells whether also of statements, where no other tracer does."""

    def __init__(self, statistics: Statistics) -> None:
        from opentelemetry import metrics, trace

        self._trace = trace
        self._tracer = trace.get_tracer(SCOPE, _version(), schema_url=_SCHEMA)
        meter = metrics.get_meter(SCOPE, _version(), schema_url=_SCHEMA)
        self._duration = meter.create_histogram(
            "db.client.operation.duration",
            unit="s",
            description="Duration of database client operations.",
            explicit_bucket_boundaries_advisory=DURATION_BUCKETS,
        )
        self._created = meter.create_histogram(
            "db.client.connection.create_time",
            unit="s",
            description="The time it took to create a new connection.",
        )
        self._waited = meter.create_histogram(
            "db.client.connection.wait_time",
            unit="s",
            description="The time it took to obtain an open connection from the pool.",
        )
        self._used = meter.create_histogram(
            "db.client.connection.use_time",
            unit="s",
            description="The time between borrowing a connection and returning it to the pool.",
        )
        self._ended = meter.create_counter(
            "pgmonkey.transactions", unit="{transaction}", description="Transactions that ended, by how and why."
        )
        for name, make, unit, description, read in _OBSERVED:
            getattr(meter, make)(name, [_observing(statistics, read)], unit=unit, description=description)
        self.without_spans = _MetricsOnly(self)

    def executed(self, event: Execution) -> None:
        """Make a span of a statement, inside that of its transaction, and count it."""
        read = shown(event.query)
        attributes = self._attributes(event, read)
        self.count(event, attributes)
        trace = self._trace
        start, end = _nanoseconds(event.started, event.seconds)
        context = None
        if event.notes is not None:
            transaction: Any = event.notes.get(SCOPE)
            if transaction is None:
                transaction = self._tracer.start_span(
                    "transaction", start_time=start, attributes=self._of_server(event.loan)
                )
                event.notes[SCOPE] = transaction
            context = trace.set_span_in_context(transaction)
        if event.rows >= 0:
            attributes["db.response.returned_rows"] = event.rows
        if event.batch is not None and event.batch > 1:
            attributes["db.operation.batch.size"] = event.batch
        attributes["db.query.text"] = read.text
        span = self._tracer.start_span(
            read.summary or event.loan.server.database,
            context,
            trace.SpanKind.CLIENT,
            attributes,
            start_time=start,
        )
        if event.error is not None:
            span.set_status(trace.Status(trace.StatusCode.ERROR))
        span.end(end)

    def ended(self, event: Ending) -> None:
        """End the span of a transaction."""
        self.count_end(event)
        span: Any = event.notes.pop(SCOPE, None)
        if span is not None:
            span.set_attribute("pgmonkey.transaction.outcome", event.outcome)
            span.set_attribute("pgmonkey.transaction.statements", event.statements)
            if event.reason is not None:
                span.set_attribute("pgmonkey.transaction.reason", event.reason)
            span.end()

    def connected(self, event: Connect) -> None:
        """Measure how long a connection took to make."""
        self._created.record(event.seconds, {"db.client.connection.pool.name": event.loan.subject.name})

    def borrowed(self, event: Borrow) -> None:
        """Measure the wait for a connection, and make a span of it where it was long."""
        loan = event.loan
        self.count_wait(event)
        if event.waited >= _LONG_WAIT:
            start, end = _nanoseconds(loan.began - event.waited, event.waited)
            attributes = {**self._of_server(loan), "db.client.connection.pool.name": loan.subject.name}
            span = self._tracer.start_span("wait for a connection", attributes=attributes, start_time=start)
            span.end(end)

    def returned(self, event: Return) -> None:
        """Measure how long a connection was lent."""
        self._used.record(event.seconds, {"db.client.connection.pool.name": event.loan.subject.name})

    def count(self, event: Execution, attributes: dict[str, Any]) -> None:
        """Measure the duration of a statement."""
        self._duration.record(event.seconds, dict(attributes))

    def count_end(self, event: Ending) -> None:
        """Count the end of a transaction."""
        attributes = {"db.client.connection.pool.name": event.loan.subject.name, "outcome": event.outcome}
        if event.error is not None:
            attributes["error.type"] = _kind(event.error)
        self._ended.add(1, attributes)

    def count_wait(self, event: Borrow) -> None:
        """Measure the wait for a connection."""
        self._waited.record(event.waited, {"db.client.connection.pool.name": event.loan.subject.name})

    def _attributes(self, event: Execution, read: Shown) -> dict[str, Any]:
        """Return the attributes that a statement's span and its duration have in common: few different values each."""
        attributes = self._of_server(event.loan)
        if read.operation:
            batch = event.batch is not None and event.batch != 1
            attributes["db.operation.name"] = f"BATCH {read.operation}" if batch else read.operation
        if read.summary:
            attributes["db.query.summary"] = read.summary
        if event.error is not None:
            attributes["error.type"] = _kind(event.error)
            if isinstance(event.error, psycopg.Error) and event.error.sqlstate:
                attributes["db.response.status_code"] = event.error.sqlstate
        return attributes

    @staticmethod
    def _of_server(loan: Loan) -> dict[str, Any]:
        address, port, database = loan.server
        attributes: dict[str, Any] = {
            "db.system.name": "postgresql",
            "db.namespace": database,
            "server.address": address,
        }
        if port is not None:
            attributes["server.port"] = port
        return attributes


class _MetricsOnly(Listener):
    """Tells of no spans: another tracer makes them."""

    def __init__(self, whole: OpenTelemetry) -> None:
        self._whole = whole
        self.returned = whole.returned  # type: ignore[method-assign]  # as it is
        self.connected = whole.connected  # type: ignore[method-assign]
        self.borrowed = whole.count_wait  # type: ignore[method-assign]
        self.ended = whole.count_end  # type: ignore[method-assign]

    def executed(self, event: Execution) -> None:
        """Measure the duration of a statement."""
        self._whole.count(event, self._whole._attributes(event, shown(event.query)))


_POOL = "db.client.connection.pool.name"
_STATE = "db.client.connection.state"
_GAUGE, _SUM = "create_observable_up_down_counter", "create_observable_counter"


def _states(stats: dict[str, int]) -> Iterator[tuple[int, dict[str, str]]]:
    yield stats["pool_available"], {_STATE: "idle"}
    yield stats["pool_size"] - stats["pool_available"], {_STATE: "used"}


def _of(name: str) -> Callable[[dict[str, int]], Iterable[tuple[int, dict[str, str]]]]:
    return lambda stats: [(stats[name], {})]


_OBSERVED: tuple[tuple[str, str, str, str, Callable[[dict[str, int]], Iterable[tuple[int, dict[str, str]]]]], ...] = (
    (
        "db.client.connection.count",
        _GAUGE,
        "{connection}",
        "The number of connections that are currently in the state described by the state attribute.",
        _states,
    ),
    (
        "db.client.connection.idle.min",
        _GAUGE,
        "{connection}",
        "The minimum number of idle open connections allowed.",
        _of("pool_min"),
    ),
    (
        "db.client.connection.max",
        _GAUGE,
        "{connection}",
        "The maximum number of open connections allowed.",
        _of("pool_max"),
    ),
    (
        "db.client.connection.idle.max",
        _GAUGE,
        "{connection}",
        "The maximum number of idle open connections allowed.",
        _of("pool_max"),
    ),
    (
        "db.client.connection.pending_requests",
        _GAUGE,
        "{request}",
        "The number of current pending requests for an open connection.",
        _of("requests_waiting"),
    ),
    (
        "db.client.connection.timeouts",
        _SUM,
        "{timeout}",
        "The number of connection timeouts that have occurred trying to obtain a connection from the pool.",
        _of("requests_errors"),
    ),
    (
        "pgmonkey.connections.created",
        _SUM,
        "{connection}",
        "Connections that were made.",
        _of("connections_num"),
    ),
    (
        "pgmonkey.connections.lost",
        _SUM,
        "{connection}",
        "Idle connections that were found dead or too old.",
        _of("connections_lost"),
    ),
    (
        "pgmonkey.connections.leaked",
        _SUM,
        "{connection}",
        "Connections that were lent for longer than leak_detection_threshold.",
        _of("connections_leaked"),
    ),
)


def _observing(
    statistics: Statistics, read: Callable[[dict[str, int]], Iterable[tuple[int, dict[str, str]]]]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        from opentelemetry.metrics import Observation

        for name, stats in statistics():
            for value, attributes in read(stats):
                yield Observation(value, {_POOL: name, **attributes})

    return observe


def _nanoseconds(started: float, seconds: float) -> tuple[int, int]:
    """Return the beginning and the end, as `time.time_ns`, of what was measured by `time.perf_counter`."""
    start = time_ns() - int((perf_counter() - started) * 1e9)
    return start, start + int(seconds * 1e9)


def _kind(error: BaseException) -> str:
    """Return what the conventions ask for as the type of *error*: the server's code, or else the class."""
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    return state or f"{type(error).__module__}.{type(error).__qualname__}"


def _version() -> str:
    return importlib.metadata.version("pgmonkey")


_API = ("opentelemetry.trace", "opentelemetry.metrics", "opentelemetry._")


def providers_set() -> tuple[bool, bool]:
    """Tell whether the program has set providers of traces, and of metrics, which are none of the API's own."""
    modules = sys.modules
    trace, metrics = modules.get("opentelemetry.trace"), modules.get("opentelemetry.metrics")
    try:
        providers = [trace and trace.get_tracer_provider(), metrics and metrics.get_meter_provider()]
    except Exception:  # of one that the environment names, and that cannot be loaded
        return False, False
    traces, measures = (
        provider is not None and not type(provider).__module__.startswith(_API) for provider in providers
    )
    return traces, measures
