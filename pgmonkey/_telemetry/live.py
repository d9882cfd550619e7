"""What this process tells those who look at it: its pools, who waits and who holds, what is slow and what fails."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable
from time import monotonic, time
from typing import Any, Protocol

from .events import Borrow, Execution, Listener, Loan, Subject, reason_of
from .sockets import Server
from .statements import shown

MOST = 10
"""How many holders, slow statements and errors are told of each pool."""
WAITS_OF = 60.0
"""How long the wait of a borrower counts, in seconds."""
SLOW_OF = 600.0
"""How long a slow statement is told, in seconds."""
_MOST_WAITS = 2000
_LONGEST = 300  # characters of a statement


class Looked(Protocol):
    """A pool, as far as it is looked at."""

    subject: Subject

    @property
    def closed(self) -> bool:
        """Whether the pool was closed."""
        ...

    @property
    def last_error(self) -> str | None:
        """Why no connection could be made the last time."""
        ...

    def stats(self) -> dict[str, int]:
        """Return the pool's counters, named as in psycopg_pool."""
        ...

    def held_longest(self, most: int) -> list[tuple[float, str]]:
        """Return since how many seconds connections are lent, and where they were borrowed."""
        ...


class _Seen:
    """What was seen of the pools of one name."""

    def __init__(self) -> None:
        self.server = ""
        self.waits: deque[tuple[float, float]] = deque(maxlen=_MOST_WAITS)
        self.slow: list[dict[str, Any]] = []
        self.errors: deque[dict[str, Any]] = deque(maxlen=MOST)


class Live(Listener):
    """Keeps what `snapshot` tells, and answers who asks this process by its socket."""

    def __init__(self, pools: Iterable[Looked]) -> None:
        self._pools = pools
        self._seen: dict[str, _Seen] = {}
        self._pid = os.getpid()
        self._server = Server(self.snapshot)

    def start(self) -> bool:
        """Answer in this process from now on; tell whether that is possible."""
        if self._pid != os.getpid():  # what was seen in the parent process is the parent's
            self._seen, self._pid = {}, os.getpid()
        return self._server.start()

    def borrowed(self, event: Borrow) -> None:
        """Note how long a borrower has waited."""
        self._of(event.loan).waits.append((monotonic(), event.waited))

    def executed(self, event: Execution) -> None:
        """Note a statement that is among the slowest, or fails."""
        seen = self._of(event.loan)
        if event.error is not None:
            seen.errors.append({"what": reason_of(event.error), **_told(event)})
        now, slow = time(), seen.slow
        if slow and now - slow[-1]["at"] > SLOW_OF:
            slow = seen.slow = [one for one in slow if now - one["at"] <= SLOW_OF]
        if len(slow) < MOST or event.seconds > slow[-1]["seconds"]:
            one = {"seconds": event.seconds, **_told(event)}
            same = next((other for other in slow if other["statement"] == one["statement"]), None)
            if same is None or same["seconds"] < one["seconds"]:
                others = [other for other in slow if other is not same]
                seen.slow = sorted([*others, one], key=lambda other: -other["seconds"])[:MOST]

    def _of(self, loan: Loan) -> _Seen:
        name = loan.subject.name
        seen = self._seen.get(name)
        if seen is None:
            seen = self._seen.setdefault(name, _Seen())
            address, port, database = loan.server
            seen.server = f"{address}:{port}/{database}" if port else f"{address} {database}"
        return seen

    def snapshot(self) -> dict[str, Any]:
        """Return the pools of this process, to be written as JSON."""
        pools = [self._told(pool) for pool in list(self._pools) if not pool.closed and pool.subject.settings.live_view]
        return {"pid": os.getpid(), "program": os.path.basename(sys.argv[0]), "pools": pools}

    def _told(self, pool: Looked) -> dict[str, Any]:
        name = pool.subject.name
        seen = self._seen.get(name) or _Seen()
        since, recently = monotonic() - WAITS_OF, time() - SLOW_OF
        return {
            "name": name,
            "server": seen.server,
            "stats": pool.stats(),
            "waits": [round(waited, 6) for at, waited in list(seen.waits) if at >= since],
            "held": pool.held_longest(MOST),
            "slow": [one for one in seen.slow if one["at"] >= recently],
            "errors": list(seen.errors),
            "last_error": pool.last_error,
        }


def _told(event: Execution) -> dict[str, Any]:
    text = " ".join(shown(event.query).text.split())
    return {
        "at": time(),
        "statement": text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...",
        "route": event.loan.route,
        "place": str(event.place).removeprefix("at "),
    }
