# Generated from tests/_async/test_stateful.py by tools/twins.py: change that file, then run the tool.

"""Random programs of blocks, side by side: what is stored is what was acknowledged, and nothing else."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgmonkey import Database

from ..configs import pools
from .concurrency import Beside
from .test_unit import Observer, rows

EXAMPLES = int(os.environ.get("PGMONKEY_EXAMPLES", "75"))
pytestmark = pytest.mark.timeout(10 * EXAMPLES)  # seconds: ten a program, on a busy machine
MANY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# Of these, "psycopg" is the connection's own ``transaction()`` or ``execute()``.
BLOCKS = ("transaction", "unit_of_work", "psycopg", "retry")
WAYS = ("execute", "fetch_value", "execute_many", "psycopg")
INSERT = "INSERT INTO t VALUES (%s)"


@dataclass(frozen=True)
class Write:
    """One row is written in this way."""

    way: str


@dataclass(frozen=True)
class Wrong:
    """A statement fails, and its error is caught."""


@dataclass(frozen=True)
class Late:
    """A statement on the connection of a block that has ended: an error, always."""


@dataclass(frozen=True)
class Inside:
    """Steps in a block, which perhaps ends with an error that is *caught* around it."""

    way: str
    steps: tuple[Any, ...]
    fails: bool
    caught: bool


@dataclass(frozen=True)
class Started:
    """Steps beside what follows, which are *awaited* at the end of the block around them, or of the program."""

    steps: tuple[Any, ...]
    awaited: bool


def _steps(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=5).map(tuple)
    return st.builds(Inside, st.sampled_from(BLOCKS), several, st.booleans(), st.booleans()) | st.builds(
        Started, several, st.booleans()
    )


steps = st.builds(Write, st.sampled_from(WAYS)) | st.builds(Wrong) | st.builds(Late)
programs = st.lists(_steps(st.recursive(steps, _steps, max_leaves=24)), min_size=1, max_size=3).map(tuple)


class Failure(Exception):
    """What a program raises."""


@dataclass(eq=False)
class Block:
    """What became of a block."""

    ending: bool = False
    over: bool = False
    succeeded: bool = False


@dataclass
class Row:
    """A row whose statement has succeeded, in these blocks; *racing* where one of them ended meanwhile."""

    number: int
    blocks: tuple[Block, ...]
    racing: bool


class Run:
    """A program that is run, and what was told to it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.rows: list[Row] = []
        self.beside: list[Beside] = []
        self.ended: list[Any] = []
        self.numbers = itertools.count(1)

    def do(self, steps: tuple[Any, ...], blocks: tuple[Block, ...]) -> None:
        """Do *steps* inside *blocks*."""
        waiting: list[Beside] = []
        try:
            for step in steps:
                match step:
                    case Write(way):
                        with suppress(psycopg.Error):
                            self.write(way, blocks)
                    case Wrong():
                        with suppress(psycopg.Error):
                            self.database.execute("SELECT 1 / 0")
                    case Late():
                        for connection in self.ended:
                            with pytest.raises(psycopg.Error):
                                connection.execute(INSERT, [-1])
                    case Inside(caught=True):
                        with suppress(Failure, psycopg.Error):
                            self.inside(step, blocks)
                    case Inside():
                        self.inside(step, blocks)
                    case Started():
                        beside = Beside(partial(self.do, step.steps, blocks))
                        (waiting if step.awaited else self.beside).append(beside)
        finally:
            for beside in waiting:
                beside.end()

    def write(self, way: str, blocks: tuple[Block, ...]) -> None:
        """Write one row, and note it when that has succeeded."""
        database, number = self.database, next(self.numbers)
        inside = tuple(block for block in blocks if not block.over)
        unit = database.current_unit()
        if way == "psycopg" and unit is not None:
            (unit.connection()).execute(INSERT, [number])
        elif way == "execute_many":
            database.execute_many(INSERT, [[number]])
        elif way == "fetch_value":
            assert database.fetch_value(INSERT + " RETURNING a", [number]) == number
        else:
            assert database.execute(INSERT, [number]) == 1
        self.rows.append(Row(number, inside, racing=any(block.ending for block in inside)))

    def inside(self, step: Inside, blocks: tuple[Block, ...]) -> None:
        """Do the steps of a block."""
        block = Block()

        def body() -> None:
            try:
                self.do(step.steps, (*blocks, block))
                if step.fails:
                    raise Failure
            finally:
                block.ending = True

        try:
            self.around(step.way, body)
            block.succeeded = True
        finally:
            block.over = True

    def around(self, way: str, body: Callable[[], None]) -> None:
        database = self.database
        unit = database.current_unit()
        if way == "retry":
            database.retry(body)
        elif way == "psycopg" and unit is not None:
            with (unit.connection()).transaction():
                body()
        elif way == "unit_of_work":
            with database.unit_of_work():
                body()
        else:
            with database.transaction() as connection:
                body()
            if unit is None:
                self.ended.append(connection)

    def to_end(self, program: tuple[Any, ...]) -> None:
        """Run the whole *program*."""
        Beside(partial(self.do, program, ())).end()
        for beside in self.beside:
            beside.end()


@pytest.fixture
def database(config: dict[str, Any], observer: Observer) -> Database:
    observer.execute("CREATE TABLE t (a int)")
    config["connection_settings"]["prepare_threshold"] = 1
    return Database(pools(config, max_size=3, timeout=20))


def test_what_is_stored_is_what_was_acknowledged(database: Database, observer: Observer) -> None:
    drawn: list[tuple[Any, ...]] = []

    @MANY
    @given(program=programs)
    def draw(program: tuple[Any, ...]) -> None:
        drawn.append(program)

    draw()
    for program in drawn:
        run = Run(database)
        run.to_end(program)
        stored = set(rows(observer))
        observer.execute("DELETE FROM t")
        told = {row.number for row in run.rows if all(block.succeeded for block in row.blocks)}
        # Of a block that failed while its statement was still running, nobody can say whether it was in it.
        perhaps = {row.number for row in run.rows if row.racing}
        assert told - stored == set(), f"acknowledged and lost: {program}"
        assert stored - told - perhaps == set(), f"refused and stored: {program}"
        stats = database.stats()
        assert stats["pool_available"] == stats["pool_size"], f"not given back: {program}"
    database.close()
