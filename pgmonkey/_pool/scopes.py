"""The blocks of units of work that a context is in, and who runs a block.

Contexts refer weakly to what they are in.  The ``with`` statement, or the framework's adapter, keeps it alive until it
ends it: a block that was interrupted while it was entered has nobody who would end it, and so is nowhere current.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import CodeType, CoroutineType, FrameType
from typing import Any, Protocol

SessionValues = Mapping[str, object]
"""Configuration parameters and their values; None resets one."""
Ask = Callable[[], "SessionValues | None"]
"""What a program gives as ``session_values``."""

# How many scopes a context is in before those that are finished are looked for each time.
_MANY = 8
# How many frames are looked at to find the one that a block belongs to.
_FRAMES = 6


class Source(Protocol):
    """A database, as units of work know it."""

    ask: Ask | None


class Scope(Protocol):
    """A unit of work, a block inside one, or the time in which session values are asked for."""

    asking: bool

    @property
    def finished(self) -> bool: ...

    @property
    def source(self) -> Source | None: ...


inside: ContextVar[tuple[weakref.ref[Any], ...]] = ContextVar("pgmonkey_inside", default=())
"""What the current context is in, the innermost last."""


def enter(scope: Scope) -> None:
    """Let the current context be in *scope*."""
    outer = inside.get()
    # Those that are finished, but were not left here, are forgotten when the last one is, too, or there are many.
    if outer and (len(outer) >= _MANY or (last := outer[-1]()) is None or last.finished):
        outer = _unfinished(outer)
    inside.set((*outer, weakref.ref(scope)))


def leave(scope: Scope) -> None:
    """Forget *scope*, which is finished, in the current context; a long-lived task would collect them."""
    scopes = inside.get()
    if scopes:
        inside.set(scopes[:-1] if scopes[-1]() is scope else _unfinished(scopes))


def _unfinished(scopes: tuple[weakref.ref[Any], ...]) -> tuple[weakref.ref[Any], ...]:
    return tuple(
        one for one in scopes if (scope := one()) is not None and (not scope.finished or type(scope) is Shared)
    )


def find(source: Source) -> Any:
    """Return the innermost unit of work of *source*, or block in one, that the current context is in; None if none."""
    for reference in reversed(inside.get()):
        scope = reference()
        if scope is None or scope.finished:
            continue
        if not scope.asking:
            if scope.source is source:
                return scope.unit if type(scope) is Shared else scope
            if type(scope) is OnDemand and (unit := scope.begin(source)) is not None and not unit.finished:
                return unit
        elif scope.source is not source:
            scope.others = True
    return None


def find_in(unit: object) -> Any:
    """Return the innermost block of *unit* that the current context is in; None where it is in none."""
    for reference in reversed(inside.get()):
        scope = reference()
        if scope is not None and not scope.finished and getattr(scope, "unit", None) is unit:
            return scope
    return None


class OnDemand:
    """A place in a context for units of work, each of which is begun when its database first looks for it."""

    asking = finished = False
    source = None

    def __init__(self, begin: Callable[[Any], Scope | None]) -> None:
        self.begin = begin
        """Returns the unit of work of a database, None where it has none."""


class Shared:
    """A place in a context for a unit of work that is entered in a copy of it, to be seen in all others.

    A framework may run a dependency that opens a transaction in a thread, with a copy of its context.
    """

    asking = False

    def __init__(self, source: Source, fits: Callable[[FrameType], bool]) -> None:
        self.source = source
        self.unit: Scope | None = None
        self.fits = fits
        """Tells of the frame in which a unit is entered whether it is for the whole context."""

    @property
    def finished(self) -> bool:
        return self.unit is None or self.unit.finished


def share(unit: Scope, frame: FrameType) -> None:
    """Let all copies of the current context be in *unit*, entered in *frame*, where there is a place for it."""
    for reference in inside.get():
        scope = reference()
        if isinstance(scope, Shared) and scope.source is unit.source and scope.fits(frame):
            scope.unit = unit


# -- session values ---------------------------------------------------------------------------------------------------


class _Asking:
    """While it lives, the current context asks for the session values of *source*."""

    finished = False
    asking = True

    def __init__(self, source: Source) -> None:
        self.source = source
        self.others = False
        """Whether other databases were asked for them."""


def is_asking(source: Source) -> bool:
    """Tell whether the current context asks for the session values of *source*."""
    scopes = (reference() for reference in inside.get())
    return any(scope is not None and scope.asking and scope.source is source for scope in scopes)


def ask(source: Source) -> tuple[dict[str, str | None], bool]:
    """Return the session values for now, and whether to ask again before the next statement.

    Not where another database was asked for them: it might need the very connection that the unit of work holds then.
    """
    if source.ask is None:
        return {}, False
    asking = _Asking(source)
    before = inside.set((*inside.get(), weakref.ref(asking)))
    try:
        values = source.ask() or {}
        try:
            items = values.items()
        except AttributeError:
            found = type(values).__name__
            raise TypeError(f"session_values has to return a mapping, not {found}") from None
        return {name: None if value is None else str(value) for name, value in items}, not asking.others
    finally:
        inside.reset(before)


# -- who runs a block -------------------------------------------------------------------------------------------------


class Runner:
    """Who entered a block: a task, or a thread in one of its frames.

    A ``with`` statement ends in the frame in which it began, but not always in that thread: FastAPI runs the two halves
    of a dependency that yields, and the endpoint between them, on whatever threads are free.
    """

    __slots__ = ("_frames", "_task", "_thread", "may_wait")

    def __init__(self, frame: FrameType | None) -> None:
        task = _current_task()
        self._task = None if task is None else weakref.ref(task)
        self._thread = threading.current_thread()
        self.may_wait = frame is not None and bool(frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR)
        """Whether it may wait while it is being closed: an asynchronous generator, unlike a coroutine."""
        # Their numbers, because the frames themselves would keep alive all that their functions know.
        frames: list[tuple[int, CodeType]] = []
        while frame is not None and len(frames) < _FRAMES:
            frames.append((id(frame), frame.f_code))
            frame = None if frame.f_code.co_flags & inspect.CO_GENERATOR else frame.f_back
        self._frames = tuple(frames)

    def __str__(self) -> str:
        task = None if self._task is None else self._task()
        return f"thread {self._thread.name!r}" if task is None else f"task {task.get_name()!r}"

    @property
    def elsewhere(self) -> bool:
        """Whether somebody else than the caller is running, or will go on with, what is in the block."""
        if self._task is not None:
            task = self._task()
            return task is not None and not task.done() and task is not _current_task()
        above: FrameType | None = sys._getframe(1)
        number, code = self._frames[0] if self._frames else (0, None)
        while above is not None:
            if id(above) == number and above.f_code is code:
                return False  # it calls the caller
            above = above.f_back
        running: dict[int, tuple[int, CodeType]] = {}
        # The caller's frame, not this one: a frame that refers to itself would live on, and with it the block.
        for thread, frame in {**sys._current_frames(), threading.get_ident(): sys._getframe(1)}.items():
            above = frame
            while above is not None:
                running[id(above)] = thread, above.f_code
                above = above.f_back
        # The innermost frame may have returned, as the methods of `contextlib.ExitStack` have.
        for number, code in self._frames:
            thread, now = running.get(number, (0, None))
            if now is code:
                return thread != threading.get_ident()
            if code.co_flags & inspect.CO_GENERATOR:
                return False  # suspended, so whoever resumes it also runs what is in its block
        return self._thread.is_alive() and self._thread is not threading.current_thread()

    @property
    def suspended(self) -> bool:
        """Whether the block is in an asynchronous generator that its task has left at a ``yield``."""
        task = None if self._task is None or not self.may_wait else self._task()
        if task is None:
            return False
        awaited: object = task.get_coro()
        while isinstance(awaited, CoroutineType):
            awaited = awaited.cr_await
        return not type(awaited).__name__.startswith("async_generator")  # a step of one, perhaps of this


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return None


def used_before(method: str) -> RuntimeError:
    """Return the error for a block that is entered a second time."""
    return RuntimeError(
        f"this block has been entered before, and a block can be entered only once; call {method} again"
    )
