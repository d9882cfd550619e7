# Generated from tests/_async/test_open_blocks.py by tools/twins.py: change that file, then run the tool.

"""Which block ends: pools that are entered on behalf of others, by several threads or tasks at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import Any

import psycopg
import pytest

from pgmonkey import PGConnectionManager
from pgmonkey._sync.handle import ConnectionHandle
from pgmonkey._sync.waiting import POOL_KIND

from ..garbage import no_cycles
from .concurrency import elsewhere, in_turns

Observer = psycopg.Connection[Any]
Blocks = Callable[[ConnectionHandle], Callable[[], AbstractContextManager[Any]]]


@pytest.fixture
def pool(config: dict[str, Any], observer: Observer) -> ConnectionHandle:
    observer.execute("CREATE TABLE t (who text)")
    get: Any = PGConnectionManager().get_database_connection_from_dict
    handle: ConnectionHandle = get(config, POOL_KIND)
    return handle


def stored(observer: Observer) -> list[str]:
    return [who for (who,) in observer.execute("SELECT who FROM t ORDER BY who").fetchall()]


class Delegating(AbstractContextManager[Any]):
    """Enters a pool on behalf of whoever enters it, and keeps nothing."""

    def __init__(self, pool: ConnectionHandle) -> None:
        self.pool = pool

    def __enter__(self) -> Any:
        return self.pool.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.pool.__exit__(*error)


def logged(method: Any) -> Any:
    @wraps(method)
    def call(*arguments: Any) -> Any:
        return method(*arguments)

    return call


class Decorated(Delegating):
    __enter__ = logged(Delegating.__enter__)
    __exit__ = logged(Delegating.__exit__)


class ByFunctions(Delegating):
    def __enter__(self) -> Any:
        return _enter(self.pool)

    def __exit__(self, *error: Any) -> None:
        _leave(self.pool, *error)


def _enter(pool: ConnectionHandle) -> Any:
    return pool.__enter__()


def _leave(pool: ConnectionHandle, *error: Any) -> None:
    pool.__exit__(*error)


@contextmanager
def generator(pool: ConnectionHandle) -> Iterator[Any]:
    with pool as connection:
        yield connection


@contextmanager
def stack(pool: ConnectionHandle) -> Iterator[Any]:
    with ExitStack() as entered:
        yield entered.enter_context(pool)


@contextmanager
def moved_stack(pool: ConnectionHandle) -> Iterator[Any]:
    with ExitStack() as entered:
        connection = entered.enter_context(pool)
        moved = entered.pop_all()
    with moved:
        yield connection


def shared(wrapper: type[Delegating]) -> Blocks:
    """One object for all."""

    def blocks(pool: ConnectionHandle) -> Callable[[], AbstractContextManager[Any]]:
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
def test_each_ends_its_own_block(way: str, pool: ConnectionHandle, observer: Observer) -> None:
    block = WAYS[way](pool)

    def succeed(turn: Any) -> None:
        turn()
        with block() as connection:
            connection.execute("INSERT INTO t VALUES ('succeeds')")
            turn()

    def fail(turn: Any) -> None:
        turn()
        with block() as connection:
            connection.execute("INSERT INTO t VALUES ('fails')")
            turn()
            raise ZeroDivisionError

    orders = ["AABB", "ABAB", "ABBA", "BAAB", "BABA", "BBAA"]
    for order in orders:
        outcomes = in_turns(order, {"A": succeed, "B": fail})
        assert outcomes["A"] is None
        assert isinstance(outcomes["B"], ZeroDivisionError), order
        stats = pool.stats()
        assert stats["pool_available"] == stats["pool_size"]
    assert stored(observer) == ["succeeds"] * len(orders)


@pytest.mark.parametrize("way", WAYS)
def test_blocks_of_one_thread_or_task_nest(way: str, pool: ConnectionHandle, observer: Observer) -> None:
    block = WAYS[way](pool)
    with block() as outer:
        outer.execute("INSERT INTO t VALUES ('outer')")
        with pytest.raises(ZeroDivisionError):
            with block() as inner, pool as innermost:
                assert len({id(outer), id(inner), id(innermost)}) == 3
                inner.execute("INSERT INTO t VALUES ('inner')")
                innermost.execute("INSERT INTO t VALUES ('innermost')")
                raise ZeroDivisionError
        assert stored(observer) == []
    assert stored(observer) == ["outer"]


def test_a_stack_is_closed_where_and_when_one_likes(pool: ConnectionHandle, observer: Observer) -> None:
    first, second = ExitStack(), ExitStack()
    (first.enter_context(pool)).execute("INSERT INTO t VALUES ('first')")
    (second.enter_context(pool)).execute("INSERT INTO t VALUES ('second')")
    moved = first.pop_all()

    def close() -> None:
        moved.close()

    with pool as connection:
        elsewhere(close)
        assert stored(observer) == ["first"]
        connection.execute("INSERT INTO t VALUES ('third')")
    with pytest.raises(ZeroDivisionError):
        with second:
            raise ZeroDivisionError
    assert stored(observer) == ["first", "third"]


@pytest.mark.parametrize("wrapper", [Delegating, ByFunctions])
def test_a_strangers_block_is_left_alone(wrapper: type[Delegating], pool: ConnectionHandle, observer: Observer) -> None:
    block = wrapper(pool)

    def own(turn: Any) -> None:
        turn()
        with block as connection:
            connection.execute("INSERT INTO t VALUES ('own')")
            turn()
            connection.execute("INSERT INTO t VALUES ('own, too')")

    def exit_once_too_often(turn: Any) -> None:
        with block as connection:
            connection.execute("INSERT INTO t VALUES ('stranger')")
        turn()
        block.__exit__(None, None, None)

    outcomes = in_turns("ABA", {"A": own, "B": exit_once_too_often})
    assert outcomes["A"] is None
    assert isinstance(outcomes["B"], RuntimeError)
    assert "use 'with pool.connection() as conn'" in str(outcomes["B"])
    assert stored(observer) == ["own", "own, too", "stranger"]


def test_a_block_within_a_block_is_not_ended_for_the_outer_one(pool: ConnectionHandle, observer: Observer) -> None:
    with pool as connection:
        connection.execute("INSERT INTO t VALUES ('outer')")
        with pytest.raises(RuntimeError, match="cannot tell"):
            Delegating(pool).__exit__(None, None, None)
        assert stored(observer) == []
    assert stored(observer) == ["outer"]


def test_what_was_entered_and_cannot_be_exited_is_taken_back(
    pool: ConnectionHandle, observer: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    block = Delegating(pool)

    def enter() -> None:
        connection = block.__enter__()
        connection.execute("INSERT INTO t VALUES ('lost')")

    elsewhere(enter)
    with pytest.raises(RuntimeError, match="cannot tell"):
        block.__exit__(None, None, None)
    assert "never given back" in caplog.text
    assert stored(observer) == []
    assert pool.stats()["pool_size"] == 0


def test_blocks_leave_nothing_to_the_garbage_collector(pool: ConnectionHandle) -> None:
    with no_cycles():
        for way in WAYS.values():
            with way(pool)() as connection:
                connection.execute("SELECT 1")
