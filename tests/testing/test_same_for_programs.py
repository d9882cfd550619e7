"""What programs do with pgmonkey and psycopg gives the same in a sandbox as outside: values, rows and errors."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg
import pytest
from psycopg.rows import dict_row

from pgmonkey import AsyncDatabase, Database
from pgmonkey.testing import sandbox

if TYPE_CHECKING:
    from typing_extensions import LiteralString

    from pgmonkey.testing import TestDatabase

DB: TypeAlias = "Database[Any]"
ADB: TypeAlias = "AsyncDatabase[Any]"
INSERT = "INSERT INTO t VALUES (%s)"
ROWS = "SELECT a FROM t ORDER BY a"


# -- in threads -------------------------------------------------------------------------------------------------------


def nested(db: DB) -> Any:
    with db.transaction():
        db.execute(INSERT, [1])
        with contextlib.suppress(ZeroDivisionError), db.transaction():
            db.execute(INSERT, [2])
            raise ZeroDivisionError
        with db.transaction():
            db.execute(INSERT, [3])
    return db.fetch_values(ROWS)


def an_error_that_is_ignored(db: DB) -> Any:
    with db.transaction():
        db.execute(INSERT, [1])
        with contextlib.suppress(psycopg.Error):
            db.fetch_value("SELECT 1/0")
        return db.fetch_values(ROWS)


def an_error_in_a_savepoint(db: DB) -> Any:
    with db.transaction():
        db.execute(INSERT, [1])
        with contextlib.suppress(psycopg.Error), db.transaction():
            db.fetch_value("SELECT 1/0")
        return db.fetch_values(ROWS)


def deferred(db: DB) -> Any:
    with db.transaction():
        db.execute(INSERT, [1])
        db.execute(INSERT, [1])
        db.fetch_values(ROWS)


def deferred_alone(db: DB) -> Any:
    db.execute_many(INSERT, [(1,), (2,), (1,)])


def refused_at_commit(db: DB) -> Any:
    with db.transaction():
        db.execute(INSERT, [1])
        db.execute("INSERT INTO late VALUES (1)")


def retried(db: DB) -> Any:
    tried: list[int] = []

    def work() -> None:
        tried.append(1)
        db.execute(INSERT, [len(tried)])
        if len(tried) < 3:
            raise psycopg.errors.SerializationFailure

    db.retry(work, attempts=4)
    return tried, db.fetch_values(ROWS)


def streamed(db: DB) -> Any:
    db.execute("INSERT INTO t SELECT generate_series(1, 50)")
    rows = []
    for row in db.stream("SELECT a FROM t ORDER BY a", size=7):
        rows.append(row)
        if len(rows) == 20:
            break
    return rows, sum(a for (a,) in db.stream("SELECT a FROM t", size=13))


def stream_that_fails(db: DB) -> Any:
    found = []
    with contextlib.suppress(psycopg.Error):
        for row in db.stream("SELECT 10 / (5 - a) FROM generate_series(1, 9) AS a", size=2):
            found.append(row)
    return found, db.fetch_value("SELECT 1")


def server_side_cursors(db: DB) -> Any:
    with db.transaction() as connection:
        with connection.cursor("one") as one, connection.cursor("two", scrollable=True) as two:
            one.execute("SELECT generate_series(1, 10)")
            two.execute("SELECT generate_series(1, 10)")
            first = one.fetchmany(3), two.fetchmany(2)
            two.scroll(-1)
            return first, one.fetchone(), two.fetchone()


def cursor_of_a_transaction_that_is_over(db: DB) -> Any:
    with db.connection() as connection, connection.cursor("held", withhold=True) as cursor:
        cursor.execute("SELECT generate_series(1, 5)")
        first = cursor.fetchmany(2)
        connection.commit()
        return first, cursor.fetchall()


def copied(db: DB) -> Any:
    out = io.BytesIO()
    with db.transaction() as connection:
        with connection.cursor().copy("COPY t FROM STDIN") as copy:
            for a in range(500):
                copy.write_row((a,))
        found = connection.execute("SELECT count(*) FROM t").fetchone()
        with connection.cursor().copy("COPY (SELECT a FROM t ORDER BY a LIMIT 3) TO STDOUT (FORMAT binary)") as copy:
            copied = b"".join(bytes(block) for block in copy)
    return found, copied, db.copy_rows("t", [(1000,), (1001,)]), db.copy_to(ROWS, out), out.getvalue()


def copy_that_fails(db: DB) -> Any:
    with db.transaction() as connection:
        with contextlib.suppress(psycopg.Error), connection.transaction():
            with connection.cursor().copy("COPY t FROM STDIN") as copy:
                copy.write_row((1,))
                copy.write_row(("x",))
        db.execute(INSERT, [2])
    with pytest.raises(psycopg.Error) as caught:
        db.copy_rows("t", [(3,), ("x",)])
    return str(caught.value), db.fetch_values(ROWS)


def copy_that_is_left(db: DB) -> Any:
    with contextlib.suppress(ZeroDivisionError), db.transaction() as connection:
        with connection.cursor().copy("COPY t FROM STDIN") as copy:
            copy.write_row((1,))
            raise ZeroDivisionError
    return db.fetch_values(ROWS)


def pipeline(db: DB) -> Any:
    with db.transaction() as connection, connection.pipeline():
        cursors = [connection.execute(INSERT + " RETURNING a", [a]) for a in range(30)]
    return [cursor.fetchone() for cursor in cursors], db.fetch_value("SELECT count(*) FROM t")


def pipeline_with_an_error(db: DB) -> Any:
    found = []
    with contextlib.suppress(psycopg.Error), db.connection() as connection:
        connection.autocommit = True
        with connection.pipeline() as sent:
            connection.execute(INSERT, [1])
            sent.sync()
            connection.execute(INSERT, [2])
            found.append(connection.execute("SELECT 1/0"))
            connection.execute(INSERT, [3])
    return db.fetch_values(ROWS)


def pipeline_that_commits(db: DB) -> Any:
    with db.connection() as connection, connection.pipeline():
        connection.execute(INSERT, [1])
        connection.commit()
        connection.execute(INSERT, [2])
        connection.rollback()
        connection.execute(INSERT, [3])
    return db.fetch_values(ROWS)


def batched(db: DB) -> Any:
    with db.batch() as batch:
        one = batch.fetch_value("SELECT %s::int", [1])
        batch.execute(INSERT, [1])
        rows = batch.fetch_all(ROWS)
    return one.result, rows.result


def prepared(db: DB) -> Any:
    found = [db.fetch_one("SELECT %s::int + 1 AS b", [a]) for a in range(12)]
    db.execute("CREATE TABLE short_lived (a int)")
    for a in range(8):
        db.execute("INSERT INTO short_lived VALUES (%s)", [a])
        found.append(db.fetch_one("SELECT * FROM short_lived WHERE a = %s", [a]))
    db.execute("ALTER TABLE short_lived ADD b int DEFAULT 7")  # what was prepared is outdated
    found += [db.fetch_one("SELECT * FROM short_lived WHERE a = %s", [a]) for a in range(3)]
    with db.transaction():
        db.execute(INSERT, [1])
        db.execute("ALTER TABLE short_lived DROP b")
        found.append(db.fetch_one("SELECT * FROM short_lived WHERE a = %s", [1]))
    db.execute("DROP TABLE short_lived")
    return found


def settings(db: DB) -> Any:
    found = []
    with db.transaction():
        db.execute("SET LOCAL work_mem = '5MB'")
        found.append(db.fetch_value("SHOW work_mem"))
        with contextlib.suppress(ZeroDivisionError), db.transaction():
            db.execute("SET LOCAL work_mem = '6MB'")
            found.append(db.fetch_value("SHOW work_mem"))
            raise ZeroDivisionError
        found.append(db.fetch_value("SHOW work_mem"))
    found.append(db.fetch_value("SHOW work_mem"))
    with db.connection() as connection:
        connection.execute("SET work_mem = '7MB'")
        connection.execute("SET TIME ZONE 'Asia/Tokyo'")
        connection.commit()
        found.append(connection.execute("SELECT '2020-01-01 00:00+00'::timestamptz").fetchone())
    found.append(db.fetch_value("SHOW work_mem"))  # the pool has cleaned it
    found.append(db.fetch_value("SELECT '2020-01-01 00:00+00'::timestamptz").utcoffset())
    return found


def locked(db: DB) -> Any:
    with db.lock("nightly"):
        db.execute(INSERT, [1])
    with db.transaction(), db.lock("nightly"):
        db.execute(INSERT, [2])
    return db.fetch_values(ROWS)


def read_only(db: DB) -> Any:
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), db.transaction(read_only=True):
        db.execute(INSERT, [1])
    db.execute(INSERT, [2])
    return db.fetch_values(ROWS)


def rows_of_other_kinds(db: DB) -> Any:
    with db.transaction(isolation=psycopg.IsolationLevel.SERIALIZABLE) as connection:
        connection.row_factory = dict_row
        found = connection.execute("SELECT 1 AS a, 'x' AS b, NULL AS c, ARRAY[1,2] AS d, '{}'::jsonb AS e").fetchall()
    return found, db.fetch_all("SELECT ROW(1, 'x')", row_factory=dict_row)


def errors(db: DB) -> Any:
    found = []
    tried: list[tuple[LiteralString, Any]] = [
        ("SELECT nothing", None),
        ("SELECT * FROM nowhere WHERE a = %s", [1]),
        ("SELECT 'ä', %s::int", ["x"]),
        ("INSERT INTO t VALUES (1), (1)", None),
        ("SELECT pg_sleep(60)", None),
        ("", None),
    ]
    for query, params in tried:
        try:
            with db.transaction() if "sleep" not in query else contextlib.nullcontext():
                db.fetch_all(query, params, timeout=0.2 if "sleep" in query else None)
        except Exception as error:
            diag = getattr(error, "diag", None)
            found.append((type(error).__name__, str(error), diag and (diag.sqlstate, diag.constraint_name)))
    return found, db.fetch_value("SELECT 1")


def temporary(db: DB) -> Any:
    with db.transaction():
        db.execute("CREATE TEMP TABLE kept (a int) ON COMMIT DROP")
        db.execute("INSERT INTO kept VALUES (1)")
        found = db.fetch_all("TABLE kept")
    return found, db.fetch_value("SELECT to_regclass('kept')")


def closed_in_the_middle(db: DB) -> Any:
    with contextlib.suppress(psycopg.Error), db.transaction() as connection:
        connection.execute(INSERT, [1])
        connection.close()
    return db.fetch_values(ROWS)


def by_hand(db: DB) -> Any:
    with db.connection() as connection:
        found: list[Any] = [connection.info.transaction_status.name]
        connection.execute(INSERT, [1])
        found.append(connection.info.transaction_status.name)
        connection.rollback()
        connection.execute(INSERT, [2])
        connection.commit()
        found.append(connection.info.transaction_status.name)
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT 1/0")
        found.append(connection.info.transaction_status.name)
        connection.rollback()
        connection.autocommit = True
        connection.execute(INSERT, [3])
        found.append(connection.info.transaction_status.name)
    return found, db.fetch_values(ROWS)


# -- in tasks ---------------------------------------------------------------------------------------------------------


async def tasks(db: ADB) -> Any:
    async def write(a: int) -> None:
        async with db.transaction():
            await db.execute(INSERT, [a])
            await asyncio.sleep(0)
            if a % 3 == 0:
                raise ZeroDivisionError

    done = await asyncio.gather(*map(write, range(12)), return_exceptions=True)
    return [type(each).__name__ for each in done], await db.fetch_values(ROWS)


async def cancelled(db: ADB) -> Any:
    async def write() -> None:
        async with db.transaction():
            await db.execute(INSERT, [1])
            begun.set()
            await db.fetch_value("SELECT pg_sleep(60)")

    begun = asyncio.Event()
    task = asyncio.create_task(write())
    await begun.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return task.cancelled(), await db.fetch_values(ROWS)


async def streamed_in_tasks(db: ADB) -> Any:
    async def read() -> list[Any]:
        return [row async for row in db.stream("SELECT generate_series(1, 9)", size=2)]

    return await asyncio.gather(read(), read(), read())


async def in_threads_and_tasks(db: ADB) -> Any:
    async with db.transaction() as connection:
        await connection.execute(INSERT, [1])
        async with connection.pipeline():
            cursors = [await connection.execute("SELECT %s::int", [a]) for a in range(5)]
        return [await cursor.fetchone() for cursor in cursors]


async def listed_and_copied(db: ADB) -> Any:
    written = await db.copy_rows("t", ((a,) for a in range(100)))
    async with db.batch() as batch:
        count = batch.fetch_value("SELECT count(*) FROM t")
        batch.execute("DELETE FROM t WHERE a > 5")
    return written, count.result, await db.fetch_values(ROWS)


SYNC: list[Callable[[DB], Any]] = [
    *(nested, an_error_that_is_ignored, an_error_in_a_savepoint, deferred, deferred_alone, refused_at_commit, retried),
    *(streamed, stream_that_fails, server_side_cursors, cursor_of_a_transaction_that_is_over),
    *(copied, copy_that_fails, copy_that_is_left, pipeline, pipeline_with_an_error, pipeline_that_commits, batched),
    *(prepared, settings, locked, read_only, rows_of_other_kinds, errors, temporary, closed_in_the_middle, by_hand),
]
ASYNC: list[Callable[[ADB], Awaitable[Any]]] = [
    *(tasks, cancelled, streamed_in_tasks, in_threads_and_tasks, listed_and_copied),
]


@pytest.fixture(scope="module")
def config(pgmonkey_module_database: TestDatabase) -> dict[str, Any]:
    pool = {"min_size": 0, "max_size": 4, "timeout": 60}
    return {**pgmonkey_module_database.config, "pool_settings": pool, "async_pool_settings": pool}


def both_ways(database: TestDatabase, play: Callable[[], Any]) -> None:
    def outcome() -> Any:
        try:
            return play()
        except Exception as error:
            return type(error), str(error)

    try:
        outside = outcome()
    finally:
        with database.connect() as connection:
            connection.execute("TRUNCATE t, late; DROP TABLE IF EXISTS short_lived")
    with sandbox(database.dsn, patience=60):
        assert outcome() == outside
    with database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,), "nothing is left"


@pytest.mark.parametrize("program", SYNC, ids=lambda program: program.__name__)
def test_a_program_gives_the_same(
    program: Callable[[DB], Any], config: dict[str, Any], pgmonkey_module_database: TestDatabase
) -> None:
    database = Database(config)
    both_ways(pgmonkey_module_database, lambda: program(database))
    database.close()


@pytest.mark.parametrize("values", [False, True], ids=["plain", "session values"])
@pytest.mark.parametrize("program", ASYNC, ids=lambda program: program.__name__)
def test_a_program_of_tasks_gives_the_same(
    program: Callable[[ADB], Awaitable[Any]],
    values: bool,
    config: dict[str, Any],
    pgmonkey_module_database: TestDatabase,
) -> None:
    asked = {"app.tenant": "x"} if values else None

    async def play() -> Any:
        database = AsyncDatabase(config, session_values=lambda: asked)
        found = await program(database)
        tenant = await database.fetch_value("SELECT coalesce(current_setting('app.tenant', true), '')")
        await database.close()
        return found, tenant

    both_ways(pgmonkey_module_database, lambda: asyncio.run(play()))
