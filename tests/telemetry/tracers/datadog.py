"""ddtrace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ddtrace import patch
from ddtrace.trace import TraceFilter, tracer

_found: list[Any] = []


class Keep(TraceFilter):
    """Keeps the spans, and sends none."""

    def process_trace(self, trace: list[Any]) -> None:
        _found.extend(trace)


def install() -> None:
    tracer.configure(trace_processors=[Keep()])
    patch(psycopg=True)


def seen(work: Callable[[], object]) -> list[str]:
    _found.clear()
    work()
    return [span.resource for span in _found if span.name == "postgres.query"]
