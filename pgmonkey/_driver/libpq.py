"""The libpq that psycopg's compiled module is linked with, to be called without the GIL.

psycopg's compiled modules hold the GIL in some calls that wait for the network, or that wake a process which takes the
processor: all other threads then queue up behind a thread that does not run.
"""

from __future__ import annotations

import ctypes
import sys

from psycopg import pq

from .compat import MISSING


def _find() -> ctypes.CDLL | None:
    module = sys.modules[pq.PGconn.__module__].__file__
    if module is None or "PGconn" in MISSING:
        return None
    try:
        return ctypes.CDLL(module)
    except OSError:  # psycopg's Python implementation, which calls libpq without the GIL itself
        return None


LIBPQ = _find()
"""The library; None where psycopg is to call it."""
