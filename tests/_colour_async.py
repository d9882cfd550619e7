"""What tests do differently in tasks.  `_colour` offers the same names to threads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def elsewhere(function: Callable[[], Awaitable[None]]) -> None:
    """Run *function* in a task of its own, to its end."""

    async def run() -> None:
        await function()

    await asyncio.create_task(run())
