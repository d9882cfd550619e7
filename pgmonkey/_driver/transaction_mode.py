"""The mode of a transaction, as in BEGIN: its isolation level, READ ONLY and DEFERRABLE."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import IsolationLevel


@dataclass(frozen=True)
class TransactionMode:
    """What ``BEGIN`` says; None is the server's default."""

    isolation: IsolationLevel | None = None
    read_only: bool | None = None
    deferrable: bool | None = None

    @classmethod
    def of(
        cls, isolation: IsolationLevel | str | None, read_only: bool | None, deferrable: bool | None
    ) -> TransactionMode:
        """Return the mode that a caller asked for; raise `psycopg.ProgrammingError` for an unknown isolation level."""
        if isolation is None and read_only is None and deferrable is None:
            return DEFAULT
        level = _level(isolation) if isinstance(isolation, str) else isolation
        return cls(level, read_only, deferrable)


DEFAULT = TransactionMode()
"""The server's own: what plain ``BEGIN`` starts."""


def _level(name: str) -> IsolationLevel:
    try:
        return IsolationLevel[name.upper().replace(" ", "_")]
    except KeyError:
        known = ", ".join(level.name.lower().replace("_", " ") for level in IsolationLevel)
        raise psycopg.ProgrammingError(f"{name!r} is not an isolation level; use one of {known}") from None
