"""What borrowers do: keep what they gave back, leave things in the session, and alter tables under everybody's feet."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest

from pgmonkey import AsyncDatabase, Database, GivenBackError

Figure = Callable[[str, str], None]
LATE = "A reference kept, a child task that outlives its block, a generator resumed later"


def one(config: dict[str, Any]) -> dict[str, Any]:
    """Pools of one connection: the next borrower certainly gets the same."""
    pool = {"min_size": 1, "max_size": 1, "timeout": 5}
    return {**config, "pool_settings": dict(pool), "async_pool_settings": dict(pool)}


def test_a_reference_that_was_kept(config: dict[str, Any], figure: Figure) -> None:
    database = Database(one(config))
    with database.connection() as kept:
        cursor = kept.cursor()
    errors = 0
    with database.connection() as other:
        for use in (
            lambda: kept.execute("SELECT 1"),
            lambda: cursor.execute("SELECT 1"),
            kept.commit,
            kept.rollback,
            lambda: kept.cursor().execute("SELECT 1"),
            lambda: kept.transaction().__enter__(),
        ):
            with pytest.raises(GivenBackError, match="given back"):
                use()
            errors += 1
        assert other.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    figure(LATE, f"reference: a GivenBackError {errors} of 6 times")


async def test_a_child_that_outlives_its_block(config: dict[str, Any], figure: Figure) -> None:
    database = AsyncDatabase(one(config))
    errors = 0

    async def child(connection: psycopg.AsyncConnection[Any], go_on: asyncio.Event) -> None:
        await go_on.wait()
        await connection.execute("INSERT INTO t VALUES (1)")

    for _ in range(20):
        go_on = asyncio.Event()
        async with database.transaction() as connection:
            late = asyncio.create_task(child(connection, go_on))
            await asyncio.sleep(0)
        async with database.transaction():
            go_on.set()
            with pytest.raises(GivenBackError):
                await late
            errors += 1
    assert await database.fetch_value("SELECT count(*) FROM t") == 0
    await database.close()
    figure(LATE, f"child task: an error {errors} of 20 times, nothing written")


async def test_a_generator_that_is_resumed_later(config: dict[str, Any], figure: Figure) -> None:
    database = AsyncDatabase(one(config))

    async def rows() -> AsyncIterator[Any]:
        async with database.connection() as connection:
            holder.append(connection)
            yield 1
            yield (await connection.execute("SELECT 1")).fetchone()

    holder: list[Any] = []
    generator = rows()
    await generator.__anext__()
    await generator.aclose()  # type: ignore[attr-defined]
    with pytest.raises(GivenBackError):
        await holder[0].execute("SELECT 1")

    def stream() -> Any:
        with sync.connection() as connection:
            yield connection

    sync = Database(one(config))
    resumed = stream()
    lent = next(resumed)
    resumed.close()
    with sync.transaction(), pytest.raises(GivenBackError):
        lent.execute("SELECT 1")
    await database.close()
    figure(LATE, "generator: an error every time")


STATES = {
    "search_path": ("SET search_path = nowhere", "SHOW search_path", '"$user", public'),
    "parameter": ("SET work_mem = '123kB'", "SHOW work_mem", "4MB"),
    "role": ("SET ROLE pg_monitor", "SELECT current_user::text", "postgres"),
    "read only": ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SHOW transaction_read_only", "off"),
    "advisory lock": (
        "SELECT pg_advisory_lock(1)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        0,
    ),
    "temporary table": ("CREATE TEMPORARY TABLE left_over (a int)", "SELECT to_regclass('left_over')::text", None),
    "LISTEN": ("LISTEN something", "SELECT count(*) FROM pg_listening_channels()", 0),
    "PREPARE": ("PREPARE left_over AS SELECT 1", "SELECT count(*) FROM pg_prepared_statements WHERE from_sql", 0),
    "held cursor": (
        "DECLARE left_over CURSOR WITH HOLD FOR SELECT 1",
        "SELECT count(*) FROM pg_cursors WHERE is_holdable",
        0,
    ),
}


@pytest.mark.parametrize("ending", ["commit", "rollback", "autocommit"])
async def test_nothing_is_left_in_the_session(ending: str, config: dict[str, Any], figure: Figure) -> None:
    database, async_database = Database(one(config)), AsyncDatabase(one(config))
    for _ in range(8):  # so that psycopg has something prepared, which must survive
        database.fetch_value("SELECT 41 + 1")
        await async_database.fetch_value("SELECT 41 + 1")
    reached = []
    for name, (leave, look, clean) in STATES.items():
        if ending == "autocommit" and name != "held cursor":
            database.execute(leave)
            await async_database.execute(leave)
        else:
            try:
                with database.connection() as connection:
                    connection.execute(leave.encode())
                    if ending == "rollback":
                        connection.commit()
                        raise ZeroDivisionError
            except ZeroDivisionError:
                """As it was meant."""
            async with async_database.connection() as async_connection:
                await async_connection.execute(leave.encode())
        if database.fetch_value(look) != clean or await async_database.fetch_value(look) != clean:
            reached.append(name)
    assert reached == []
    await async_database.close()
    row = "Nine kinds of session state left by a borrower"
    figure(row, f"after {ending}: {len(reached)} of {len(STATES)} reach the next")


CHANGES = [
    "ALTER TABLE wide ADD b int",
    "ALTER TABLE wide ALTER b TYPE text",
    "ALTER TABLE wide DROP b",
    "ALTER TABLE wide ALTER a TYPE bigint",
    "ALTER TABLE wide RENAME a TO c",
]


async def test_tables_that_change_under_a_warm_pool(
    config: dict[str, Any], observer: psycopg.Connection[Any], figure: Figure
) -> None:
    observer.execute("CREATE TABLE wide (id int PRIMARY KEY, a int); INSERT INTO wide VALUES (1, 2)")
    database, async_database = Database(config), AsyncDatabase(config)
    query = "SELECT * FROM wide WHERE id = %s"
    failed: list[Exception] = []
    calls = 0

    def fetch_at_once() -> None:
        def fetch() -> None:
            nonlocal calls
            for _ in range(25):
                calls += 1
                try:
                    database.fetch_one(query, [1])
                    with database.transaction():
                        database.fetch_all(query, [1])
                except psycopg.Error as error:
                    failed.append(error)

        threads = [threading.Thread(target=fetch) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    async def async_fetch() -> None:
        nonlocal calls
        for _ in range(10):
            calls += 1
            try:
                await async_database.fetch_one(query, [1])
                async with async_database.transaction():
                    await async_database.fetch_all(query, [1])
            except psycopg.Error as error:
                failed.append(error)

    for change in ["SELECT 1", *CHANGES]:
        observer.execute(change.encode())
        await asyncio.to_thread(fetch_at_once)
        await asyncio.gather(*(async_fetch() for _ in range(20)))
    assert failed == []
    await async_database.close()
    figure("ALTER TABLE under a warm pool: added, retyped, dropped", f"{len(failed)} of {2 * calls} queries fail")
