"""Logs, traces and metrics of what the pools of this process do; docs/telemetry.md tells how to use them.

The loggers are ``pgmonkey.sql`` and ``pgmonkey.pool``.  OpenTelemetry is told once the program has set a provider.  A
listener of the program's own is told of the same: see `Listener` and `add`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection
from typing import Any, TextIO

from ._telemetry import listeners
from ._telemetry.events import Borrow, Connect, Ending, Execution, Listener, Loan, Return
from ._telemetry.page import as_page
from ._telemetry.sockets import ask_all
from ._telemetry.view import PoolView, views

__all__ = [
    "Borrow",
    "Connect",
    "Ending",
    "Execution",
    "Listener",
    "Loan",
    "PoolView",
    "Return",
    "add",
    "counters",
    "echo",
    "look",
    "page",
    "prometheus",
    "refresh",
    "remove",
]


def echo(stream: TextIO | None = None, *, pools: bool = False) -> logging.Handler:
    """Write each statement and each end of a transaction to *stream*, stderr by default, one line each.

    With *pools*, also each connection that is lent or given back.  For development.  Returns the handler that does it.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(logging.Formatter("%(name)s  %(message)s"))
    for name in ("pgmonkey.sql", "pgmonkey.pool")[: 1 + pools]:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
    return handler


def add(listener: Listener) -> None:
    """Tell *listener* from now on what happens; what it raises is logged once and ignored."""
    listeners.added.append(listener)
    refresh()


def remove(listener: Listener) -> None:
    """Tell *listener* nothing more; raise `ValueError` if it is not told."""
    listeners.added.remove(listener)
    refresh()


def prometheus(registry: Any = None) -> Listener:
    """Keep metrics in a *registry* of prometheus_client, its default one when None, from now on.

    To be called once for a registry, when the program starts: before a server forks its workers, or in each of them.
    Returns the listener, for `remove`.
    """
    try:
        from ._telemetry.prometheus import Prometheus

        listener = Prometheus(listeners.statistics, registry)
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        raise ModuleNotFoundError("prometheus_client is needed: pip install 'pgmonkey[prometheus]'") from None
    add(listener)
    return listener


def look(pools: Collection[str] | None = None) -> list[PoolView]:
    """Return the pools of all processes of this user that say ``live_view: true``, those of one name together.

    *pools* are the names of those to return, as `pgmonkey.Database.pool_name` is; all by default.
    """
    return views(ask_all(), pools)


def counters(pool: str) -> dict[int, dict[str, int]]:
    """Return the counters of *pool* in each process but this one that `look` shows, by the number of the process."""
    try:
        found = {pid: own for view in look({pool}) for pid, own in view.processes.items()}
    except PermissionError:  # whoever has the folder: no process of this user answers in it
        return {}
    found.pop(os.getpid(), None)
    return found


def page(pools: Collection[str] | None = None) -> str:
    """Return what `look` returns as an HTML page, which loads itself again every two seconds."""
    return as_page(look(pools))


def refresh() -> None:
    """Have each pool look now at who listens, which it does every second: after a provider was set, for instance."""
    for pool in list(listeners.pools):
        pool.listen()
