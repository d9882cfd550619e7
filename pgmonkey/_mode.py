"""The characteristics of a transaction: how isolated it is and what it may do."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import IsolationLevel


@dataclass(frozen=True)
class Mode:
    """What ``BEGIN`` says; None is the server's default."""

    isolation: IsolationLevel | None = None
    read_only: bool | None = None
    deferrable: bool | None = None

    @classmethod
    def of(cls, isolation: IsolationLevel | str | None, read_only: bool | None, deferrable: bool | None) -> Mode:
        """Return the mode that a caller asked for; raise `psycopg.ProgrammingError` for an unknown isolation level."""
        if isolation is None and read_only is None and deferrable is None:
            return USUAL
        level = _level(isolation) if isinstance(isolation, str) else isolation
        return cls(level, read_only, deferrable)


USUAL = Mode()
"""What the server does by default."""


def _level(name: str) -> IsolationLevel:
    try:
        return IsolationLevel[name.upper().replace(" ", "_")]
    except KeyError:
        known = ", ".join(level.name.lower().replace("_", " ") for level in IsolationLevel)
        raise psycopg.ProgrammingError(f"{name!r} is not an isolation level; use one of {known}") from None
