"""Find what a bare ``with pool as conn`` entered, when one pool is entered many times at once.

Neither the thread nor a context variable can tell: FastAPI enters, uses and exits a synchronous dependency on different
threads, each with a copy of the context.  The frame can: a ``with`` statement looks ``__enter__`` and ``__exit__`` up
in one frame, whichever thread runs it; so does `contextlib.ExitStack`, also for what ``pop_all()`` takes from it.

A class that enters and exits in two methods, on behalf of others, has two frames.  They belong together when they are
methods of the same object, called by the same frame, or in the same thread or task.  Beyond that nothing is guessed.

A ``with`` statement looks ``__exit__`` up before it calls ``__enter__``, and keeps what it found for as long as the
block lasts; ExitStack does the same.  So that object has what was entered.  When entering is interrupted, at whatever
instruction, it is dropped, and the connection with it.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dis import opname
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

if TYPE_CHECKING:
    from typing import Concatenate

    from typing_extensions import ParamSpec

    P = ParamSpec("P")

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

Exit: TypeAlias = "Callable[[], Any]"
"""A weak reference to what a ``with`` statement, or ExitStack, will call to end its block."""
Runner: TypeAlias = "Callable[[], threading.Thread | asyncio.Task[Any] | None]"
"""A weak reference to the thread, or to the task in it, that runs something."""

# Such frames are suspended, not finished, when nothing runs them: another thread or task may resume them.
_RESUMABLE = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
# The instructions of a ``with`` statement that look ``__exit__`` up, in Python 3.10 to 3.14.
_WITH = {code for code, name in enumerate(opname) if name in ("SETUP_WITH", "LOAD_SPECIAL") or "BEFORE_" in name}


class _LookedUp(threading.local):
    """What the current thread looked up last to end a block, and the identity of the frame."""

    exit: tuple[int, Exit] | None = None


_looked_up = _LookedUp()


def by_frame(method: Callable[Concatenate[S, FrameType, P], R]) -> Callable[Concatenate[S, P], R]:
    """Have *method* called with the frame that looked it up, before its other arguments."""
    return cast("Callable[Concatenate[S, P], R]", _ByFrame(method))


class _ByFrame:
    def __init__(self, method: Callable[..., object]) -> None:
        self._method = method
        self._ends = method.__name__ in ("__exit__", "__aexit__")

    def __get__(self, instance: object, owner: type) -> Callable[..., object]:
        frame = sys._getframe(1)
        found = _OfClass(self._method, frame) if instance is None else partial(self._method, instance, frame)
        # A program that looks it up by hand may well do so again to call it, and not keep this one.
        if self._ends and (instance is None or frame.f_code.co_code[frame.f_lasti] in _WITH):
            _looked_up.exit = id(frame), weakref.ref(found)
        return found


class _OfClass:
    """What `contextlib` finds in the class, keeps in that frame, and calls once."""

    def __init__(self, method: Callable[..., object], frame: FrameType) -> None:
        self._method = method
        self._frame: FrameType | None = frame

    def __call__(self, instance: object, *arguments: object) -> object:
        frame, self._frame = self._frame, None  # or each would keep the other alive
        return self._method(instance, frame or sys._getframe(1), *arguments)


def current_exit(frame: FrameType) -> Exit | None:
    """Return what *frame*, which enters a block now, has looked up to end it; None when that is not known."""
    found, _looked_up.exit = _looked_up.exit, None
    return None if found is None or found[0] != id(frame) else found[1]


def current_runner() -> Runner:
    """Return what runs the caller."""
    loop = asyncio._get_running_loop()
    task = None if loop is None else asyncio.current_task(loop)
    return weakref.ref(threading.current_thread() if task is None else task)


class OpenBlocks(Generic[T]):
    """What was entered and not exited yet.  Each change is one step of the interpreter, so it needs no lock."""

    def __init__(self) -> None:
        self._blocks: list[_Block[T]] = []

    def push(self, frame: FrameType, runner: Runner, exit_: Exit | None, entry: T) -> None:
        """Remember that *frame* entered *entry*, in *runner*; from now on *exit_* has it, if that is known."""
        self._blocks.append(_Block(frame, runner, exit_, entry))

    def pop(self, frame: FrameType) -> T | None:
        """Return what *frame* entered last, or else another method of its object; None when it cannot be told."""
        latest_first = self._lasting()[::-1]
        block = next((block for block in latest_first if block.frame is frame), None)
        if block is None:
            block = _delegated(latest_first, frame)
        if block is None:
            return None
        self._blocks.remove(block)
        return block.entry

    def _lasting(self) -> list[_Block[T]]:
        """Remove the blocks whose entering or exiting was interrupted; return the others."""
        blocks = self._blocks[:]
        for block in blocks:
            if block.entry is None:
                with suppress(ValueError):  # another thread was faster
                    self._blocks.remove(block)
        return [block for block in blocks if block.entry is not None]

    def remove_forgotten(self, unused: Callable[[T], bool]) -> list[T]:
        """Remove and return what nobody can exit any more, as far as it is *unused*."""
        found: list[T] = []
        for block in self._lasting():
            entry = block.entry
            if block.cannot_end() and entry is not None and unused(entry):
                self._blocks.remove(block)
                found.append(entry)
        return found


class _Block(Generic[T]):
    __slots__ = ("_entry", "_exit", "caller", "frame", "runner")

    def __init__(self, frame: FrameType, runner: Runner, exit_: Exit | None, entry: T) -> None:
        self.frame = frame
        self.caller = frame.f_back
        self.runner = runner
        self._exit = exit_
        self._entry: T | None = None
        if exit_ is None:
            self._entry = entry
        else:
            exit_().entry = entry

    @property
    def entry(self) -> T | None:
        """What was entered; None when what would have ended the block is gone."""
        return self._entry if self._exit is None else getattr(self._exit(), "entry", None)

    def cannot_end(self) -> bool:
        """Tell whether the frame is finished, and the thread or task has ended that could exit the block instead."""
        runner = self.runner()
        ended = runner is None or (not runner.is_alive() if isinstance(runner, threading.Thread) else runner.done())
        if not ended or _resumable(self.frame):
            return False
        try:
            self.frame.clear()  # its variables are of no use any more, and would keep the connection alive
        except RuntimeError:  # it is not finished
            return False
        if self.caller is not None and not _resumable(self.caller):
            with suppress(RuntimeError):
                self.caller.clear()
        return True


def _delegated(latest_first: list[_Block[T]], frame: FrameType) -> _Block[T] | None:
    """Return the block that another method of the same object entered."""
    owner, caller = _owner(frame), frame.f_back
    # A frame that runs, or may run again, has a ``with`` statement of its own.
    entered = [each for each in latest_first if not (_resumable(each.frame) or _is_running(each.frame))]
    entered = [each for each in entered if _owner(each.frame) is owner]
    runner = current_runner()()
    fitting = [each for each in entered if caller is not None and each.caller is caller]
    fitting = fitting or [each for each in entered if each.runner() is runner and not _resumable(each.caller)]
    if owner is None and len(fitting) > 1:
        # Functions that methods of one object call; others share nothing that would say which one they mean.
        owner = _owner(caller)
        fitting = [each for each in fitting if owner is not None and _owner(each.caller) is owner]
    return next(iter(fitting), None)


def _owner(frame: FrameType | None) -> object:
    """Return the object whose method *frame* runs; None for a function."""
    if frame is None:
        return None
    code = frame.f_code
    name = code.co_varnames[0] if code.co_argcount else ""
    return frame.f_locals.get(name) if name in ("self", "cls") else None


def _resumable(frame: FrameType | None) -> bool:
    return frame is not None and bool(frame.f_code.co_flags & _RESUMABLE)


def _is_running(frame: FrameType) -> bool:
    above = sys._getframe(1)
    while above is not frame and above.f_back is not None:
        above = above.f_back
    return above is frame
