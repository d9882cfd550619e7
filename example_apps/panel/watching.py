"""What the latest requests of this process did: their status, and how their transactions ended."""

import logging
import re
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from pgmonkey import telemetry


@dataclass
class Seen:
    """One request."""

    method: str
    path: str
    status: int | None = None
    ends: list[str] = field(default_factory=list)


latest: deque[Seen] = deque(maxlen=8)
"""The latest requests, the newest first."""
_current: ContextVar[Seen | None] = ContextVar("shop_panel_request", default=None)
_HERE = ("127.0.0.1", "::1")
_NAMES = ("127.0.0.1", "localhost", "[::1]")
_END = re.compile(r": ((?:rolled back|outcome unknown|committed in part): .*)", re.DOTALL)
_REFUSAL = b"The demo answers nobody but the machine that it runs on.\n"


class Commits(telemetry.Listener):
    """Notes what was committed for a request."""

    def ended(self, event: telemetry.Ending) -> None:
        if event.outcome == "commit":
            _note(f"committed (statements: {event.statements})")


class Reasons(logging.Handler):
    """Notes what is logged of a request: why it was rolled back, or got no connection."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if end := _END.search(text):
            _note(end[1])
        elif logging.INFO <= record.levelno <= logging.WARNING:
            _note(text)


def listen() -> None:
    """Take note from now on."""
    telemetry.add(Commits())
    logging.getLogger("pgmonkey").setLevel(logging.DEBUG)
    for name in ("pgmonkey.sql", "pgmonkey.pool"):
        logging.getLogger(name).setLevel(logging.WARNING)
    reasons, stderr = Reasons(), logging.StreamHandler()
    for name in ("pgmonkey", "example_apps"):
        logging.getLogger(name).addHandler(reasons)
    stderr.setLevel(logging.WARNING)
    logging.getLogger().addHandler(stderr)


def wsgi(application: Any) -> Any:
    """Return a WSGI application whose requests are noted, and that refuses other machines."""

    def watched(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not _is_here(environ.get("REMOTE_ADDR", ""), environ.get("HTTP_HOST", "")):
            start_response("403 Forbidden", [("Content-Type", "text/plain"), ("Content-Length", str(len(_REFUSAL)))])
            return [_REFUSAL]
        seen = _begin(environ["REQUEST_METHOD"], environ["PATH_INFO"])

        def start(status: str, *arguments: Any) -> Any:
            seen.status = int(status[:3])
            return start_response(status, *arguments)

        answer: Iterable[bytes] = application(environ, start)
        return answer

    return watched


def asgi(application: Any) -> Any:
    """Return an ASGI application whose requests are noted, and that refuses other machines."""

    async def watched(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if not _is_here((scope["client"] or [""])[0], host):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": _REFUSAL})
            return
        seen = _begin(scope["method"], scope["path"])

        async def start(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
            await send(message)

        await application(scope, receive, start)

    return watched


def _begin(method: str, path: str) -> Seen:
    seen = Seen(method, path)
    _current.set(seen)
    # Not the panel's own requests, but those with which it breaks something; and not those that never end.
    if (not path.startswith("/promises/") or path.endswith("/act")) and path != "/orders/live":
        latest.appendleft(seen)
    return seen


def _note(what: str) -> None:
    if (seen := _current.get()) is not None:
        seen.ends.append(what)


def _is_here(client: str, host: str) -> bool:
    """Tell whether a request comes from this machine, and by its name: another site's name may lead here, too."""
    return client in _HERE and (host in _NAMES or host.rpartition(":")[0] in _NAMES)
