"""What tests do differently in tasks; written by hand, as its pair for threads is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def elsewhere(function: Callable[[], Awaitable[None]]) -> None:
    """Run *function* in a task of its own, to its end."""

    async def run() -> None:
        await function()

    await asyncio.create_task(run())


async def run_to_end(function: Callable[[], Awaitable[object]]) -> object:
    """Return what *function* returns, or what it raises."""
    try:
        return await function()
    except Exception as error:
        return error
