"""What has been heard on the channels of one listener, and was not taken yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from psycopg import Notify

# The longest name of a channel in bytes: PostgreSQL cuts off what is longer.
_LONGEST = 63
# What a listener that takes nothing is kept, in notifications.
_MOST = 10_000


@dataclass(frozen=True)
class Gap:
    """Notifications may have been missed here: look up what has changed."""

    reason: str
    """Why, such as the server's last words before the connection was lost."""
    seconds: float = 0.0
    """How long nothing was heard."""


Note: TypeAlias = "Notify | Gap"
"""What listeners are given."""


class Mailbox:
    """The notifications of some channels that one listener has not taken yet."""

    def __init__(self, channels: Iterable[str]) -> None:
        self.channels = tuple(dict.fromkeys(channels))
        """The names, without repetitions."""
        for name in self.channels:
            if not 0 < len(name.encode()) <= _LONGEST:
                raise ValueError(f"{name!r} is not a channel name, which has 1 to {_LONGEST} bytes")
        if not self.channels:
            raise ValueError("no channel to listen to; name one, as in listen('orders')")
        self.notes: deque[Note] = deque()
        self.heard = False
        """Whether the server was told to send what comes on all of the channels."""
        self.closed = False

    def put(self, note: Note) -> None:
        """Add *note*; where too many were not taken, a gap takes the place of all."""
        if len(self.notes) >= _MOST:
            self.notes.clear()
            note = Gap(f"more than {_MOST} notifications were not taken in time")
        self.notes.append(note)
