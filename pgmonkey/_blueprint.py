"""What the connections of one kind are made from: decided once from the configuration, without I/O."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ._config import Config, Kind, PoolSettings

# libpq waits for ever and psycopg for 130 seconds when nothing is said.
CONNECT_TIMEOUT = "10"

# Everything that DISCARD ALL does, which itself may not follow a COMMIT in one message, except what would drop
# psycopg's own prepared statements.
CLEAN = (
    "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); "
    "CLOSE ALL; DISCARD TEMP; DISCARD SEQUENCES"
)

_OPTION_SPECIAL = re.compile(r"([\\\s])")


@dataclass(frozen=True)
class Blueprint:
    """How to connect, and how to pool what was connected."""

    name: str
    connect: Mapping[str, Any] = field(repr=False)
    autocommit: bool
    settings: PoolSettings
    single: bool

    @property
    def max_size(self) -> int:
        """The largest number of connections that may exist at a time."""
        return self.settings.min_size if self.settings.max_size is None else self.settings.max_size


def blueprint(config: Config, kind: Kind) -> Blueprint:
    """Return what a connection or pool of *kind* is made from."""
    is_async = kind in ("async", "async_pool")
    single = kind in ("normal", "async")
    settings = config.async_pool_settings if is_async else config.pool_settings
    if single:
        settings = replace(settings, min_size=1, max_size=1, max_lifetime=math.inf, max_idle=math.inf)
    connect: dict[str, Any] = dict(config.connect)
    if "connect_timeout" not in connect and "PGCONNECT_TIMEOUT" not in os.environ:
        connect["connect_timeout"] = CONNECT_TIMEOUT
    parameters = config.async_settings if is_async else config.sync_settings
    if parameters:
        connect["options"] = startup_options(connect.get("options", ""), parameters)
    connect.update(config.arguments)
    connect.update(settings.kwargs)
    autocommit = bool(connect.pop("autocommit", False))
    return Blueprint(settings.name or f"pgmonkey-{config.digest[:8]}-{kind}", connect, autocommit, settings, single)


def startup_options(options: str, parameters: Mapping[str, str]) -> str:
    """Return libpq's ``options`` keyword with *parameters* added, so that they cost no round trip and survive RESET.

    See "options" in the PostgreSQL manual, 34.1.2: arguments are separated by white space, a backslash escapes.
    """
    added = ("-c {}={}".format(name, _OPTION_SPECIAL.sub(r"\\\1", value)) for name, value in parameters.items())
    return " ".join(filter(None, [options, *added]))
