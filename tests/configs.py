"""Configurations that several tests need."""

from __future__ import annotations

from typing import Any

from .faults.proxy import FaultProxy


def pools(config: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The configuration with *settings* for its pools, in threads and in tasks."""
    pool = {"min_size": 1, "max_size": 2, "timeout": 5, **settings}
    return {**config, "pool_settings": dict(pool), "async_pool_settings": dict(pool)}


def prepared(config: dict[str, Any], threshold: int = 0) -> dict[str, Any]:
    """A pool of one connection, on which a statement is prepared when it was executed *threshold* times."""
    pool = {"min_size": 1, "max_size": 1, "timeout": 5}
    connect = {**config["connection_settings"], "prepare_threshold": threshold}
    return {"connection_settings": connect, "pool_settings": dict(pool), "async_pool_settings": dict(pool)}


def proxied(config: dict[str, Any], proxy: FaultProxy) -> dict[str, Any]:
    """The same pool, connected through *proxy*, which counts round trips."""
    through = prepared(config)
    through["connection_settings"]["port"] = proxy.port
    return through
