"""django-debug-toolbar: the panel that shows the statements of a request."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

APPS = ("debug_toolbar",)


def install() -> None:
    """Do nothing: the panel is installed for each request."""


def seen(work: Callable[[], object]) -> list[str]:
    from debug_toolbar.panels.sql import SQLPanel

    panel = SQLPanel(SimpleNamespace(request=None), lambda request: None)
    panel.enable_instrumentation()
    try:
        work()
    finally:
        panel.disable_instrumentation()
    return [query["sql"] for query in panel._queries]
