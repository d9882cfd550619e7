"""Requests of tests in another process: a header tells the sandbox that each belongs to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocketClose

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Scope


def _find(scope: Scope) -> ASGIApp | None:
    """Let a request be in the sandbox that its header tells; return what answers one of other tests."""
    from pgmonkey.testing import HEADER, SandboxError, visit

    name = HEADER.lower().encode()
    told = next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)
    try:
        visit(told)
    except SandboxError as error:
        return PlainTextResponse(str(error), 403) if scope["type"] == "http" else WebSocketClose(1008, str(error))
    return None


find_sandbox = _find if "PGMONKEY_TESTING" in os.environ else None
"""Finds the sandbox of each request; None where the application was not started by tests."""
