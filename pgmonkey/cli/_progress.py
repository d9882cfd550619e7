"""How far ``import`` and ``export`` are, for the person at a terminal."""

from __future__ import annotations

import sys
from time import monotonic

# Seconds between two reports.
_EVERY = 0.2


class Progress:
    """A line on stderr that is written again and again, where that is a terminal."""

    def __init__(self, size: int = 0) -> None:
        self._size = size
        self._started = self._last = monotonic()
        self._shown = False
        self._wanted = sys.stderr.isatty()

    def show(self, rows: int, done: int, position: int = 0) -> None:
        """Report *rows* and *done* bytes; *position* is how much of the file's size that is."""
        now = monotonic()
        if not self._wanted or now - self._last < _EVERY:
            return
        self._last, self._shown = now, True
        seconds = now - self._started
        text = f"{rows:,} rows, {done / 1e6 / seconds:.1f} MB/s"
        if 0 < position < self._size:
            left = round(seconds / position * (self._size - position))
            text += f", {100 * position // self._size} %, {left // 60}:{left % 60:02} left"
        sys.stderr.write(f"\r{text}\033[K")
        sys.stderr.flush()

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
