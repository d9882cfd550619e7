"""The event loops that tests run on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import uvloop

LOOPS = ["asyncio", "uvloop"]


def run_on(loop: str, main: Coroutine[Any, Any, None]) -> None:
    if loop == "uvloop":
        uvloop.run(main)
    else:
        asyncio.run(main)


def single(config: dict[str, Any], timeout: float = 5) -> dict[str, Any]:
    """The configuration with an asynchronous pool of one connection."""
    return {**config, "async_pool_settings": {"min_size": 1, "max_size": 1, "timeout": timeout}}
