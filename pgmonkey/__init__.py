"""The way Python web applications talk to PostgreSQL: one configuration, one cache, three frameworks."""

from ._config import load_config
from ._connection import ConnectionHandle
from ._connection_async import AsyncConnectionHandle
from ._database import Database
from ._database_async import AsyncDatabase
from ._lease import Lease
from ._lease_async import AsyncLease
from ._manager import PGConnectionManager
from ._secrets import redact_config
from ._statement import Params, Statement
from ._unit import UnitOfWork
from ._unit_async import AsyncUnitOfWork
from .errors import (
    CancelledUnitError,
    CommandTimeoutError,
    ConfigError,
    EnvInterpolationError,
    GivenBackError,
    PgmonkeyError,
    PoolClosedError,
    PoolFullError,
    PoolTimeoutError,
)

__all__ = [
    "AsyncConnectionHandle",
    "AsyncDatabase",
    "AsyncLease",
    "AsyncUnitOfWork",
    "CancelledUnitError",
    "CommandTimeoutError",
    "ConfigError",
    "ConnectionHandle",
    "Database",
    "EnvInterpolationError",
    "GivenBackError",
    "Lease",
    "PGConnectionManager",
    "Params",
    "PgmonkeyError",
    "PoolClosedError",
    "PoolFullError",
    "PoolTimeoutError",
    "Statement",
    "UnitOfWork",
    "load_config",
    "redact_config",
]
