"""Tasks that wait for a connection share one timer, which keeps none of them alive."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import time
import weakref
from typing import Any

import pytest

from pgmonkey import AsyncDatabase, PoolTimeoutError

from ..event_loops import LOOPS, run_on, single


@pytest.mark.parametrize("loop", LOOPS)
def test_each_task_waits_for_its_own_timeout(loop: str, config: dict[str, Any]) -> None:
    async def main() -> None:
        database: AsyncDatabase[Any] = AsyncDatabase(single(config, 60))

        async def wait(timeout: float) -> None:
            started = time.monotonic()
            with pytest.raises(PoolTimeoutError, match=rf"within {timeout:g} s"):
                async with database.connection(timeout=timeout):
                    """Not reached."""
            assert time.monotonic() - started >= timeout

        async with database.connection():
            patient = asyncio.create_task(database.fetch_value("SELECT 1"))
            await asyncio.sleep(0)
            # The last but one comes within the time in which nobody is looked for again.
            await asyncio.wait_for(asyncio.gather(*(wait(timeout) for timeout in (0.4, 0.1, 0.102, 0.2))), 10)
            assert not patient.done()
        assert await patient == 1
        await database.close()

    run_on(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_task_that_has_waited_is_not_kept_alive(loop: str, config: dict[str, Any]) -> None:
    class Request:
        """What a context holds."""

    request: contextvars.ContextVar[Request] = contextvars.ContextVar("request")

    async def main() -> None:
        database: AsyncDatabase[Any] = AsyncDatabase(single(config, 60))
        gone: list[weakref.ref[Request]] = []

        async def wait() -> None:
            held = Request()
            gone.append(weakref.ref(held))
            request.set(held)
            assert await database.fetch_value("SELECT 1") == 1

        async with database.connection():
            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0.05)
        await waiting
        del waiting
        await asyncio.sleep(0)  # what woke this task up knows the other
        gc.collect()
        assert gone[0]() is None
        await database.close()

    run_on(loop, main())
