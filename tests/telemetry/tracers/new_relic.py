"""newrelic, which has to be there before psycopg is imported."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.update(NEW_RELIC_DEVELOPER_MODE="true", NEW_RELIC_LICENSE_KEY="0" * 40, NEW_RELIC_LOG_LEVEL="error")

import newrelic.agent

_OPERATION = "Datastore/operation/Postgres/"


def install() -> None:
    global _application
    newrelic.agent.initialize()
    _application = newrelic.agent.register_application(timeout=10)


def seen(work: Callable[[], object]) -> list[str]:
    before = _counts()
    with newrelic.agent.BackgroundTask(_application, "test"):
        work()
    found = []
    for operation, count in _counts().items():
        if operation not in ("commit", "rollback"):
            found += [operation] * (count - before.get(operation, 0))
    return found


def _counts() -> dict[str, int]:
    engine: Any = newrelic.agent.application()._agent.application(_application.name)._stats_engine
    return {
        name.removeprefix(_OPERATION): stats.call_count
        for (name, scope), stats in engine.stats_table.items()
        if name.startswith(_OPERATION) and not scope
    }
