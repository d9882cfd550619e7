"""What tests do differently in threads; written by hand, as its pair for tasks is."""

from __future__ import annotations

import threading
from collections.abc import Callable


def elsewhere(function: Callable[[], None]) -> None:
    """Run *function* in a thread of its own, to its end."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def run_to_end(function: Callable[[], object]) -> object:
    """Return what *function* returns, or what it raises."""
    try:
        return function()
    except Exception as error:
        return error
