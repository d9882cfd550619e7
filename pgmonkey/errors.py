"""Every error that pgmonkey raises.

PgmonkeyError
├── ConfigError (ValueError)                      the configuration is wrong; raised before anything is connected
│   └── EnvInterpolationError                     a ``${VAR}``, ``from_env`` or ``from_file`` could not be resolved
├── PoolTimeoutError (psycopg_pool.PoolTimeout)   every connection stayed busy for the whole wait
├── PoolFullError (psycopg_pool.TooManyRequests)  ``max_waiting`` borrowers are in the queue already
├── PoolClosedError (psycopg_pool.PoolClosed)     the pool was closed, or another event loop owns it
├── GivenBackError (psycopg.InterfaceError)       the connection was given back and is no longer yours
├── CommandTimeoutError (psycopg.OperationalError) a statement took longer than ``command_timeout``
└── CancelledUnitError (psycopg.OperationalError) what a request did was undone, because its client is gone

The errors about connections are psycopg errors too (``psycopg.Error``), so code written for psycopg or psycopg_pool
catches them as it always did.  A connection that cannot be made raises what psycopg raises: the server's own words.
"""

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

__all__ = [
    "CancelledUnitError",
    "CommandTimeoutError",
    "ConfigError",
    "EnvInterpolationError",
    "GivenBackError",
    "PgmonkeyError",
    "PoolClosedError",
    "PoolFullError",
    "PoolTimeoutError",
]


class PgmonkeyError(Exception):
    """Base of every error that pgmonkey raises itself."""


class ConfigError(PgmonkeyError, ValueError):
    """Report a configuration that cannot be used, naming the file, the key, the cause and the cure."""


class EnvInterpolationError(ConfigError):
    """Report a ``${VAR}``, ``from_env`` or ``from_file`` reference that could not be resolved."""


class PoolTimeoutError(PgmonkeyError, PoolTimeout):
    """Report that no connection came free within the wait (``timeout`` of the pool settings, in seconds)."""


class PoolFullError(PgmonkeyError, TooManyRequests):
    """Report that ``max_waiting`` borrowers were waiting already."""


class PoolClosedError(PgmonkeyError, PoolClosed):
    """Report a borrow from a pool that was closed."""


class GivenBackError(PgmonkeyError, psycopg.InterfaceError):
    """Report the use of a connection after it was given back to its pool."""


class CommandTimeoutError(PgmonkeyError, psycopg.OperationalError):
    """Report a statement that took longer than ``command_timeout`` seconds; it was cancelled, its connection closed."""


class CancelledUnitError(PgmonkeyError, psycopg.OperationalError):
    """Report work in a unit of work that was cancelled, for example because the client of the request is gone."""
