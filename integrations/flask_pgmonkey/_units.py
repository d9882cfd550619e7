"""The units of work of one request, and how they end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager

from psycopg.pq import TransactionStatus

from pgmonkey import CommitUnknownError, Database, Deadline, UnitOfWork

from ._database import TransactionOptions

logger = logging.getLogger("pgmonkey")

_DEFAULTS: TransactionOptions = {}
_HEALTHY = (TransactionStatus.IDLE, TransactionStatus.INTRANS)


class RefusedError(Exception):
    """Why a unit of work is rolled back although nothing was raised."""


class RequestUnits:
    """The units of work of a request, by the key of the database.

    The status of the response ends them, unless `decide` was called; an exception rolls back what was done before it.
    """

    def __init__(self, owner: object, label: Callable[[RequestUnits], str]) -> None:
        self.owner = owner
        """The middleware that serves the request: an application may be mounted in another one."""
        self.route: object = None
        """The URL rule that the request matched."""
        self.handles_exception = False
        """Whether Flask is answering an exception that no handler of its own class took."""
        self.unavailable: Exception | None = None
        """Why there is no connection, until Flask answers that."""
        self.committed = False
        """Whether anything was, so that the server must not answer an error any more."""
        self.deadline: Deadline | None = None
        """When its statements must have ended, as long as the response has not started."""
        self._label = label
        self._units: dict[str | None, UnitOfWork[object]] = {}
        self._keep: bool | None = None

    def __str__(self) -> str:
        return self._label(self)

    def begin(self, key: str | None, database: Database[object], options: TransactionOptions = _DEFAULTS) -> None:
        """Open the unit of work for *key*."""
        self._units[key] = database.begin(label=self.__str__, **options)

    def end(self, key: str | None) -> None:
        """End the unit of work for *key* early: each statement from here on is its own transaction (autocommit)."""
        if key in self._units:
            self._units.pop(key).finish()

    def decide(self, keep: bool) -> None:
        """Commit or roll back in the end, whatever the status; raise RuntimeError when the end was already."""
        if not self._units:
            raise RuntimeError(f"{self}: there is no transaction of this request, or it has ended")
        self._keep = keep

    # -- exceptions -------------------------------------------------------------------------------------------------

    def roll_back(self, error: BaseException) -> None:
        """Roll back what was done before *error*, unless it can be kept and shall be; the request goes on."""
        if self._keep:
            if all(map(_can_commit, self._units.values())):
                return
            self._keep = None  # what it would have kept is lost
        self._log(type(error).__name__, self._units.values())
        for unit in self._units.values():
            unit.roll_back(error)

    @contextmanager
    def undone_alone(self) -> Iterator[None]:
        """Undo what the block does, and nothing else, when it raises."""
        unused = [unit for unit in self._units.values() if not unit.borrowed]
        try:
            with ExitStack() as savepoints:
                for unit in self._units.values():
                    if unit.borrowed and _can_commit(unit):
                        savepoints.enter_context(unit.connection().transaction())
                yield
        except Exception as error:
            for unit in unused:
                unit.roll_back(error)
            raise

    # -- the end ----------------------------------------------------------------------------------------------------

    def answer(self, status: int) -> None:
        """End them as the *status* that leaves says, or `decide`; raise what fails a COMMIT."""
        keep = status < 400 if self._keep is None else self._keep
        why = "rollback_request()" if self._keep is False else f"status {status}"
        self._finish(None if keep else RefusedError(why), why)

    def fail(self, error: BaseException) -> None:
        """End them with an *error* that nobody answered; do nothing when they have ended."""
        if self._units:
            keep = self._keep and isinstance(error, Exception)
            self._finish(None if keep else error, type(error).__name__)

    def _finish(self, error: BaseException | None, why: str) -> None:
        """Commit them, one after the other, or roll all back when there is an *error*; raise what fails a COMMIT."""
        if error is not None:
            self._log(why, self._units.values())
        units, self._units = list(self._units.values()), {}
        used = any(unit.borrowed for unit in units)
        self._keep = None
        if len(units) > 1:
            # What cannot be committed comes first, and takes the others with it.
            units.sort(key=_can_commit)
        failure = error
        outcome = "rolled back"
        for unit in units:
            # All must be finished, to give their connections back.  After a COMMIT that failed, the others roll back.
            try:
                unit.finish(failure)
                if failure is None and unit.borrowed:
                    outcome = "committed in part"
            except BaseException as reason:
                failure = failure or reason
        self.committed = used and failure is None
        if failure is not None and failure is not error:
            if isinstance(failure, CommitUnknownError):
                outcome = "outcome unknown"
            self._log(type(failure).__name__, units, outcome)
            raise failure

    def _log(self, why: str, units: Collection[UnitOfWork[object]], outcome: str = "rolled back") -> None:
        if logger.isEnabledFor(logging.DEBUG) and any(unit.borrowed for unit in units):
            statements = sum(unit.statements for unit in units)
            logger.debug("%s: %s: %s (statements: %d)", self, outcome, why, statements)


def _can_commit(unit: UnitOfWork[object]) -> bool:
    return not unit.borrowed or unit.connection().info.transaction_status in _HEALTHY
