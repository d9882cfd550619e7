"""What tests do differently in threads; written by hand, as its pair for tasks is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context


def elsewhere(function: Callable[[], None]) -> None:
    """Run *function* in a thread of its own, to its end."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


class Beside:
    """*function*, which runs in a thread of its own, in a copy of the context."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._answer: object = None

        def run() -> None:
            self._answer = run_to_end(function)

        self._thread = threading.Thread(target=copy_context().run, args=(run,))
        self._thread.start()

    def end(self) -> object:
        """Return what it returned, or what it raised."""
        self._thread.join()
        return self._answer


Event = threading.Event


def run_to_end(function: Callable[[], object]) -> object:
    """Return what *function* returns, or what it raises."""
    try:
        return function()
    except Exception as error:
        return error


def in_turns(order: str, actors: Mapping[str, Callable[[Callable[[], None]], object]]) -> dict[str, object]:
    """Run *actors* in threads of their own; return what each returned or raised, by name.

    Each calls what it is given before each of its steps, and *order* names whose step is next.
    """
    steps, changed = list(order), threading.Condition()

    def run(name: str) -> object:
        at_work = False

        def done() -> None:
            with changed:
                if at_work:
                    del steps[0]
                    changed.notify_all()

        def turn() -> None:
            nonlocal at_work
            done()
            with changed:
                assert changed.wait_for(lambda: steps[0] == name, 10)
            at_work = True

        try:
            return run_to_end(lambda: actors[name](turn))
        finally:
            done()

    with ThreadPoolExecutor(len(actors)) as threads:
        return dict(zip(actors, threads.map(run, actors), strict=True))
