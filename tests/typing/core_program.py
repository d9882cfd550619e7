"""What mypy and pyright see in a program that uses the core: never run, only checked."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from psycopg import AsyncConnection, Connection, Notify
from psycopg.rows import DictRow, TupleRow, class_row, dict_row, kwargs_row, scalar_row, tuple_row
from psycopg.sql import SQL, Identifier
from typing_extensions import assert_type

from pgmonkey import (
    AsyncConnectionHandle,
    AsyncDatabase,
    AsyncListening,
    ConnectionHandle,
    Database,
    Gap,
    Listening,
    PGConnectionManager,
)


@dataclass
class User:
    id: int
    name: str


def tuples() -> None:
    db = Database("config.yaml")
    assert_type(db, Database[TupleRow])
    assert_type(db.fetch_one("SELECT 1"), TupleRow | None)
    assert_type(db.fetch_all("SELECT 1"), list[TupleRow])
    assert_type(db.fetch_value("SELECT 1"), Any)
    assert_type(db.execute("DELETE FROM users WHERE id = %s", [1]), int)
    assert_type(db.stream(SQL("SELECT 1")), Iterator[TupleRow])
    with db.transaction() as connection:
        assert_type(connection, Connection[TupleRow])
    with db.connection() as connection:
        assert_type(connection, Connection[TupleRow])
    assert_type(db.retry(lambda: 7, isolation="serializable", timeout=1.5), int)
    assert_type(db.stats(), dict[str, int])


def many_rows(path: Path) -> None:
    db = Database("config.yaml", row_factory=class_row(User))
    assert_type(db.execute_many("DELETE FROM users WHERE id = %s", [[1]]), int)
    assert_type(db.execute_many("DELETE FROM users WHERE id = %s RETURNING *", [[1]], returning=True), list[User])
    assert_type(db.copy_rows("users", [User(1, "Ann")]), int)
    assert_type(db.copy_rows(Identifier("users"), ((i, "Ann") for i in range(3)), columns=["id", "name"]), int)
    assert_type(db.copy_from("users", path, delimiter=";"), int)
    assert_type(db.copy_to("TABLE users", BytesIO(), format="binary"), int)
    db.copy_to("TABLE users", path, format="xml")  # type: ignore[arg-type]
    db.copy_rows("users", 7)  # type: ignore[arg-type]


async def many_rows_async(rows: AsyncIterator[tuple[int, str]]) -> None:
    db = AsyncDatabase("config.yaml")
    assert_type(await db.copy_rows("users", rows), int)
    assert_type(await db.execute_many("SELECT %s", [[1]], returning=True), list[TupleRow])


def notifications() -> None:
    db = Database("config.yaml")
    assert_type(db.listen("orders", "stock"), Listening)
    for note in db.listen("orders"):
        if isinstance(note, Gap):
            assert_type(note.reason, str)
        else:
            assert_type(note, Notify)
    with db.listen("orders") as notes:
        assert_type(next(notes), Notify | Gap)
    db.listen(7)  # type: ignore[arg-type]


async def notifications_async() -> None:
    db = AsyncDatabase("config.yaml")
    async with db.listen("orders") as notes:
        assert_type(notes, AsyncListening)
        async for note in notes:
            assert_type(note, Notify | Gap)
    assert_type(await db.notify("orders", "1"), None)


def rows_of_a_class() -> None:
    db = Database("config.yaml", row_factory=class_row(User))
    assert_type(db, Database[User])
    assert_type(db.fetch_one("SELECT 1"), User | None)
    assert_type(db.fetch_all("SELECT 1"), list[User])


async def dictionaries() -> None:
    db = AsyncDatabase("config.yaml", row_factory=dict_row)
    assert_type(db, AsyncDatabase[DictRow])
    assert_type(await db.fetch_one("SELECT 1"), DictRow | None)
    assert_type(db.stream("SELECT 1"), AsyncIterator[DictRow])
    async with db.transaction(read_only=True) as connection:
        assert_type(connection, AsyncConnection[DictRow])

    async def work() -> str:
        return ""

    assert_type(await db.retry(work), str)


def rows_per_call(db: Database) -> None:
    assert_type(db.fetch_one("SELECT 1", row_factory=class_row(User)), User | None)
    assert_type(db.fetch_one("SELECT 1", row_factory=None, timeout=2.5), TupleRow | None)
    assert_type(db.fetch_exactly_one("SELECT 1"), TupleRow)
    assert_type(db.fetch_exactly_one("SELECT %s", [1], row_factory=class_row(User), timeout=1), User)
    assert_type(db.fetch_all("SELECT 1", row_factory=dict_row), list[DictRow])
    assert_type(db.fetch_all("SELECT 1", row_factory=kwargs_row(User)), list[User])
    assert_type(db.fetch_all("SELECT 1", row_factory=scalar_row), list[Any])
    assert_type(db.fetch_values("SELECT 1"), list[Any])
    assert_type(db.stream("SELECT 1", row_factory=class_row(User), timeout=60), Iterator[User])
    db.fetch_value("SELECT 1", row_factory=dict_row)  # type: ignore[call-arg]


async def rows_per_call_in_tasks(db: AsyncDatabase[DictRow]) -> None:
    assert_type(await db.fetch_one("SELECT 1", row_factory=class_row(User)), User | None)
    assert_type(await db.fetch_exactly_one("SELECT 1"), DictRow)
    assert_type(await db.fetch_all("SELECT 1", row_factory=tuple_row), list[TupleRow])
    assert_type(await db.fetch_values("SELECT 1", timeout=3), list[Any])
    assert_type(db.stream("SELECT 1", row_factory=class_row(User)), AsyncIterator[User])
    async with db.batch(timeout=5) as batch:
        user = batch.fetch_exactly_one("SELECT 1", row_factory=class_row(User))
        maybe = batch.fetch_one("SELECT 1", row_factory=class_row(User))
        rows, count, names = batch.fetch_all("SELECT 1"), batch.execute("SELECT 1"), batch.fetch_values("SELECT 1")
    assert_type(user.result, User)
    assert_type(maybe.result, User | None)
    assert_type(rows.result, list[DictRow])
    assert_type(count.result, int)
    assert_type(names.result, list[Any])
    async with db.transaction(timeout=2), db.connection(timeout=2) as connection:
        assert_type(connection, AsyncConnection[DictRow])
    async with db.lock("import"), db.lock((1, 2), shared=True, wait=False), db.lock(7, wait=2.5, session=True):
        pass


def text_from_elsewhere(db: Database, query: str) -> None:
    db.execute(query)  # pyright: ignore[reportArgumentType]  (mypy knows no LiteralString)
    db.execute("SELECT %s", {"id": 1})
    db.execute("SELECT 1", 7)  # type: ignore[arg-type]


async def handles(path: str) -> None:
    manager = PGConnectionManager()
    assert_type(manager.get_database_connection(path, "pool"), ConnectionHandle)
    assert_type(await manager.get_database_connection(path, "async_pool"), AsyncConnectionHandle)
    with manager.get_database_connection(path, "normal") as connection:
        assert_type(connection, Connection[Any])
