"""opentelemetry-instrumentation-psycopg."""

from __future__ import annotations

from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

_exporter = InMemorySpanExporter()


def install() -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(_exporter))
    trace.set_tracer_provider(provider)
    PsycopgInstrumentor().instrument()


def seen(work: Callable[[], object]) -> list[str]:
    _exporter.clear()
    work()
    return [span.name for span in _exporter.get_finished_spans() if span.kind is trace.SpanKind.CLIENT]


def parents() -> list[tuple[str, str | None]]:
    """Return the spans of the statements that were seen, each with that of what it is part of."""
    spans = _exporter.get_finished_spans()
    names = {span.context.span_id: span.name for span in spans if span.context is not None}
    return [
        (span.name, None if span.parent is None else names.get(span.parent.span_id))
        for span in spans
        if span.kind is trace.SpanKind.CLIENT
    ]
