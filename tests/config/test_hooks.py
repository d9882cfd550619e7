"""Functions that a configuration gives to its pools."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from pgmonkey import AsyncDatabase, ConfigError, Database


async def hook(*arguments: object) -> None:
    """A coroutine function."""


class Hook:
    """An object that is one."""

    async def __call__(self, *arguments: object) -> None:
        """Do nothing."""


@pytest.mark.parametrize("name", ["configure", "check", "reset", "reconnect_failed"])
@pytest.mark.parametrize("function", [hook, partial(hook, 1), Hook()], ids=["function", "partial", "object"])
def test_a_coroutine_function_is_for_async_pools(function: Any, name: str) -> None:
    """In threads nobody would await it, so that a `check` would let everything pass."""
    config = {"connection_settings": {"host": "h"}, "pool_settings": {name: function}}
    with pytest.raises(ConfigError, match=f"pool_settings.{name}: a coroutine function is never awaited"):
        Database(config)
    AsyncDatabase(config)
    AsyncDatabase({"connection_settings": {"host": "h"}, "async_pool_settings": {name: function}})
