"""What a context remembers of the units of work that it is in does not grow."""

from __future__ import annotations

import threading
from contextvars import Context
from typing import Any

from pgmonkey import Database
from pgmonkey._pool.scopes import inside


def test_units_that_another_context_finishes_are_forgotten(config: dict[str, Any]) -> None:
    """Also when the next one has begun by then, so that the last one is never finished."""
    database = Database(config)

    def work() -> int:
        unit = database.begin()
        for _ in range(100):
            following = database.begin()
            thread = threading.Thread(target=unit.finish)
            thread.start()
            thread.join()
            unit = following
            assert database.current_unit() is unit
        unit.finish()
        return len(inside.get())

    assert Context().run(work) < 10
    database.close()


def test_units_that_are_not_finished_stay(config: dict[str, Any]) -> None:
    database = Database(config)

    def work() -> None:
        units = [database.begin() for _ in range(20)]
        while units:
            assert database.current_unit() is units[-1]
            units.pop().finish()
        assert database.current_unit() is None

    Context().run(work)
    database.close()
