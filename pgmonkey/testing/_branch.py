"""One database of a sandbox: whose turn it is to use its connection, and what goes wrong next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from . import _messages
from ._backend import Backend, literal
from ._messages import ClosedError, problem
from ._statements import Part


class RefusedError(Exception):
    """Why a client gets an error: an SQLSTATE, a message and a hint."""


class Client(Protocol):
    """One that waits for its turn."""

    number: int
    running: str
    """The statement that was sent last."""
    cancelled: bool
    """Whether it has asked to cancel what it waits for."""


@dataclass
class Counts:
    """What clients have done since the counting began."""

    texts: list[str] = field(default_factory=list)
    round_trips: int = 0
    used: set[int] = field(default_factory=set)


class Faults:
    """What goes wrong next, in all databases of a sandbox."""

    def __init__(self) -> None:
        self.commits: deque[tuple[str, str]] = deque()
        """SQLSTATE and message of the COMMITs that fail next."""
        self.losses = 0
        """How many messages of clients are answered by the end of their connection."""
        self.away = False

    def before_commit(self) -> bytes | None:
        """Return the ErrorResponse of a COMMIT that is to fail."""
        try:
            sqlstate, words = self.commits.popleft()
        except IndexError:
            return None
        return problem(b"E", "ERROR", sqlstate, words)

    def before_message(self) -> None:
        """Raise `ClosedError` where the connection is to be lost."""
        if self.away:
            raise ClosedError
        if self.losses:
            self.losses -= 1
            raise ClosedError


class Turn:
    """Who may use the connection: one client at a time, from the beginning of a transaction to its end."""

    def __init__(self, patience: float) -> None:
        self.holder: Client | None = None
        self._patience = patience
        self._since = 0.0
        self._queue: deque[Client] = deque()
        self._changed = threading.Condition()
        self._ended = False

    def take(self, session: Client) -> None:
        """Wait for the turn of *session*; raise `RefusedError` where that takes too long."""
        with self._changed:
            self._queue.append(session)
            session.cancelled = False

            def may_go_on() -> bool:
                return self._is_next(session) or session.cancelled or self._ended

            try:
                self._changed.wait_for(may_go_on, self._patience)
                if self._ended:
                    raise ClosedError
                if session.cancelled:
                    raise RefusedError("57014", "canceling statement due to user request", "")
                if not self._is_next(session):
                    raise self._late()
                self.holder, self._since = session, monotonic()
            finally:
                self._queue.remove(session)
                self._changed.notify_all()

    def _is_next(self, session: Client) -> bool:
        return self.holder is None and self._queue[0] is session

    def _late(self) -> RefusedError:
        holder = self.holder
        doing = "" if holder is None or not holder.running else f", whose last statement was: {holder.running}"
        return RefusedError(
            "55P03",
            f"a sandbox has one transaction at a time, and for {monotonic() - self._since:.1f} s another connection has"
            f" been in one{doing}",
            "End that transaction first.  For transactions side by side use the fixture pgmonkey_database, which gives"
            " the test a database of its own.",
        )

    def take_at_once(self, session: Client) -> bool:
        """Take the turn if nobody has it or waits for it; tell whether that was so."""
        with self._changed:
            if self.holder is None and not self._queue:
                self.holder, self._since = session, monotonic()
            return self.holder is session

    def give(self, session: Client) -> None:
        """End the turn of *session*, if it has it."""
        with self._changed:
            if self.holder is session:
                self.holder = None
                self._changed.notify_all()

    def wake(self, session: Client) -> None:
        """Have *session* stop waiting."""
        with self._changed:
            session.cancelled = True
            self._changed.notify_all()

    def close(self) -> None:
        """Have all stop waiting."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class Branch:
    """One database of a sandbox."""

    def __init__(self, dsn: str, patience: float, faults: Faults, counting: Collection[Counts]) -> None:
        self.backend = Backend(dsn)
        self.turn = Turn(patience)
        self.faults = faults
        self._counting = counting
        self._known: dict[frozenset[tuple[str, str]], tuple[dict[str, str], dict[str, str]]] = {}
        """What `startup` returns, by what was asked for."""

    def startup(self, asked: dict[str, str], session: Client) -> tuple[dict[str, str], dict[str, str]]:
        """Return the settings of a client that has *asked* for some, and what the server reports to it.

        Raises `RefusedError` where the server does not know them.
        """
        key = frozenset(asked.items())
        if key not in self._known:
            self.turn.take(session)
            try:
                base = dict(asked)
                # The configuration's user counts where the server has it: row-level security looks at it.
                user = base["session_authorization"]
                if user == self.backend.user or not self.backend.changes_user or not self._is_user(user):
                    del base["session_authorization"]
                error = self.backend.apply(base)
                if error is not None:
                    fields = _messages.fields_of(error)
                    raise RefusedError(fields.get("C", "XX000"), fields.get("M", ""), fields.get("H", ""))
                self._known[key] = base, dict(self.backend.parameters)
            finally:
                self.turn.give(session)
        return self._known[key]

    def _is_user(self, name: str) -> bool:
        return bool(self.backend.query(f"SELECT FROM pg_catalog.pg_roles WHERE rolname = {literal(name)}").rows)

    def count(self, session: Client, part: Part) -> None:
        """Note a statement that is about to be executed."""
        session.running = part.text.decode("utf-8", "replace")
        for counts in list(self._counting) if part.counts else ():
            counts.texts.append(session.running)
            counts.used.add(session.number)

    def count_round_trip(self) -> None:
        """Note that a client waits for the server."""
        for counts in list(self._counting):
            counts.round_trips += 1

    def close(self) -> None:
        """Roll everything back; statements that are running are cancelled."""
        self.turn.close()
        if self.turn.holder is not None:
            self.backend.cancel()
