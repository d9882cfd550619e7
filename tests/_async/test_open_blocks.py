"""Which block ends: pools that are entered on behalf of others, by several threads or tasks at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import wraps
from typing import Any

import psycopg
import pytest

from pgmonkey import PGConnectionManager
from pgmonkey._async.handle import AsyncConnectionHandle
from pgmonkey._async.waiting import POOL_KIND

from ..garbage import no_cycles
from .concurrency import elsewhere, in_turns

Observer = psycopg.Connection[Any]
Blocks = Callable[[AsyncConnectionHandle], Callable[[], AbstractAsyncContextManager[Any]]]


@pytest.fixture
async def pool(config: dict[str, Any], observer: Observer) -> AsyncConnectionHandle:
    observer.execute("CREATE TABLE t (who text)")
    get: Any = PGConnectionManager().get_database_connection_from_dict
    handle: AsyncConnectionHandle = await get(config, POOL_KIND)
    return handle


def stored(observer: Observer) -> list[str]:
    return [who for (who,) in observer.execute("SELECT who FROM t ORDER BY who").fetchall()]


class Delegating(AbstractAsyncContextManager[Any]):
    """Enters a pool on behalf of whoever enters it, and keeps nothing."""

    def __init__(self, pool: AsyncConnectionHandle) -> None:
        self.pool = pool

    async def __aenter__(self) -> Any:
        return await self.pool.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await self.pool.__aexit__(*error)


def logged(method: Any) -> Any:
    @wraps(method)
    async def call(*arguments: Any) -> Any:
        return await method(*arguments)

    return call


class Decorated(Delegating):
    __aenter__ = logged(Delegating.__aenter__)
    __aexit__ = logged(Delegating.__aexit__)


class ByFunctions(Delegating):
    async def __aenter__(self) -> Any:
        return await _enter(self.pool)

    async def __aexit__(self, *error: Any) -> None:
        await _leave(self.pool, *error)


async def _enter(pool: AsyncConnectionHandle) -> Any:
    return await pool.__aenter__()


async def _leave(pool: AsyncConnectionHandle, *error: Any) -> None:
    await pool.__aexit__(*error)


@asynccontextmanager
async def generator(pool: AsyncConnectionHandle) -> AsyncIterator[Any]:
    async with pool as connection:
        yield connection


@asynccontextmanager
async def stack(pool: AsyncConnectionHandle) -> AsyncIterator[Any]:
    async with AsyncExitStack() as entered:
        yield await entered.enter_async_context(pool)


@asynccontextmanager
async def moved_stack(pool: AsyncConnectionHandle) -> AsyncIterator[Any]:
    async with AsyncExitStack() as entered:
        connection = await entered.enter_async_context(pool)
        moved = entered.pop_all()
    async with moved:
        yield connection


def shared(wrapper: type[Delegating]) -> Blocks:
    """One object for all."""

    def blocks(pool: AsyncConnectionHandle) -> Callable[[], AbstractAsyncContextManager[Any]]:
        only = wrapper(pool)
        return lambda: only

    return blocks


WAYS: dict[str, Blocks] = {
    "the pool": lambda pool: lambda: pool,
    "one object": shared(Delegating),
    "one object of decorated methods": shared(Decorated),
    "one object that calls functions": shared(ByFunctions),
    "an object each": lambda pool: lambda: Delegating(pool),
    "a generator": lambda pool: lambda: generator(pool),
    "a stack": lambda pool: lambda: stack(pool),
    "what a stack handed on": lambda pool: lambda: moved_stack(pool),
}


@pytest.mark.parametrize("way", WAYS)
async def test_each_ends_its_own_block(way: str, pool: AsyncConnectionHandle, observer: Observer) -> None:
    block = WAYS[way](pool)

    async def succeed(turn: Any) -> None:
        await turn()
        async with block() as connection:
            await connection.execute("INSERT INTO t VALUES ('succeeds')")
            await turn()

    async def fail(turn: Any) -> None:
        await turn()
        async with block() as connection:
            await connection.execute("INSERT INTO t VALUES ('fails')")
            await turn()
            raise ZeroDivisionError

    orders = ["AABB", "ABAB", "ABBA", "BAAB", "BABA", "BBAA"]
    for order in orders:
        outcomes = await in_turns(order, {"A": succeed, "B": fail})
        assert outcomes["A"] is None
        assert isinstance(outcomes["B"], ZeroDivisionError), order
        stats = pool.stats()
        assert stats["pool_available"] == stats["pool_size"]
    assert stored(observer) == ["succeeds"] * len(orders)


@pytest.mark.parametrize("way", WAYS)
async def test_blocks_of_one_thread_or_task_nest(way: str, pool: AsyncConnectionHandle, observer: Observer) -> None:
    block = WAYS[way](pool)
    async with block() as outer:
        await outer.execute("INSERT INTO t VALUES ('outer')")
        with pytest.raises(ZeroDivisionError):
            async with block() as inner, pool as innermost:
                assert len({id(outer), id(inner), id(innermost)}) == 3
                await inner.execute("INSERT INTO t VALUES ('inner')")
                await innermost.execute("INSERT INTO t VALUES ('innermost')")
                raise ZeroDivisionError
        assert stored(observer) == []
    assert stored(observer) == ["outer"]


async def test_a_stack_is_closed_where_and_when_one_likes(pool: AsyncConnectionHandle, observer: Observer) -> None:
    first, second = AsyncExitStack(), AsyncExitStack()
    await (await first.enter_async_context(pool)).execute("INSERT INTO t VALUES ('first')")
    await (await second.enter_async_context(pool)).execute("INSERT INTO t VALUES ('second')")
    moved = first.pop_all()

    async def close() -> None:
        await moved.aclose()

    async with pool as connection:
        await elsewhere(close)
        assert stored(observer) == ["first"]
        await connection.execute("INSERT INTO t VALUES ('third')")
    with pytest.raises(ZeroDivisionError):
        async with second:
            raise ZeroDivisionError
    assert stored(observer) == ["first", "third"]


@pytest.mark.parametrize("wrapper", [Delegating, ByFunctions])
async def test_a_strangers_block_is_left_alone(
    wrapper: type[Delegating], pool: AsyncConnectionHandle, observer: Observer
) -> None:
    block = wrapper(pool)

    async def own(turn: Any) -> None:
        await turn()
        async with block as connection:
            await connection.execute("INSERT INTO t VALUES ('own')")
            await turn()
            await connection.execute("INSERT INTO t VALUES ('own, too')")

    async def exit_once_too_often(turn: Any) -> None:
        async with block as connection:
            await connection.execute("INSERT INTO t VALUES ('stranger')")
        await turn()
        await block.__aexit__(None, None, None)

    outcomes = await in_turns("ABA", {"A": own, "B": exit_once_too_often})
    assert outcomes["A"] is None
    assert isinstance(outcomes["B"], RuntimeError)
    assert "use 'with pool.connection() as conn'" in str(outcomes["B"])
    assert stored(observer) == ["own", "own, too", "stranger"]


async def test_a_block_within_a_block_is_not_ended_for_the_outer_one(
    pool: AsyncConnectionHandle, observer: Observer
) -> None:
    async with pool as connection:
        await connection.execute("INSERT INTO t VALUES ('outer')")
        with pytest.raises(RuntimeError, match="cannot tell"):
            await Delegating(pool).__aexit__(None, None, None)
        assert stored(observer) == []
    assert stored(observer) == ["outer"]


async def test_what_was_entered_and_cannot_be_exited_is_taken_back(
    pool: AsyncConnectionHandle, observer: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    block = Delegating(pool)

    async def enter() -> None:
        connection = await block.__aenter__()
        await connection.execute("INSERT INTO t VALUES ('lost')")

    await elsewhere(enter)
    with pytest.raises(RuntimeError, match="cannot tell"):
        await block.__aexit__(None, None, None)
    assert "never given back" in caplog.text
    assert stored(observer) == []
    assert pool.stats()["pool_size"] == 0


async def test_blocks_leave_nothing_to_the_garbage_collector(pool: AsyncConnectionHandle) -> None:
    with no_cycles():
        for way in WAYS.values():
            async with way(pool)() as connection:
                await connection.execute("SELECT 1")
