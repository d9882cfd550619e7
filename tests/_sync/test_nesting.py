# Generated from tests/_async/test_nesting.py by tools/twins.py: change that file, then run the tool.

"""Blocks inside units of work: they nest, or it is an error, and what was acknowledged is stored."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg.errors import InvalidTextRepresentation

from pgmonkey import Database, GivenBackError

from ..configs import pools
from .concurrency import Beside, Event
from .test_unit import Observer, rows

INSERT = "INSERT INTO t VALUES (%s)"


@pytest.fixture
def database(config: dict[str, Any], observer: Observer) -> Database:
    observer.execute("CREATE TABLE t (a int)")
    return Database(pools(config, max_size=1, timeout=2))


# -- unit_of_work() inside another one --------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", ["transaction", "unit_of_work", "begin"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("error", [None, KeyError()])
def test_a_unit_of_work_inside_another_is_a_part_of_it(
    outer: str, first: bool, error: Exception | None, database: Database, observer: Observer
) -> None:
    def work() -> None:
        if not first:
            database.execute(INSERT, [1])
        with database.unit_of_work():
            database.execute(INSERT, [2])
        with pytest.raises(ZeroDivisionError):
            with database.unit_of_work():
                database.execute(INSERT, [3])
                raise ZeroDivisionError
        with database.unit_of_work() as unit, database.unit_of_work():
            (unit.connection()).execute(INSERT, [4])

    if outer == "begin":
        unit = database.begin()
        work()
        unit.finish(error)
    else:
        with suppress(KeyError):
            with getattr(database, outer)():
                work()
                assert rows(observer) == []
                if error is not None:
                    raise error
    stored = [2, 4] if first else [1, 2, 4]
    assert rows(observer) == (stored if error is None else [])


def test_a_unit_of_work_inside_another_borrows_nothing_before_it_needs_to(
    database: Database, observer: Observer
) -> None:
    with database.unit_of_work() as outer:
        with pytest.raises(ZeroDivisionError):
            with database.unit_of_work() as inner:
                assert inner is outer
                raise ZeroDivisionError
        with database.unit_of_work():
            pass
        assert not outer.borrowed
        with pytest.raises(ZeroDivisionError):
            with database.unit_of_work():
                database.execute(INSERT, [1])
                raise ZeroDivisionError
        assert not outer.borrowed
        database.execute(INSERT, [2])
    assert rows(observer) == [2]


# -- side by side -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["transaction", "unit_of_work", "connection"])
def test_what_is_done_beside_the_block_of_another_is_refused(way: str, database: Database, observer: Observer) -> None:
    entered, done = Event(), Event()

    def optional() -> None:
        connection = unit.connection()
        block: Any = connection.transaction() if way == "connection" else getattr(database, way)()
        with block:
            database.execute(INSERT, [1])
            entered.set()
            done.wait()
            raise ZeroDivisionError

    def another_block() -> None:
        with database.transaction():
            database.execute(INSERT, [3])

    with database.unit_of_work() as unit:
        database.execute(INSERT, [0])
        beside = Beside(optional)
        entered.wait()
        methods: Any = (database.execute, database.fetch_all)
        for number, refused in enumerate(methods):
            with pytest.raises(psycopg.ProgrammingError, match=r"savepoints must nest: .* is in a block"):
                refused(INSERT, [10 + number])
        with pytest.raises(psycopg.ProgrammingError, match="savepoints must nest"):
            database.execute_many(INSERT, [[4]])
        with pytest.raises(psycopg.ProgrammingError, match="savepoints must nest"):
            another_block()
        with pytest.raises(psycopg.ProgrammingError, match="savepoints must nest"):
            with database.unit_of_work():
                pytest.fail("inside the block of another")
        with pytest.raises(psycopg.ProgrammingError, match="savepoints must nest"):
            with (unit.connection()).transaction():
                pytest.fail("inside the block of another")
        done.set()
        assert isinstance(beside.end(), ZeroDivisionError)
        database.execute(INSERT, [5])
        another_block()
    assert rows(observer) == [0, 3, 5]


def test_what_a_block_has_started_runs_in_it(database: Database, observer: Observer) -> None:
    def insert() -> int:
        with database.transaction():
            return database.execute(INSERT, [2])

    with database.transaction():
        with pytest.raises(ZeroDivisionError):
            with database.transaction():
                database.execute(INSERT, [1])
                assert Beside(insert).end() == 1
                raise ZeroDivisionError
        with database.transaction():
            assert Beside(insert).end() == 1
    assert rows(observer) == [2]


def test_a_statement_that_waits_for_its_turn_is_not_done_in_the_block_of_another(
    database: Database, observer: Observer
) -> None:
    acknowledged: list[int] = []

    def optional() -> None:
        with database.transaction():
            database.execute(INSERT, [-1])
            database.execute("SELECT pg_sleep(0.01)")
            raise ZeroDivisionError

    def important(number: int) -> None:
        database.execute(INSERT, [number])
        acknowledged.append(number)

    with database.transaction():
        database.execute("SELECT 1")
        several = [Beside(partial(important, number) if number % 4 else optional) for number in range(12)]
        for one in several:
            one.end()
    assert rows(observer) == sorted(acknowledged)


# -- out of turn ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", ["transaction", "unit_of_work"])
def test_a_block_that_ends_before_one_inside_it_commits_nothing(
    outer: str, database: Database, observer: Observer
) -> None:
    entered, done = Event(), Event()

    def inside() -> None:
        with database.transaction():
            database.execute(INSERT, [1])
            entered.set()
            done.wait()
            database.execute(INSERT, [2])

    started: list[Beside] = []
    with pytest.raises(psycopg.ProgrammingError, match="nothing of this transaction is committed"):
        with getattr(database, outer)():
            database.execute(INSERT, [0])
            started.append(Beside(inside))
            entered.wait()
    done.set()
    assert isinstance(started[0].end(), psycopg.Error)
    assert rows(observer) == []
    database.execute(INSERT, [3])
    assert rows(observer) == [3]


def test_a_savepoint_that_ends_before_one_inside_it_dooms_the_transaction(
    database: Database, observer: Observer
) -> None:
    entered, done = Event(), Event()

    def inside() -> None:
        with database.transaction():
            entered.set()
            done.wait()

    started: list[Beside] = []
    with pytest.raises(psycopg.ProgrammingError, match="nothing of this transaction is committed"):
        with database.transaction():
            database.execute(INSERT, [0])
            with pytest.raises(psycopg.ProgrammingError, match="savepoints must nest"):
                with database.transaction():
                    started.append(Beside(inside))
                    entered.wait()
            done.set()
            assert isinstance(started[0].end(), psycopg.ProgrammingError)
            with pytest.raises(psycopg.ProgrammingError, match="savepoints must nest"):
                database.execute(INSERT, [1])
    assert rows(observer) == []


def test_a_unit_of_work_that_is_finished_while_another_is_in_a_block_commits_nothing(
    database: Database, observer: Observer
) -> None:
    entered, done = Event(), Event()

    def inside() -> None:
        with database.transaction():
            database.execute(INSERT, [1])
            entered.set()
            done.wait()

    unit = database.begin()
    database.execute(INSERT, [0])
    beside = Beside(inside)
    entered.wait()
    with pytest.raises(psycopg.ProgrammingError, match="was still in a block"):
        unit.finish()
    done.set()
    assert isinstance(beside.end(), psycopg.Error)
    assert rows(observer) == []


def test_a_unit_of_work_may_be_finished_before_its_own_block(database: Database, observer: Observer) -> None:
    # As by a request, before a dependency that yields inside a block ends.
    unit = database.begin()
    with ExitStack() as stack:
        stack.enter_context(database.transaction())
        database.execute(INSERT, [1])
        unit.finish()
        assert rows(observer) == [1]


def test_a_block_of_a_transaction_that_was_rolled_back_takes_nothing(database: Database, observer: Observer) -> None:
    unit = database.begin()
    with pytest.raises(GivenBackError):
        with database.transaction():
            database.execute(INSERT, [1])
            unit.roll_back(ZeroDivisionError())
            with pytest.raises(GivenBackError, match="was rolled back"):
                database.execute(INSERT, [2])
    database.execute(INSERT, [3])
    unit.finish()
    assert rows(observer) == [3]


# -- execute_many() ---------------------------------------------------------------------------------------------------


def test_a_statement_beside_execute_many_does_not_become_part_of_its_savepoint(
    database: Database, observer: Observer
) -> None:
    with database.transaction() as connection:
        connection.execute("SELECT")
        # A task sends SAVEPOINT before the other one begins; in threads, the latter may come first.
        failing = Beside(partial(database.execute_many, INSERT, [["1"], ["one"]]))
        beside = Beside(partial(connection.execute, INSERT, [2]))
        assert isinstance(failing.end(), InvalidTextRepresentation)
        refused = isinstance(beside.end(), psycopg.ProgrammingError)
        database.execute(INSERT, [3])
    assert rows(observer) == ([3] if refused else [2, 3])
