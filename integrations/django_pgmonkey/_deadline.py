"""How long a request may take, as PGMONKEY_DEADLINE and PGMONKEY_DEADLINE_HEADER of Django's settings say."""

from __future__ import annotations

from contextvars import ContextVar

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from pgmonkey import ConfigError, Deadline, RequestDeadline

current_deadline: ContextVar[Deadline | None] = ContextVar("django_pgmonkey.deadline", default=None)
"""When the statements of the request that is served must have ended; None is never."""


def read_deadline() -> RequestDeadline | None:
    """Return what gives requests their deadlines, None if nothing does; raise ImproperlyConfigured if it is wrong."""
    seconds, header = (getattr(settings, f"PGMONKEY_DEADLINE{end}", None) for end in ("", "_HEADER"))
    if seconds is None and header is None:
        return None
    try:
        return RequestDeadline(seconds, header, "PGMONKEY_DEADLINE")
    except ConfigError as error:
        raise ImproperlyConfigured(str(error)) from None
