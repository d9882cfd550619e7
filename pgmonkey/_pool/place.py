"""Where in the program a connection was borrowed, by which thread or task, and for which request."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import CodeType, FrameType

# Frameworks that call the program's functions: their lines are not shown.
_FRAMEWORKS = ("fastapi", "starlette", "flask", "anyio", "asyncio")
# Frames of these lie between the program and the pool.
_BETWEEN = ("pgmonkey", "flask_pgmonkey", "fastapi_pgmonkey", "django_pgmonkey", "contextlib", "django", "psycopg")

Label = Callable[[], str]
"""Returns for whom a connection is borrowed, such as the route of a request; called only when that is shown."""


class Place:
    """Where in the program a connection was borrowed, by whom, and on whose behalf."""

    __slots__ = ("_code", "_globals", "_instruction", "_label", "borrower")

    def __init__(self, frame: FrameType, label: Label | None, borrower: object) -> None:
        self.borrower = borrower
        self._code = frame.f_code
        # The line is looked up when the place is shown, which is rare; the instruction costs nothing.
        self._instruction = frame.f_lasti
        self._globals = frame.f_globals
        self._label = label

    @classmethod
    def above(cls, frame: FrameType, label: Label | None, borrower: object) -> Place:
        """Return the nearest place from *frame* upwards that is outside the packages in `_BETWEEN`."""
        while (file := frame.f_code.co_filename) in _between or (file not in _outside and _is_between(frame)):
            above = frame.f_back
            if above is None:
                break
            frame = above
        return cls(frame, label, borrower)

    def __str__(self) -> str:
        by = "" if self.borrower is None else f" by {self.borrower}"
        place = location(self._code, _line(self._code, self._instruction))
        if self._label is None:
            return f"at {place}{by}"
        at = "" if _package(self._globals) in _FRAMEWORKS else f", at {place}"
        return f"for {self._label()}{at}{by}"


def query_above(frame: FrameType | None) -> tuple[object, str]:
    """Return the query that the program, from *frame* upwards, has asked for, and the place: " at file:line (name)".

    None and "" where they cannot be told.
    """
    query: object = None
    while frame is not None and _is_between(frame):
        # So the arguments of psycopg's and of our own public methods are called; the outermost is what was written.
        given = frame.f_locals
        query = given.get("query", given.get("statement", query))
        frame = frame.f_back
    unknown = frame is None or _package(frame.f_globals) in _FRAMEWORKS
    return query, "" if frame is None or unknown else f" {Place(frame, None, None)}"


def location(code: CodeType, line: int | None = None) -> str:
    """Return the place of *code*, as ``file:line (name)``."""
    return f"{_short(code.co_filename)}:{line or code.co_firstlineno} ({code.co_name})"


def _short(file: str) -> str:
    """Return the path of *file* from the working directory, if it is below that."""
    try:
        short = os.path.relpath(file)
    except (OSError, ValueError):  # the directory is gone, as after a deployment; or it is on another drive
        return file
    return file if short.startswith(os.pardir) else short


# Caches by file name: whether the code of a file is in one of the packages in `_BETWEEN`.
_between: set[str] = set()
_outside: set[str] = set()


def _is_between(frame: FrameType) -> bool:
    found = _package(frame.f_globals) in _BETWEEN
    (_between if found else _outside).add(frame.f_code.co_filename)
    return found


def _line(code: CodeType, instruction: int) -> int | None:
    return next((line for start, end, line in code.co_lines() if start <= instruction < end), None)


def _package(variables: Mapping[str, object]) -> str:
    return str(variables.get("__name__", "")).partition(".")[0]
