"""Prometheus: the same measures as OpenTelemetry's, by the names that its exporters give them.

They are those of one process, or, where PROMETHEUS_MULTIPROC_DIR is set, of all that share that folder.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import psycopg

from .events import Borrow, Connect, Ending, Execution, Listener, Return
from .otel import DURATION_BUCKETS, Statistics
from .statements import shown

# What the pool counts itself, and what that is called here.
_COUNTED = {
    "requests_errors": ("db_client_connection_timeouts", "Borrowers that got no connection."),
    "connections_num": ("pgmonkey_connections_created", "Connections that were made."),
    "connections_errors": ("pgmonkey_connections_failed", "Connections that could not be made."),
    "connections_lost": ("pgmonkey_connections_lost", "Idle connections that were found dead or too old."),
    "connections_leaked": ("pgmonkey_connections_leaked", "Connections lent longer than leak_detection_threshold."),
}
_SIZES = {
    "pool_max": ("db_client_connection_max", "The most connections that the pool may have."),
    "pool_min": ("db_client_connection_idle_min", "The connections that the pool keeps open."),
    "requests_waiting": ("db_client_connection_pending_requests", "Borrowers that wait for a connection."),
}


class Prometheus(Listener):
    """Keeps metrics in a registry of prometheus_client, its default one when None."""

    def __init__(self, statistics: Statistics, registry: Any = None) -> None:
        client = importlib.import_module("prometheus_client")
        self._statistics = statistics
        into = client.REGISTRY if registry is None else registry
        into.register(self)  # first: to be asked before the metrics are
        options: dict[str, Any] = {"registry": into}
        self._duration = client.Histogram(
            "db_client_operation_duration_seconds",
            "How long statements took.",
            ("pool", "operation", "error_type"),
            buckets=DURATION_BUCKETS,
            **options,
        )
        self._created = client.Histogram(
            "db_client_connection_create_time_seconds",
            "How long new connections took to make.",
            ("pool",),
            buckets=DURATION_BUCKETS,
            **options,
        )
        self._waited = client.Histogram(
            "db_client_connection_wait_time_seconds",
            "How long borrowers waited for a connection.",
            ("pool",),
            buckets=DURATION_BUCKETS,
            **options,
        )
        self._used = client.Histogram(
            "db_client_connection_use_time_seconds",
            "How long connections were lent.",
            ("pool",),
            buckets=DURATION_BUCKETS,
            **options,
        )
        self._ended = client.Counter(
            "pgmonkey_transactions", "Transactions that ended.", ("pool", "outcome", "error_type"), **options
        )
        # Of processes that have ended, nothing is connected any more.
        options["multiprocess_mode"] = "livesum"
        self._states = client.Gauge("db_client_connection_count", "Connections.", ("pool", "state"), **options)
        self._sizes = {key: client.Gauge(*what, ("pool",), **options) for key, what in _SIZES.items()}
        self._counted = {key: client.Counter(*what, ("pool",), registry=into) for key, what in _COUNTED.items()}
        self._seen: dict[tuple[str, str], int] = {}

    def executed(self, event: Execution) -> None:
        """Measure a statement."""
        operation = shown(event.query).operation
        self._duration.labels(event.loan.subject.name, operation, _kind(event.error)).observe(event.seconds)

    def connected(self, event: Connect) -> None:
        """Measure how long a connection took to make."""
        self._created.labels(event.loan.subject.name).observe(event.seconds)

    def borrowed(self, event: Borrow) -> None:
        """Measure the wait for a connection."""
        self._waited.labels(event.loan.subject.name).observe(event.waited)
        self._look()

    def ended(self, event: Ending) -> None:
        """Count the end of a transaction."""
        self._ended.labels(event.loan.subject.name, event.outcome, _kind(event.error)).inc()

    def returned(self, event: Return) -> None:
        """Measure how long a connection was lent."""
        self._used.labels(event.loan.subject.name).observe(event.seconds)
        self._look()

    def describe(self) -> Iterable[Any]:
        """Return nothing: what it has is in the metrics."""
        return ()

    def collect(self) -> Iterable[Any]:
        """Have the metrics tell how it is now, when Prometheus asks."""
        self._look()
        return ()

    def _look(self) -> None:
        for pool, stats in self._statistics():
            idle = stats["pool_available"]
            self._states.labels(pool, "idle").set(idle)
            self._states.labels(pool, "used").set(stats["pool_size"] - idle)
            for key, gauge in self._sizes.items():
                gauge.labels(pool).set(stats[key])
            for key, counter in self._counted.items():
                # A pool that was opened anew begins at zero again.
                before, now = self._seen.get((pool, key), 0), stats[key]
                counter.labels(pool).inc(now - before if now >= before else now)
                self._seen[pool, key] = now


def _kind(error: BaseException | None) -> str:
    """Return the server's code, or else the class, of *error*; nothing where there is none."""
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    return "" if error is None else state or type(error).__name__
