"""opentelemetry-instrumentation-django beside that for psycopg: it makes the spans of requests, not of statements."""

from __future__ import annotations

from collections.abc import Callable

from opentelemetry.instrumentation.django import DjangoInstrumentor

from . import opentelemetry_psycopg

ONLY = ("Django: request",)


def install() -> None:
    opentelemetry_psycopg.install()
    DjangoInstrumentor().instrument()


def seen(work: Callable[[], object]) -> list[str]:
    """Return the statements whose spans are inside that of a request."""
    opentelemetry_psycopg.seen(work)
    return [name for name, parent in opentelemetry_psycopg.parents() if parent is not None and "GET" in parent]
