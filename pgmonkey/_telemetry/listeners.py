"""Who listens to a pool: the log, OpenTelemetry, and what the program has added; nobody, most of the time."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from typing import Protocol

from .events import Listener, Subject
from .live import Live, Looked
from .log import SqlLog, logger, pool_logger
from .otel import OpenTelemetry, providers_set


class Counted(Looked, Protocol):
    """A pool, as far as telemetry is concerned."""

    def listen(self) -> None:
        """Find out who listens from now on."""
        ...


pools: weakref.WeakSet[Counted] = weakref.WeakSet()
"""All pools of the process."""
added: list[Listener] = []
"""What the program has added; see `pgmonkey.telemetry`."""

_log = SqlLog()
_otel: list[OpenTelemetry] = []
_live: list[Live] = []


def statistics() -> Iterator[tuple[str, dict[str, int]]]:
    """Yield name and counters of each pool that is open, unless its configuration forbids to tell of it."""
    for pool in list(pools):
        if not pool.closed and pool.subject.settings.telemetry is not False:
            yield pool.subject.name, pool.stats()


def find(subject: Subject, *, traced: bool) -> tuple[Listener, ...] | None:
    """Return who is to be told about *subject* from now on; None when nobody listens.

    Where its connections are *traced* by another tracer, that makes the spans, unless the configuration asks for ours.
    """
    settings = subject.settings
    found: list[Listener] = []
    logged = logger.isEnabledFor(logging.DEBUG), pool_logger.isEnabledFor(logging.DEBUG)
    if any(logged) or settings.slow_statement_threshold:
        found.append(_log)
    if settings.live_view:
        if not _live:
            _live.append(Live(pools))
        if _live[0].start():
            found.append(_live[0])
    if settings.telemetry is not False:
        found += added
        traces, measures = providers_set()
        spans = traces and (not traced or settings.telemetry is True)
        if spans or measures:
            if not _otel:
                _otel.append(OpenTelemetry(statistics))
            found.append(_otel[0] if spans else _otel[0].without_spans)
    return tuple(found) or None
