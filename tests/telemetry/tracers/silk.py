"""django-silk, which sees what Django's models execute, but for what they insert."""

from __future__ import annotations

from collections.abc import Callable

APPS = ("django.contrib.sessions", "silk")


def install() -> None:
    """Do nothing: it installs itself with the first request."""


def seen(work: Callable[[], object]) -> list[str]:
    from django.db.models.sql.compiler import SQLCompiler
    from silk.collector import DataCollector
    from silk.models import Request
    from silk.sql import execute_sql

    if not hasattr(SQLCompiler, "_execute_sql"):  # as its middleware does
        SQLCompiler._execute_sql, SQLCompiler.execute_sql = SQLCompiler.execute_sql, execute_sql
    collector = DataCollector()
    collector.configure(Request(path="/", method="GET"))
    work()
    found = [query["query"] for query in collector.queries.values()]
    collector.configure(None)
    return found
