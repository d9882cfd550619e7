"""The public names, where they are made; users import them from `pgmonkey`."""

from ._async.database import AsyncDatabase
from ._async.handle import AsyncConnectionHandle
from ._async.lease import AsyncLease
from ._async.unit import AsyncUnitOfWork
from ._config.document import Origin
from ._config.redaction import redact_config
from ._config.source import load_config
from ._driver.copying import CopyOptions, TableName
from ._driver.files import CopyFile
from ._driver.sql import Params, Statement
from ._sync.database import Database
from ._sync.handle import ConnectionHandle
from ._sync.lease import Lease
from ._sync.unit import UnitOfWork
from .errors import (
    BadRowError,
    CancelledUnitError,
    CommandTimeoutError,
    CommitUnknownError,
    ConfigError,
    EnvInterpolationError,
    ForkedError,
    GivenBackError,
    PgmonkeyError,
    PoolClosedError,
    PoolFullError,
    PoolTimeoutError,
    ServerUnavailableError,
)
from .manager import PGConnectionManager

__all__ = [
    "AsyncConnectionHandle",
    "AsyncDatabase",
    "AsyncLease",
    "AsyncUnitOfWork",
    "BadRowError",
    "CancelledUnitError",
    "CommandTimeoutError",
    "CommitUnknownError",
    "ConfigError",
    "ConnectionHandle",
    "CopyFile",
    "CopyOptions",
    "Database",
    "EnvInterpolationError",
    "ForkedError",
    "GivenBackError",
    "Lease",
    "Origin",
    "PGConnectionManager",
    "Params",
    "PgmonkeyError",
    "PoolClosedError",
    "PoolFullError",
    "PoolTimeoutError",
    "ServerUnavailableError",
    "Statement",
    "TableName",
    "UnitOfWork",
    "load_config",
    "redact_config",
]
