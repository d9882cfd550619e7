"""A block that is interrupted while it is entered, or left, leaves nothing that would swallow what comes next."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
import pytest

import pgmonkey
from pgmonkey import Database

from ..configs import prepared

Observer = psycopg.Connection[Any]

# Where the blocks are entered and left; that the pool survives is tested beside it.
_NAMES = ("_sync/blocks.py", "_sync/unit.py", "_sync/nested.py", "_pool/scopes.py")
MODULES = tuple(str(Path(pgmonkey.__file__).parent / name) for name in _NAMES)


class Interruption(BaseException):
    """What a signal handler raises, wherever the program is."""


def interrupted_at(number: int, function: Callable[[], None]) -> bool:
    """Call *function*, interrupted before the bytecode of that *number*; tell whether it came to that."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in MODULES:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count == number:
                raise Interruption
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 has no events of bytecodes unless a frame has asked before
    sys.settrace(trace)
    try:
        function()
    except Interruption:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("method", ["transaction", "unit_of_work", "nested"])
def test_what_comes_after_an_interruption_is_stored(method: str, config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    config = prepared(config)
    database = Database(config)
    entered = 0

    def use() -> None:
        nonlocal entered
        if method == "nested":
            with database.transaction(), database.transaction():
                entered += 1
        else:
            with getattr(database, method)():
                entered += 1

    number, written = 1, 0
    while interrupted_at(number, use):
        # Acknowledged, so it is stored; and the pool of one connection has it again.
        assert database.execute("INSERT INTO t VALUES (%s)", [number]) == 1
        written += 1
        assert database.current_unit() is None, number
        assert observer.execute("SELECT count(*) FROM t").fetchone() == (written,), number
        number += 1
    assert written > 100
    database.close()
