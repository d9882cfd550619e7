"""The logger ``pgmonkey.sql``: statements and the ends of transactions; ``pgmonkey.pool``: who has which connection."""

from __future__ import annotations

import logging
from typing import Any

from .._driver.failure import written
from .events import Borrow, Ending, Execution, Listener, Loan, Return, reason_of
from .statements import shown

logger = logging.getLogger("pgmonkey.sql")
pool_logger = logging.getLogger("pgmonkey.pool")

# In characters of a message: the field ``statement`` of a record has the whole.
_LONGEST = 500
_MORE = 3


class SqlLog(Listener):
    """Logs at DEBUG, and what is slower than ``slow_statement_threshold`` as a WARNING."""

    def executed(self, event: Execution) -> None:
        """Log a statement."""
        threshold = event.loan.subject.settings.slow_statement_threshold
        if threshold and event.seconds >= threshold:
            place = str(event.place).removeprefix("at ")
            _log_statement(event, logging.WARNING, "slow statement, ", f", at {place}", place=place)
        elif logger.isEnabledFor(logging.DEBUG):
            _log_statement(event, logging.DEBUG)

    def ended(self, event: Ending) -> None:
        """Log the end of a transaction."""
        if logger.isEnabledFor(logging.DEBUG):
            why = "" if event.error is None else f" because of {event.reason}"
            fields = {"outcome": event.outcome, "reason": event.reason, "statements": event.statements}
            _log(
                logger,
                event.loan,
                event.seconds,
                f"{event.outcome.upper()}{why}, statements: {event.statements}",
                **fields,
            )

    def borrowed(self, event: Borrow) -> None:
        """Log that a connection was lent."""
        if pool_logger.isEnabledFor(logging.DEBUG):
            _log(pool_logger, event.loan, event.waited, "lent a connection, waited")

    def returned(self, event: Return) -> None:
        """Log that a connection was given back."""
        if pool_logger.isEnabledFor(logging.DEBUG):
            _log(pool_logger, event.loan, event.seconds, "got a connection back, lent for")


def _log_statement(event: Execution, level: int, before: str = "", behind: str = "", **fields: Any) -> None:
    settings = event.loan.subject.settings
    statement = written(event.query) if settings.log_parameters else shown(event.query).text
    line = " ".join(statement.split())
    line = line if len(line) <= _LONGEST else f"{line[: _LONGEST - _MORE]}..."
    rows = "" if event.rows < 0 else f", {event.rows} row{'s' * (event.rows != 1)}"
    error = None if event.error is None else reason_of(event.error)
    failed = "" if error is None else f", failed: {error}"
    milliseconds = event.seconds * 1000
    if settings.log_parameters:
        fields["parameters"] = event.params
        behind = f"{behind}, parameters: {event.params!r}"
    fields.update(_fields(event.loan, milliseconds), statement=statement, rows=event.rows, error=error)
    message = f"{before}%.1f ms%s%s%s: %s%s"
    logger.log(level, message, milliseconds, rows, failed, _for(event.loan), line, behind, extra=fields)


def _log(into: logging.Logger, loan: Loan, seconds: float, what: str, **fields: Any) -> None:
    fields.update(_fields(loan, seconds * 1000))
    into.debug("%s: %s %.1f ms%s", loan.subject.name, what, seconds * 1000, _for(loan), extra=fields)


def _fields(loan: Loan, milliseconds: float) -> dict[str, Any]:
    return {"pool": loan.subject.name, "milliseconds": milliseconds, "route": loan.route}


def _for(loan: Loan) -> str:
    route = loan.route
    return "" if route is None else f", for {route}"
