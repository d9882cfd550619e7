"""Send what a pipeline has collected, while other threads run.

psycopg's compiled modules hold the GIL while they do that.  The server, which begins to work at that moment, may take
the processor from the thread that holds it; whoever wants the GIL then queues up behind a thread that does not run.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import pq


def _of_libpq() -> Callable[[int | None], int] | None:
    """Return libpq's ``PQpipelineSync``, called without the GIL; None where psycopg does that, or it is not found."""
    module = sys.modules[pq.PGconn.__module__].__file__
    if module is None:
        return None
    try:
        function: Any = ctypes.CDLL(module).PQpipelineSync  # of the library that the module is linked with
    except (AttributeError, OSError):
        return None
    function.argtypes, function.restype = (ctypes.c_void_p,), ctypes.c_int
    return function  # type: ignore[no-any-return]


_pipeline_sync = _of_libpq()


def sync(pgconn: Any) -> None:
    """Do as psycopg's ``pgconn.pipeline_sync()`` does."""
    if _pipeline_sync is None:
        pgconn.pipeline_sync()
    elif _pipeline_sync(pgconn.pgconn_ptr) != 1:
        raise psycopg.OperationalError(f"sync failed: {pgconn.get_error_message()}")
