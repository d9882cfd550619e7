"""What the contract's endpoints do by query methods other than the plain ones, in either colour."""

import io
from collections.abc import Awaitable, Callable
from typing import Any

from pgmonkey import AsyncDatabase

INSERT = "INSERT INTO t VALUES (%s)"
SLEEP = "SELECT pg_sleep(%s::float8)"
COUNT = "SELECT count(*) FROM t WHERE a = %s"


class Ways:
    """Each way stores the row *a*, and lets a statement of its kind take *sleep* seconds.

    *db* is a `Database`, or Flask's.
    """

    def __init__(self, db: Any) -> None:
        self.db = db

    def batch(self, a: int, sleep: float) -> None:
        with self.db.batch() as batch:
            batch.execute(INSERT, [a])
            batch.execute(SLEEP, [sleep])
            count = batch.fetch_value(COUNT, [a])
        assert count.result == 1

    def execute_many(self, a: int, sleep: float) -> None:
        assert self.db.execute_many(f"{INSERT} RETURNING a", [[a]], returning=True) == [(a,)]
        assert self.db.execute_many(SLEEP, [[0], [sleep]]) == 2

    def copy_rows(self, a: int, sleep: float) -> None:
        assert self.db.copy_rows("t", [(a,)]) == 1
        assert self.db.copy_rows("sleepy", [(sleep,)]) == 1

    def files(self, a: int, sleep: float) -> None:
        assert self.db.copy_from("t", io.BytesIO(b"a\n%d\n" % a)) == 1
        file = io.BytesIO()
        assert self.db.copy_to("SELECT a, pg_sleep(%s::float8) FROM t WHERE a = %s", file, [sleep, a]) == 1
        assert file.getvalue() == b'a,pg_sleep\n%d,""\n' % a

    def stream(self, a: int, sleep: float) -> None:
        self.db.execute(INSERT, [a])
        assert len(list(self.db.stream(SLEEP, [sleep]))) == 1

    def lock(self, a: int, sleep: float) -> None:
        with self.db.lock("contract"):
            self.db.execute(INSERT, [a])
            self.db.execute(SLEEP, [sleep])

    def notify(self, a: int, sleep: float) -> None:
        self.db.execute(INSERT, [a])
        self.db.execute(SLEEP, [sleep])
        self.db.notify("contract", str(a))

    def refused_batch(self) -> None:
        with self.db.batch() as batch:
            batch.execute(INSERT, [1000])
            batch.execute("SELECT 1 / 0")

    def refused_execute_many(self) -> None:
        self.db.execute_many(INSERT, [[1000], ["x"]])

    def refused_copy_rows(self) -> None:
        self.db.copy_rows("t", [(1000,), ("x",)])

    def refused_lock(self) -> None:
        with self.db.lock("busy", wait=False):
            self.db.execute(INSERT, [1000])


class AsyncWays:
    """The same with a database for tasks."""

    def __init__(self, db: AsyncDatabase[Any]) -> None:
        self.db = db

    async def batch(self, a: int, sleep: float) -> None:
        async with self.db.batch() as batch:
            batch.execute(INSERT, [a])
            batch.execute(SLEEP, [sleep])
            count = batch.fetch_value(COUNT, [a])
        assert count.result == 1

    async def execute_many(self, a: int, sleep: float) -> None:
        assert await self.db.execute_many(f"{INSERT} RETURNING a", [[a]], returning=True) == [(a,)]
        assert await self.db.execute_many(SLEEP, [[0], [sleep]]) == 2

    async def copy_rows(self, a: int, sleep: float) -> None:
        assert await self.db.copy_rows("t", [(a,)]) == 1
        assert await self.db.copy_rows("sleepy", [(sleep,)]) == 1

    async def files(self, a: int, sleep: float) -> None:
        assert await self.db.copy_from("t", io.BytesIO(b"a\n%d\n" % a)) == 1
        file = io.BytesIO()
        assert await self.db.copy_to("SELECT a, pg_sleep(%s::float8) FROM t WHERE a = %s", file, [sleep, a]) == 1
        assert file.getvalue() == b'a,pg_sleep\n%d,""\n' % a

    async def stream(self, a: int, sleep: float) -> None:
        await self.db.execute(INSERT, [a])
        assert len([row async for row in self.db.stream(SLEEP, [sleep])]) == 1

    async def lock(self, a: int, sleep: float) -> None:
        async with self.db.lock("contract"):
            await self.db.execute(INSERT, [a])
            await self.db.execute(SLEEP, [sleep])

    async def notify(self, a: int, sleep: float) -> None:
        await self.db.execute(INSERT, [a])
        await self.db.execute(SLEEP, [sleep])
        await self.db.notify("contract", str(a))

    async def refused_batch(self) -> None:
        async with self.db.batch() as batch:
            batch.execute(INSERT, [1000])
            batch.execute("SELECT 1 / 0")

    async def refused_execute_many(self) -> None:
        await self.db.execute_many(INSERT, [[1000], ["x"]])

    async def refused_copy_rows(self) -> None:
        await self.db.copy_rows("t", [(1000,), ("x",)])

    async def refused_lock(self) -> None:
        async with self.db.lock("busy", wait=False):
            await self.db.execute(INSERT, [1000])


def way(db: Any, name: str) -> Callable[..., None]:
    """Return the way called *name*."""
    found: Callable[..., None] = getattr(Ways(db), name)
    return found


def async_way(db: AsyncDatabase[Any], name: str) -> Callable[..., Awaitable[None]]:
    """Return the way called *name*."""
    found: Callable[..., Awaitable[None]] = getattr(AsyncWays(db), name)
    return found
