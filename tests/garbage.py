"""What is left to the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

OURS = ("pgmonkey", "flask_pgmonkey", "fastapi_pgmonkey", "django_pgmonkey")


@contextmanager
def no_cycles() -> Iterator[None]:
    """Fail when objects of ours are in reference cycles that nothing refers to any more at the end of the block."""
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
        gc.collect()
        assert not [each for each in gc.garbage if type(each).__module__.partition(".")[0] in OURS]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
