"""The pools of all processes together, as `pgmonkey top` and the page show them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from time import time
from typing import Any

from .live import MOST


@dataclass(frozen=True)
class Held:
    """A connection that is lent."""

    pid: int
    seconds: float
    where: str


@dataclass(frozen=True)
class Told:
    """A statement that was slow, or failed."""

    pid: int
    ago: float
    seconds: float | None
    what: str
    """What it failed with; empty for one that was slow."""
    where: str
    statement: str


@dataclass
class PoolView:
    """The pools of one name, of all processes together; times in seconds."""

    name: str
    server: str = ""
    processes: dict[int, dict[str, int]] = field(default_factory=dict)
    """The counters of each process, by its number."""
    stats: dict[str, int] = field(default_factory=dict)
    """The sums of the counters."""
    waits: list[float] = field(default_factory=list)
    """How long borrowers have waited in the last minute, the shortest first."""
    held: list[Held] = field(default_factory=list)
    slow: list[Told] = field(default_factory=list)
    errors: list[Told] = field(default_factory=list)
    unreachable: dict[int, str] = field(default_factory=dict)
    """Why a process could not connect the last time."""

    @property
    def size(self) -> int:
        """How many connections there are."""
        return self.stats.get("pool_size", 0)

    @property
    def used(self) -> int:
        """How many of them are lent."""
        return self.size - self.stats.get("pool_available", 0)

    def wait(self, share: float) -> float:
        """Return the wait that this *share* of the borrowers did not exceed."""
        return self.waits[min(int(share * len(self.waits)), len(self.waits) - 1)] if self.waits else 0.0


def views(answers: Iterable[dict[str, Any]], names: Collection[str] | None = None) -> list[PoolView]:
    """Return the pools in *answers* of processes, those of the *names* if given, in the order of their names."""
    found: dict[str, PoolView] = {}
    for answer in answers:
        pid = int(answer.get("pid", 0))
        for pool in answer["pools"]:
            if names is None or pool["name"] in names:
                _add(found.setdefault(pool["name"], PoolView(plain(pool["name"]))), pid, pool)
    for view in found.values():
        view.waits.sort()
        view.held = sorted(view.held, key=lambda held: -held.seconds)[:MOST]
        slowest: dict[str, Told] = {}
        for told in sorted(view.slow, key=lambda told: -(told.seconds or 0)):
            slowest.setdefault(told.statement, told)  # several processes execute the same one
        view.slow = list(slowest.values())[:MOST]
        view.errors = sorted(view.errors, key=lambda told: told.ago)[:MOST]
    return [found[name] for name in sorted(found)]


def _add(view: PoolView, pid: int, pool: dict[str, Any]) -> None:
    view.server = view.server or plain(pool["server"])
    own = view.processes.setdefault(pid, {})
    for counter, value in pool["stats"].items():
        own[counter] = own.get(counter, 0) + int(value)
        view.stats[counter] = view.stats.get(counter, 0) + int(value)
    view.waits += map(float, pool["waits"])
    view.held += [Held(pid, float(seconds), plain(where)) for seconds, where in pool["held"]]
    view.slow += [_told(pid, one) for one in pool["slow"]]
    view.errors += [_told(pid, one) for one in pool["errors"]]
    if pool["last_error"]:
        view.unreachable[pid] = plain(pool["last_error"])


def _told(pid: int, one: dict[str, Any]) -> Told:
    route = f"for {one['route']}, " if one["route"] else ""
    ago, took, what = max(time() - one["at"], 0.0), one.get("seconds"), plain(one.get("what", ""))
    return Told(pid, ago, took, what, plain(f"{route}at {one['place']}"), plain(one["statement"]))


def plain(text: object) -> str:
    """Return *text* on one line, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in " ".join(str(text).split()))


def sections(view: PoolView) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return what is told of *view* below its sums: titles, each with rows of a time, a process and a text."""
    return [
        ("Held longest", [(seconds(one.seconds), str(one.pid), one.where) for one in view.held]),
        (
            "Slowest statements of the last 10 minutes",
            [(seconds(one.seconds or 0), str(one.pid), f"{one.where}: {one.statement}") for one in view.slow],
        ),
        (
            "Last errors",
            [(f"{one.ago:.0f} s ago", str(one.pid), f"{one.what} {one.where}: {one.statement}") for one in view.errors],
        ),
        ("Cannot connect", [("", str(pid), why) for pid, why in view.unreachable.items()]),
    ]


def summary(view: PoolView) -> list[tuple[str, str]]:
    """Return the sums of *view*, each with its name."""
    stats = view.stats
    return [
        ("processes", str(len(view.processes))),
        ("connections", f"{view.size} of {stats.get('pool_max', 0)}"),
        ("in use", str(view.used)),
        ("idle", str(stats.get("pool_available", 0))),
        ("waiting", str(stats.get("requests_waiting", 0))),
        ("timed out", str(stats.get("requests_errors", 0))),
        ("leaks", str(stats.get("connections_leaked", 0))),
    ]


def waiting(view: PoolView) -> str:
    """Return how long borrowers have waited."""
    if not view.waits:
        return "no borrower in the last minute"
    shares = ((0.5, "half"), (0.95, "95 %"), (0.99, "99 %"))
    parts = [f"{name} within {seconds(view.wait(share))}" for share, name in shares]
    return f"{len(view.waits)} borrowers in the last minute, served: {', '.join(parts)}, all {seconds(view.waits[-1])}"


def seconds(number: float) -> str:
    """Return *number* of seconds for people."""
    return f"{number:.1f} s" if number >= 1 else f"{number * 1000:.1f} ms"


def as_text(found: list[PoolView]) -> list[str]:
    """Return the lines of a terminal that show the pools *found*."""
    lines: list[str] = []
    for view in found:
        lines += [f"{view.name}  {view.server}", "  " + "   ".join(f"{name} {value}" for name, value in summary(view))]
        lines.append(f"  {waiting(view)}")
        for pid, stats in sorted(view.processes.items()):
            size, idle = stats["pool_size"], stats["pool_available"]
            lines.append(
                f"    process {pid}: {size} of {stats['pool_max']}, {size - idle} in use, "
                f"{stats['requests_waiting']} waiting"
            )
        for title, rows in sections(view):
            if rows:
                lines.append(f"  {title}")
                lines += [f"    {when:>9}  {pid:>7}  {text}" for when, pid, text in rows]
        lines.append("")
    return lines
