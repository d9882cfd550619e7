"""How long a request may take, as a setting of the application or a header of the request says."""

from __future__ import annotations

from math import isfinite

from ..errors import ConfigError
from .deadlines import Deadline

_MILLISECONDS = "-ms"


class RequestDeadline:
    """What gives each request its deadline: *seconds* for all, or those in its *header*, whichever is less.

    *setting* is what messages call the seconds.  A header whose name ends in ``-ms`` gives milliseconds; what is no
    positive number in it is ignored.  Raises `ConfigError` for *seconds* that are none.
    """

    def __init__(self, seconds: float | None, header: str | None, setting: str) -> None:
        if seconds is not None and not (isinstance(seconds, (int, float)) and isfinite(seconds) and seconds > 0):
            raise ConfigError(f"{setting}: expected a positive number of seconds, got {seconds!r}")
        self.header = header
        """The name of the header; None where there is none."""
        self._seconds = seconds
        self._setting = setting

    def begin(self, value: str | None) -> Deadline | None:
        """Return the deadline of a request that begins now, with that *value* of the header; None for none."""
        seconds, name = self._seconds, self._setting
        asked = self._read(value)
        if asked is not None and (seconds is None or asked < seconds):
            seconds, name = asked, str(self.header)
        return None if seconds is None else Deadline.after(seconds, name)

    def _read(self, value: str | None) -> float | None:
        try:
            number = float(value or "")
        except ValueError:
            return None
        if self.header is not None and self.header.lower().endswith(_MILLISECONDS):
            number /= 1000
        return number if isfinite(number) and number > 0 else None
