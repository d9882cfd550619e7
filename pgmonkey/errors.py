"""Every error that pgmonkey raises.

PgmonkeyError
├── ConfigError (ValueError)                      the configuration is wrong; raised before any connection is made
│   └── EnvInterpolationError                     a ``${VAR}``, ``from_env`` or ``from_file`` could not be resolved
├── PoolTimeoutError (psycopg_pool.PoolTimeout)   every connection stayed busy for the whole wait
├── PoolFullError (psycopg_pool.TooManyRequests)  ``max_waiting`` borrowers are in the queue already
├── ServerUnavailableError (psycopg.OperationalError) no connection could be made, and why
├── PoolClosedError (psycopg_pool.PoolClosed)     the pool was closed, or another event loop owns it
├── GivenBackError (psycopg.InterfaceError)       the connection was used after it was given back to its pool
├── ForkedError (psycopg.InterfaceError)          a forked child used a connection of its parent
├── CommandTimeoutError (psycopg.OperationalError) a statement took longer than ``command_timeout``
│   └── DeadlineExceededError                     it took longer than a ``timeout``, or than its request may take
├── NoRowError (psycopg.errors.NoDataFound)       `fetch_exactly_one` found no row
├── ManyRowsError (psycopg.errors.TooManyRows)    `fetch_exactly_one` found more than one row
├── LockNotAvailableError (psycopg.errors.LockNotAvailable) another session holds a lock of `lock`
├── CommitUnknownError (psycopg.errors.TransactionResolutionUnknown) the answer to COMMIT was lost
├── BadRowError (psycopg.DatabaseError)           a row of ``copy_rows`` could not be stored, and so none was
└── CancelledUnitError (psycopg.OperationalError) the unit of work was rolled back: the client is gone

The errors about connections are psycopg errors too (``psycopg.Error``), so code written for psycopg or psycopg_pool
catches them unchanged.
"""

import psycopg
from psycopg.pq.abc import PGresult
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

__all__ = [
    "BadRowError",
    "CancelledUnitError",
    "CommandTimeoutError",
    "CommitUnknownError",
    "ConfigError",
    "DeadlineExceededError",
    "EnvInterpolationError",
    "ForkedError",
    "GivenBackError",
    "LockNotAvailableError",
    "ManyRowsError",
    "NoRowError",
    "PgmonkeyError",
    "PoolClosedError",
    "PoolFullError",
    "PoolTimeoutError",
    "ServerUnavailableError",
]


class PgmonkeyError(Exception):
    """Base of every error that pgmonkey raises itself."""


# ValueError, which callers of configuration loaders usually catch.
class ConfigError(PgmonkeyError, ValueError):
    """Report a configuration that cannot be used, naming the file, the key, the cause and the cure."""


class EnvInterpolationError(ConfigError):
    """Report a ``${VAR}``, ``from_env`` or ``from_file`` reference that could not be resolved."""


# psycopg_pool's exceptions are subclasses of psycopg.OperationalError, so that one "except" covers pool and server.
class PoolTimeoutError(PgmonkeyError, PoolTimeout):
    """Report that no connection became free within ``timeout`` seconds of the pool settings."""


class PoolFullError(PgmonkeyError, TooManyRequests):
    """Report that ``max_waiting`` borrowers, of the pool settings, were waiting already."""


class ServerUnavailableError(PgmonkeyError, psycopg.OperationalError):
    """Report that no connection could be made: the server is down, starting, full, or rejects the user."""


class PoolClosedError(PgmonkeyError, PoolClosed):
    """Report a borrow from a pool that was closed."""


class GivenBackError(PgmonkeyError, psycopg.InterfaceError):
    """Report the use of a connection after it was given back to its pool."""

    def __init__(
        self, message: str = "this connection was given back to its pool and is no longer yours; borrow another one"
    ) -> None:
        super().__init__(message)


class ForkedError(PgmonkeyError, psycopg.InterfaceError):
    """Report the use of a connection in a forked child of the process that borrowed it."""

    def __init__(self, parent: int, child: int) -> None:
        super().__init__(
            f"this connection belongs to process {parent}, and process {child}, which is a fork of it, cannot use it: "
            "fork before the transaction or block begins, or let the child do its work in a context of its own, "
            "contextvars.Context().run(work), where it borrows its own connections"
        )


class CommandTimeoutError(PgmonkeyError, psycopg.OperationalError):
    """Report a statement that took longer than ``command_timeout`` seconds; it was cancelled, its connection closed."""


class DeadlineExceededError(CommandTimeoutError):
    """Report what did not end within the ``timeout`` of a call or block, or within the time that its request has.

    A statement that was running was cancelled, and its connection closed.
    """


class NoRowError(PgmonkeyError, psycopg.errors.NoDataFound):
    """Report a statement that returned no row where exactly one was expected (SQLSTATE P0002)."""


class ManyRowsError(PgmonkeyError, psycopg.errors.TooManyRows):
    """Report a statement that returned several rows where exactly one was expected (SQLSTATE P0003)."""


class LockNotAvailableError(PgmonkeyError, psycopg.errors.LockNotAvailable):
    """Report an advisory lock that another session holds, and which one (SQLSTATE 55P03)."""


class CommitUnknownError(PgmonkeyError, psycopg.errors.TransactionResolutionUnknown):
    """Report a COMMIT whose answer was lost (SQLSTATE 08007): it may have succeeded, so do not simply try again."""

    def __init__(self, error: psycopg.Error) -> None:
        super().__init__(f"the answer to COMMIT was lost, so the transaction may have been committed: {error}")

    @classmethod
    def precedes(cls, error: BaseException | None) -> bool:
        """Return whether *error* is one of these, or was raised while one was handled: what was done may be stored."""
        for _ in range(100):  # a program may have made a circle of them
            if error is None or isinstance(error, cls):
                break
            error = error.__context__
        return isinstance(error, cls)


class CancelledUnitError(PgmonkeyError, psycopg.OperationalError):
    """Report a query in a unit of work that was cancelled, for example because the client has disconnected."""


class BadRowError(PgmonkeyError, psycopg.DatabaseError):
    """Report a row that `copy_rows` could not store: its *index*, from 0; its *column* and *value*, None if unknown.

    Where the server has refused it, this is also of psycopg's class for the reason, such as `UniqueViolation`, and its
    ``__cause__`` is what the server said.
    """

    def __init__(
        self,
        message: str,
        index: int = 0,
        column: str | None = None,
        value: object = None,
        *,
        info: PGresult | None = None,
    ) -> None:
        super().__init__(message, info=info)
        self.index = index
        self.column = column
        self.value = value

    def __reduce__(self) -> tuple[object, ...]:
        return BadRowError, (str(self), self.index, self.column, self.value)
