"""The public names, where they are made; users import them from `pgmonkey`."""

from ._async.batch import AsyncBatch
from ._async.database import AsyncDatabase
from ._async.handle import AsyncConnectionHandle
from ._async.lease import AsyncLease
from ._async.listener import AsyncListening
from ._async.unit import AsyncUnitOfWork
from ._config.document import Origin
from ._config.redaction import redact_config
from ._config.source import load_config
from ._driver.advisory import LockName
from ._driver.copying import CopyOptions, TableName
from ._driver.deadlines import Deadline
from ._driver.files import CopyFile
from ._driver.request_deadline import RequestDeadline
from ._driver.sql import Params, Statement
from ._pool.answers import Answer
from ._pool.mailbox import Gap
from ._sync.batch import Batch
from ._sync.database import Database
from ._sync.handle import ConnectionHandle
from ._sync.lease import Lease
from ._sync.listener import Listening
from ._sync.unit import UnitOfWork
from .errors import (
    BadRowError,
    CancelledUnitError,
    CommandTimeoutError,
    CommitUnknownError,
    ConfigError,
    DeadlineExceededError,
    EnvInterpolationError,
    ForkedError,
    GivenBackError,
    LockNotAvailableError,
    ManyRowsError,
    NoRowError,
    PgmonkeyError,
    PoolClosedError,
    PoolFullError,
    PoolTimeoutError,
    ServerUnavailableError,
)
from .manager import PGConnectionManager

__all__ = [
    "Answer",
    "AsyncBatch",
    "AsyncConnectionHandle",
    "AsyncDatabase",
    "AsyncLease",
    "AsyncListening",
    "AsyncUnitOfWork",
    "BadRowError",
    "Batch",
    "CancelledUnitError",
    "CommandTimeoutError",
    "CommitUnknownError",
    "ConfigError",
    "ConnectionHandle",
    "CopyFile",
    "CopyOptions",
    "Database",
    "Deadline",
    "DeadlineExceededError",
    "EnvInterpolationError",
    "ForkedError",
    "Gap",
    "GivenBackError",
    "Lease",
    "Listening",
    "LockName",
    "LockNotAvailableError",
    "ManyRowsError",
    "NoRowError",
    "Origin",
    "PGConnectionManager",
    "Params",
    "PgmonkeyError",
    "PoolClosedError",
    "PoolFullError",
    "PoolTimeoutError",
    "RequestDeadline",
    "ServerUnavailableError",
    "Statement",
    "TableName",
    "UnitOfWork",
    "load_config",
    "redact_config",
]
