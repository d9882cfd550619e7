"""Two routes for an orchestrator: ``path("health/", include("django_pgmonkey.health"))`` has ``live`` and ``ready``."""

from __future__ import annotations

import logging

import psycopg
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections
from django.http import HttpRequest, JsonResponse
from django.urls import path

from pgmonkey import Database

from ._settings import literal
from ._unavailable import unavailable
from ._wrapper import PooledWrapper

logger = logging.getLogger("pgmonkey")

_READY_WITHIN = 2.0  # seconds: orchestrators give up on a probe after a few


def live(request: HttpRequest) -> JsonResponse:
    """Answer 200, and touch no database."""
    return JsonResponse({"status": "live"})


def ready(request: HttpRequest) -> JsonResponse:
    """Answer 200 when all databases of pgmonkey answer, and 503 with ``Retry-After`` otherwise."""
    try:
        for wrapper in connections.all():
            if isinstance(wrapper, PooledWrapper):
                _ask(wrapper)
    except (psycopg.Error, Error, ImproperlyConfigured) as error:
        logger.warning("not ready: %s", " ".join(str(error).split()))
        return unavailable(JsonResponse({"status": "unavailable"}))
    return JsonResponse({"status": "ready"})


def _ask(wrapper: PooledWrapper) -> None:
    # Not wrapper.pool, which, where it is not open yet, would connect for as long as its own timeout.
    database = Database(literal(wrapper.settings.config(wrapper.timezone_name)), resolve_env=True)
    try:
        database.ping(timeout=_READY_WITHIN)
        _ = wrapper.pool  # keeps it open
    finally:
        database.release()


app_name = "pgmonkey"
urlpatterns = [path("live", live, name="live"), path("ready", ready, name="ready")]
