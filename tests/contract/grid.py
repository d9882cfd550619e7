"""Random programs of a web application, and an account of what each may leave in its databases.  Knows no framework.

A *program* says what the parts of an application do: its endpoint, and whoever else may answer the request.  A test
builds it for its framework, serves it, sends one request, and compares the rows that are stored with
`Account.stored`, which is told nothing but what happened and the status that left::

    with account.part(answers=status_of):
        for touch, row in account.steps(part):
            ...  # do it
        ...  # end as part.end says
"""

from __future__ import annotations

import builtins
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from pgmonkey.embedded import Server

from .conftest import SCHEMA

GROUP: Any = getattr(builtins, "ExceptionGroup", None)  # of Python 3.11

TOUCHES = (
    "write",  # one row
    "write elsewhere",  # one row, in the second database
    "nested",  # one row, in a nested block
    "undone",  # one row, in a nested block that raises; the error is caught around the block
    "read",
    "late",  # one row that the server refuses at COMMIT
    "caught",  # a statement that fails, whose error is caught
    "close",  # reads, and closes the connection of the request
    "keep",  # keep_request()
    "roll back",  # rollback_request()
)
WITH = "with"  # one row, in "with connection:", for the frameworks that lend psycopg's own
ENDS = (
    "return",
    "stream",  # returns a response whose body is a generator
    "refuse",  # raises the framework's HTTP exception with this status
    "answer",  # raises the framework's HTTP exception that carries a response of this status, where there is one
    "raise",  # raises Crash
    *(("group",) if GROUP else ()),  # raises an ExceptionGroup with a Crash in it
)
STATUSES = (200, 201, 302, 400, 409, 500)

EXAMPLES = int(os.environ.get("PGMONKEY_EXAMPLES", "60"))
EVERY_EXAMPLE = settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=set(Phase) - {Phase.explain},  # which takes a hundred requests more
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Crash(Exception):
    """What a part raises that is no answer."""


@dataclass(frozen=True)
class Part:
    """What one part of an application does: it touches the databases, then it ends."""

    touches: tuple[str, ...]
    end: str
    status: int


@dataclass(frozen=True)
class Program:
    """An application of one endpoint."""

    parts: Mapping[str, Part]
    """What each part does, by its name; there is always an ``endpoint``."""
    turns: Mapping[str, int]
    """The status that a middleware answers with whatever it got, response or exception, by the middleware's name."""
    order: tuple[str, ...]
    """In which order the application is set up."""


def programs(
    others: Sequence[str] = (),
    middlewares: Sequence[str] = (),
    order: Sequence[str] = (),
    touches: Sequence[str] = TOUCHES,
    ends: Sequence[str] = ENDS,
) -> st.SearchStrategy[Program]:
    """Draw programs of an endpoint and perhaps some of *others* and *middlewares*, set up in any *order*."""
    some = st.lists(st.sampled_from(touches), max_size=4).map(tuple)
    parts = st.builds(Part, some, st.sampled_from(ends), st.sampled_from(STATUSES))
    return st.builds(
        Program,
        parts=st.fixed_dictionaries({"endpoint": parts}, optional=dict.fromkeys(others, parts)),
        turns=st.fixed_dictionaries({}, optional=dict.fromkeys(middlewares, st.sampled_from(STATUSES))),
        order=st.permutations(order).map(tuple),
    )


_rows = itertools.count(1)


def number_rows_anew() -> None:
    """Let the next account write the same rows as one did after the last call."""
    global _rows
    _rows = itertools.count(1)


@dataclass
class Account:
    """What one request has done so far that its end may store."""

    pending: list[int] = field(default_factory=list)
    """The rows that were written and not undone."""
    broken: bool = False
    """Whether every further statement fails, and so does the COMMIT."""
    closed: bool = False
    """Whether it is because its connection was closed, which no savepoint undoes."""
    doomed: bool = False
    """Whether the COMMIT fails."""
    decision: bool | None = None
    """What keep_request() or rollback_request() decided."""
    _known: list[BaseException] = field(default_factory=list)

    @contextmanager
    def part(
        self,
        *,
        answers: Callable[[BaseException], int | None] | None = None,
        handles: BaseException | None = None,
        alone: bool = False,
    ) -> Iterator[None]:
        """Be the block in which a part runs.

        *answers* returns the status of what leaves the part where that is an HTTP exception of the framework, which is
        an answer, and None otherwise.  *handles* is the error that the part answers, if any.  *alone*: the framework
        ignores what the part raises, so that undoes nothing but what the part did.
        """
        if handles is not None and not any(handles is error for error in self._known):
            self._undo()  # no part raised it: it is what made the COMMIT fail
            self._known.append(handles)
        before = list(self.pending), self.broken, self.doomed
        try:
            yield
        except BaseException as error:
            self._known.append(error)
            status = answers(error) if answers is not None else None
            if alone:
                self.pending, self.broken, self.doomed = before
                self.broken = self.broken or self.closed
            elif (status is None or status >= 400) and (self.broken or not self.decision):
                self._undo()
            raise

    def steps(self, part: Part) -> Iterator[tuple[str, int]]:
        """Give each touch of *part*, with a row of its own, to be done by the caller."""
        for touch in part.touches:
            row = next(_rows)
            yield touch, row
            if touch in ("write", "write elsewhere", "nested", WITH):
                self.pending.append(row)
            elif touch in ("caught", "close"):
                self.broken = True
                self.closed = self.closed or touch == "close"
            elif touch == "late":
                self.doomed = True
            elif touch in ("keep", "roll back"):
                self.decision = touch == "keep"

    def stored(self, status: int) -> list[int]:
        """Return the rows that must be stored, in order, when *status* has left; raise AssertionError if it may not."""
        keeps = status < 400 if self.decision is None else self.decision
        if keeps and (self.broken or self.doomed):
            assert status >= 400 or not self.pending, f"{status} left, but {self.pending} cannot have been committed"
            return []
        return self.pending if keeps else []

    def _undo(self) -> None:
        self.pending, self.broken, self.closed, self.doomed = [], False, False, False
        if self.decision:
            self.decision = None  # what it would have kept is gone


# -- what programs write to -------------------------------------------------------------------------------------------


_numbers = itertools.count(1)


class TwoDatabases:
    """Two databases, the configurations that name them, and an observer of each."""

    def __init__(self, server: Server, name: str) -> None:
        names = [f"grid_{name}_{next(_numbers)}_{os.getpid()}" for _ in range(2)]
        for each in names:
            server.create_database(each)
        pool = {"min_size": 1, "max_size": 4, "timeout": 10}
        pools = {"pool_settings": pool, "async_pool_settings": pool}
        self.configs: list[dict[str, Any]] = [{**server.config(each), **pools} for each in names]
        self.observers = [psycopg.connect(server.dsn(each), autocommit=True) for each in names]
        for observer in self.observers:
            observer.execute(SCHEMA)

    def stored(self) -> list[int]:
        """Return the rows that are there, and remove them."""
        return sorted(row[0] for one in self.observers for row in one.execute("DELETE FROM t RETURNING a"))

    def close(self) -> None:
        for observer in self.observers:
            observer.close()


@contextmanager
def unlogged() -> Iterator[None]:
    """Log nothing: neither the exceptions that nobody handles, nor their tracebacks."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
