"""The statements of an advisory lock of PostgreSQL."""

from __future__ import annotations

from typing import TypeAlias

LockName: TypeAlias = "str | int | tuple[int, int]"
"""What names an advisory lock: a text, of which the server makes a number, a number of 64 bits, or two of 32 bits."""


class AdvisoryLock:
    """The lock called *name* in the database that one is connected to; *session*: not the transaction has it."""

    def __init__(self, name: LockName, *, shared: bool, session: bool) -> None:
        numbers = name if isinstance(name, tuple) else (name,)
        if isinstance(name, str):
            key, self._pair = "hashtextextended(%s, 0)", False
        elif len(numbers) in (1, 2) and all(type(number) is int for number in numbers):
            self._pair = len(numbers) == 2
            key = "%s::int, %s::int" if self._pair else "%s::bigint"
        else:
            raise TypeError(f"the name of a lock is a string, a number or a tuple of two numbers, not {name!r}")
        self.name = repr(name)
        self.params: tuple[str | int, ...] = numbers
        kind = ("lock" if session else "xact_lock") + ("_shared" if shared else "")
        self.take = f"SELECT pg_advisory_{kind}({key})".encode()
        """Waits for as long as another session has it."""
        self.attempt = f"SELECT pg_try_advisory_{kind}({key})".encode()
        """Returns whether it was free."""
        # One statement: outside a transaction, the setting ends with it.
        self.take_within = f"""
            WITH setting AS (
                SELECT current_setting('lock_timeout') AS before, set_config('lock_timeout', %s, true) AS now
            )
            SELECT before, pg_advisory_{kind}({key}) FROM setting WHERE now IS NOT NULL
            """.encode()  # noqa: S608  # of texts of this function alone
        """Waits for as long as its first parameter says, and returns what ``lock_timeout`` was before."""
        self.release = f"SELECT pg_advisory_unlock{'_shared' if shared else ''}({key})".encode()
        """Returns whether the session had it."""
        same = "l.objsubid = 1 AND (l.classid::bigint << 32 | l.objid::bigint) = " + key
        if self._pair:
            same = "l.objsubid = 2 AND l.classid = %s::int::oid AND l.objid = %s::int::oid"
        self.holders = f"""
            SELECT string_agg(concat_ws(' ', l.pid, quote_literal(nullif(a.application_name, ''))), ', ')
            FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
            WHERE l.locktype = 'advisory' AND l.granted AND l.pid <> pg_backend_pid() AND {same}
                AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            """.encode()  # noqa: S608  # of texts of this function alone
        """Returns the sessions that have it."""

    def not_available(self, wait: bool | float, holders: str | None) -> str:
        """Return the message that it was not to be had; *wait* is how long that was tried."""
        tried = f" within {wait:g} s (wait)" if wait else ""
        return f"the lock {self.name} was not free{tried}: it is held by session {holders or '(which has ended)'}"


def milliseconds(seconds: float) -> str:
    """Return *seconds* as ``lock_timeout`` takes them; 0 would be without an end."""
    return f"{max(1, round(seconds * 1000))}ms"
