"""What the server is told of who executes a statement: the trace that it is part of, and tags in a comment."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from functools import lru_cache
from urllib.parse import quote

from .._pool.place import Label

# A statement with one of these words in it is taken to prepare something by hand, which costs the plans.
_BY_HAND = re.compile("(?i)(?:p(?=repare)|d(?=eallocate|iscard))")


def trace_command() -> bytes | None:
    """Return the command that shows the current trace as ``application_name`` until the end of the transaction.

    It is written as W3C's ``traceparent``, as OpenTelemetry's conventions for PostgreSQL ask for.  None where there is
    no current span.
    """
    trace = sys.modules.get("opentelemetry.trace")
    context = None if trace is None else trace.get_current_span().get_span_context()
    if context is None or not context.is_valid:
        return None
    # Not set_config(), which would be a query: no program could choose an isolation level behind it any more.
    return b"SET LOCAL application_name = '00-%032x-%016x-%02x'" % (
        context.trace_id,
        context.span_id,
        context.trace_flags,
    )


def query_tag(application: str, framework: str | None, label: Label | None) -> bytes | None:
    """Return the comment, in sqlcommenter's format, that each statement ends with; None where there is nothing to say.

    *label* returns the route.
    """
    route = ""
    if label is not None:
        with suppress(Exception):  # of the program's own
            route = label().partition(", ")[0]  # behind which comes a place in the program
    return _comment(application, framework or "", route)


@lru_cache(maxsize=1024)
def _comment(application: str, framework: str, route: str) -> bytes | None:
    tags = {"application": application, "framework": framework, "route": route}
    # Percent-encoded, so that no value ends the quotes or the comment.
    written = ",".join(
        f"{key}='{_BY_HAND.sub(_encoded, quote(value, safe=''))}'" for key, value in tags.items() if value
    )
    return f"/*{written}*/".encode() if written else None


def _encoded(letter: re.Match[str]) -> str:
    return f"%{ord(letter[0]):02X}"
