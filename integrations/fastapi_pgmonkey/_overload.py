"""The answer to a request for which no connection is to be had: the pool is exhausted, or the server is away."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from psycopg.errors import ConnectionTimeout
from starlette.responses import JSONResponse

from pgmonkey import DeadlineExceededError, PoolFullError, PoolTimeoutError, ServerUnavailableError

logger = logging.getLogger("pgmonkey")

RETRY_AFTER = "1"  # seconds
_BUSY = (PoolTimeoutError, PoolFullError)
_AWAY = (ServerUnavailableError, ConnectionTimeout)


def answer_overload(error: BaseException, handlers: Mapping[object, object] | None = None) -> JSONResponse | None:
    """Return a 503 where *error* says that no connection is to be had, a 504 where it took too long; else None.

    Either is logged in one line.

    None, too, where the application itself has one of its *handlers* for exactly such errors.
    """
    if not isinstance(error, (*_BUSY, *_AWAY, DeadlineExceededError)) or (handlers and type(error) in handlers):
        return None
    logger.warning("%s", " ".join(str(error).split()))  # libpq may give several lines
    if isinstance(error, DeadlineExceededError):
        return JSONResponse({"detail": "The request took too long."}, 504)
    what = "busy" if isinstance(error, _BUSY) else "not available"
    detail = f"The database is {what}, please try again."
    return JSONResponse({"detail": detail}, 503, {"Retry-After": RETRY_AFTER})
