"""The page that shows the pools of all worker processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import HTMLResponse

from pgmonkey import telemetry


def live_router(require: Callable[..., Any], path: str, names: Callable[[], set[str]]) -> APIRouter:
    """Return the router of the page at *path*, which depends on *require*; *names* are those of its pools."""
    router = APIRouter(dependencies=[Depends(require)], include_in_schema=False)

    # In a thread, as it asks other processes.
    @router.get(path)
    def page() -> HTMLResponse:
        return HTMLResponse(telemetry.page(names()), headers={"Cache-Control": "no-store"})

    return router
