"""What a configuration says of logs, traces and metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TelemetrySettings:
    """The keys of ``connection_settings`` that concern telemetry, named as there; times in seconds."""

    telemetry: bool | None = None
    """Whether OpenTelemetry is told; None where that is for its providers to say."""
    slow_statement_threshold: float = 0.0
    log_parameters: bool = False
    trace_to_server: bool = False
    query_tags: bool = False
    live_view: bool = False
    application: str = ""
    """The ``application_name``, for the tags."""


KEYS = tuple(name for name in TelemetrySettings.__dataclass_fields__ if name != "application")
"""Their names."""
