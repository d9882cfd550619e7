"""What tests do differently in tasks; written by hand, as its pair for threads is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping


async def elsewhere(function: Callable[[], Awaitable[None]]) -> None:
    """Run *function* in a task of its own, to its end."""

    async def run() -> None:
        await function()

    await asyncio.create_task(run())


class Beside:
    """*function*, which runs in a task of its own, in a copy of the context."""

    def __init__(self, function: Callable[[], Awaitable[object]]) -> None:
        self._task = asyncio.ensure_future(run_to_end(function))

    async def end(self) -> object:
        """Return what it returned, or what it raised."""
        return await self._task


Event = asyncio.Event


async def run_to_end(function: Callable[[], Awaitable[object]]) -> object:
    """Return what *function* returns, or what it raises."""
    try:
        return await function()
    except Exception as error:
        return error


async def in_turns(
    order: str, actors: Mapping[str, Callable[[Callable[[], Awaitable[None]]], Awaitable[object]]]
) -> dict[str, object]:
    """Run *actors* in tasks of their own; return what each returned or raised, by name.

    Each awaits what it is given before each of its steps, and *order* names whose step is next.
    """
    steps, changed = list(order), asyncio.Condition()

    async def run(name: str) -> object:
        at_work = False

        async def done() -> None:
            async with changed:
                if at_work:
                    del steps[0]
                    changed.notify_all()

        async def turn() -> None:
            nonlocal at_work
            await done()
            async with changed:
                await changed.wait_for(lambda: steps[0] == name)
            at_work = True

        try:
            return await run_to_end(lambda: actors[name](turn))
        finally:
            await done()

    return dict(zip(actors, await asyncio.gather(*map(run, actors)), strict=True))
