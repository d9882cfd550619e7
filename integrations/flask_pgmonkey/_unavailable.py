"""What is answered while the database cannot be used, and the routes that tell an orchestrator."""

from __future__ import annotations

import psycopg
from flask import Blueprint, current_app
from flask.typing import ResponseReturnValue

from pgmonkey import (
    CommitUnknownError,
    Database,
    DeadlineExceededError,
    PoolFullError,
    PoolTimeoutError,
    ServerUnavailableError,
)

from ._database import EXTENSION

UNAVAILABLE = (
    PoolTimeoutError,
    PoolFullError,
    ServerUnavailableError,
    psycopg.errors.ConnectionTimeout,
    DeadlineExceededError,
)
"""The errors that are answered with a 503, the last with a 504."""

_RETRY_AFTER = {"Retry-After": "1"}  # seconds
_READY_WITHIN = 2.0  # seconds: orchestrators give up on a probe after a few


def answer_unavailable(error: Exception) -> ResponseReturnValue:
    """Answer one of `UNAVAILABLE`; raise it where it must not be tried again, as what was done may be stored."""
    if CommitUnknownError.precedes(error):
        raise error
    current_app.logger.warning("%s", _on_one_line(error))
    if isinstance(error, DeadlineExceededError):
        return "The request took too long.", 504
    state = "busy" if isinstance(error, (PoolTimeoutError, PoolFullError)) else "not available"
    return f"The database is {state}, please try again.", 503, _RETRY_AFTER


def health_blueprint() -> Blueprint:
    """Return the routes ``/health/live`` and ``/health/ready``."""
    blueprint = Blueprint("pgmonkey_health", __name__, url_prefix="/health")
    blueprint.get("/live")(_live)
    blueprint.get("/ready")(_ready)
    return blueprint


def _live() -> ResponseReturnValue:
    return {"status": "live"}


def _ready() -> ResponseReturnValue:
    databases: dict[str | None, Database[object]] = current_app.extensions[EXTENSION]
    try:
        for database in databases.values():
            database.ping(timeout=_READY_WITHIN)
    except psycopg.Error as error:
        current_app.logger.warning("not ready: %s", _on_one_line(error))
        return {"status": "unavailable"}, 503, _RETRY_AFTER
    return {"status": "ready"}


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
