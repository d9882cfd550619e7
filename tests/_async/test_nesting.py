"""Blocks inside units of work: they nest, or it is an error, and what was acknowledged is stored."""

from __future__ import annotations

from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg.errors import InvalidTextRepresentation

from pgmonkey import AsyncDatabase, GivenBackError

from ..configs import pools
from .concurrency import Beside, Event
from .test_unit import Observer, rows

INSERT = "INSERT INTO t VALUES (%s)"


@pytest.fixture
def database(config: dict[str, Any], observer: Observer) -> AsyncDatabase:
    observer.execute("CREATE TABLE t (a int)")
    return AsyncDatabase(pools(config, max_size=1, timeout=2))


# -- unit_of_work() inside another one --------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", ["transaction", "unit_of_work", "begin"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("error", [None, KeyError()])
async def test_a_unit_of_work_inside_another_is_a_part_of_it(
    outer: str, first: bool, error: Exception | None, database: AsyncDatabase, observer: Observer
) -> None:
    async def work() -> None:
        if not first:
            await database.execute(INSERT, [1])
        async with database.unit_of_work():
            await database.execute(INSERT, [2])
        with pytest.raises(ZeroDivisionError):
            async with database.unit_of_work():
                await database.execute(INSERT, [3])
                raise ZeroDivisionError
        async with database.unit_of_work() as unit, database.unit_of_work():
            await (await unit.connection()).execute(INSERT, [4])

    if outer == "begin":
        unit = database.begin()
        await work()
        await unit.finish(error)
    else:
        with suppress(KeyError):
            async with getattr(database, outer)():
                await work()
                assert rows(observer) == []
                if error is not None:
                    raise error
    stored = [2, 4] if first else [1, 2, 4]
    assert rows(observer) == (stored if error is None else [])


async def test_a_unit_of_work_inside_another_borrows_nothing_before_it_needs_to(
    database: AsyncDatabase, observer: Observer
) -> None:
    async with database.unit_of_work() as outer:
        with pytest.raises(ZeroDivisionError):
            async with database.unit_of_work() as inner:
                assert inner is outer
                raise ZeroDivisionError
        async with database.unit_of_work():
            pass
        assert not outer.borrowed
        with pytest.raises(ZeroDivisionError):
            async with database.unit_of_work():
                await database.execute(INSERT, [1])
                raise ZeroDivisionError
        assert not outer.borrowed
        await database.execute(INSERT, [2])
    assert rows(observer) == [2]


# -- side by side -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["transaction", "unit_of_work", "connection"])
async def test_what_is_done_beside_the_block_of_another_is_refused(
    way: str, database: AsyncDatabase, observer: Observer
) -> None:
    entered, done = Event(), Event()

    async def optional() -> None:
        connection = await unit.connection()
        block: Any = connection.transaction() if way == "connection" else getattr(database, way)()
        async with block:
            await database.execute(INSERT, [1])
            entered.set()
            await done.wait()
            raise ZeroDivisionError

    async def another_block() -> None:
        async with database.transaction():
            await database.execute(INSERT, [3])

    async with database.unit_of_work() as unit:
        await database.execute(INSERT, [0])
        beside = Beside(optional)
        await entered.wait()
        methods: Any = (database.execute, database.fetch_all)
        for number, refused in enumerate(methods):
            with pytest.raises(psycopg.ProgrammingError, match=r"savepoints must nest: .* is in a block"):
                await refused(INSERT, [10 + number])
        with pytest.raises(psycopg.ProgrammingError, match="savepoints must nest"):
            await database.execute_many(INSERT, [[4]])
        with pytest.raises(psycopg.ProgrammingError, match="savepoints must nest"):
            await another_block()
        with pytest.raises(psycopg.ProgrammingError, match="savepoints must nest"):
            async with database.unit_of_work():
                pytest.fail("inside the block of another")
        with pytest.raises(psycopg.ProgrammingError, match="savepoints must nest"):
            async with (await unit.connection()).transaction():
                pytest.fail("inside the block of another")
        done.set()
        assert isinstance(await beside.end(), ZeroDivisionError)
        await database.execute(INSERT, [5])
        await another_block()
    assert rows(observer) == [0, 3, 5]


async def test_what_a_block_has_started_runs_in_it(database: AsyncDatabase, observer: Observer) -> None:
    async def insert() -> int:
        async with database.transaction():
            return await database.execute(INSERT, [2])

    async with database.transaction():
        with pytest.raises(ZeroDivisionError):
            async with database.transaction():
                await database.execute(INSERT, [1])
                assert await Beside(insert).end() == 1
                raise ZeroDivisionError
        async with database.transaction():
            assert await Beside(insert).end() == 1
    assert rows(observer) == [2]


async def test_a_statement_that_waits_for_its_turn_is_not_done_in_the_block_of_another(
    database: AsyncDatabase, observer: Observer
) -> None:
    acknowledged: list[int] = []

    async def optional() -> None:
        async with database.transaction():
            await database.execute(INSERT, [-1])
            await database.execute("SELECT pg_sleep(0.01)")
            raise ZeroDivisionError

    async def important(number: int) -> None:
        await database.execute(INSERT, [number])
        acknowledged.append(number)

    async with database.transaction():
        await database.execute("SELECT 1")
        several = [Beside(partial(important, number) if number % 4 else optional) for number in range(12)]
        for one in several:
            await one.end()
    assert rows(observer) == sorted(acknowledged)


# -- out of turn ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", ["transaction", "unit_of_work"])
async def test_a_block_that_ends_before_one_inside_it_commits_nothing(
    outer: str, database: AsyncDatabase, observer: Observer
) -> None:
    entered, done = Event(), Event()

    async def inside() -> None:
        async with database.transaction():
            await database.execute(INSERT, [1])
            entered.set()
            await done.wait()
            await database.execute(INSERT, [2])

    started: list[Beside] = []
    with pytest.raises(psycopg.ProgrammingError, match="nothing of this transaction is committed"):
        async with getattr(database, outer)():
            await database.execute(INSERT, [0])
            started.append(Beside(inside))
            await entered.wait()
    done.set()
    assert isinstance(await started[0].end(), psycopg.Error)
    assert rows(observer) == []
    await database.execute(INSERT, [3])
    assert rows(observer) == [3]


async def test_a_savepoint_that_ends_before_one_inside_it_dooms_the_transaction(
    database: AsyncDatabase, observer: Observer
) -> None:
    entered, done = Event(), Event()

    async def inside() -> None:
        async with database.transaction():
            entered.set()
            await done.wait()

    started: list[Beside] = []
    with pytest.raises(psycopg.ProgrammingError, match="nothing of this transaction is committed"):
        async with database.transaction():
            await database.execute(INSERT, [0])
            with pytest.raises(psycopg.ProgrammingError, match="savepoints must nest"):
                async with database.transaction():
                    started.append(Beside(inside))
                    await entered.wait()
            done.set()
            assert isinstance(await started[0].end(), psycopg.ProgrammingError)
            with pytest.raises(psycopg.ProgrammingError, match="savepoints must nest"):
                await database.execute(INSERT, [1])
    assert rows(observer) == []


async def test_a_unit_of_work_that_is_finished_while_another_is_in_a_block_commits_nothing(
    database: AsyncDatabase, observer: Observer
) -> None:
    entered, done = Event(), Event()

    async def inside() -> None:
        async with database.transaction():
            await database.execute(INSERT, [1])
            entered.set()
            await done.wait()

    unit = database.begin()
    await database.execute(INSERT, [0])
    beside = Beside(inside)
    await entered.wait()
    with pytest.raises(psycopg.ProgrammingError, match="was still in a block"):
        await unit.finish()
    done.set()
    assert isinstance(await beside.end(), psycopg.Error)
    assert rows(observer) == []


async def test_a_unit_of_work_may_be_finished_before_its_own_block(database: AsyncDatabase, observer: Observer) -> None:
    # As by a request, before a dependency that yields inside a block ends.
    unit = database.begin()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(database.transaction())
        await database.execute(INSERT, [1])
        await unit.finish()
        assert rows(observer) == [1]


async def test_a_block_of_a_transaction_that_was_rolled_back_takes_nothing(
    database: AsyncDatabase, observer: Observer
) -> None:
    unit = database.begin()
    with pytest.raises(GivenBackError):
        async with database.transaction():
            await database.execute(INSERT, [1])
            await unit.roll_back(ZeroDivisionError())
            with pytest.raises(GivenBackError, match="was rolled back"):
                await database.execute(INSERT, [2])
    await database.execute(INSERT, [3])
    await unit.finish()
    assert rows(observer) == [3]


# -- execute_many() ---------------------------------------------------------------------------------------------------


async def test_a_statement_beside_execute_many_does_not_become_part_of_its_savepoint(
    database: AsyncDatabase, observer: Observer
) -> None:
    async with database.transaction() as connection:
        await connection.execute("SELECT")
        # A task sends SAVEPOINT before the other one begins; in threads, the latter may come first.
        failing = Beside(partial(database.execute_many, INSERT, [["1"], ["one"]]))
        beside = Beside(partial(connection.execute, INSERT, [2]))
        assert isinstance(await failing.end(), InvalidTextRepresentation)
        refused = isinstance(await beside.end(), psycopg.ProgrammingError)
        await database.execute(INSERT, [3])
    assert rows(observer) == ([3] if refused else [2, 3])
