"""PgBouncer in transaction mode: every transaction may be in another session."""

from __future__ import annotations

import asyncio
import io
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from pgmonkey import AsyncDatabase, Database

from ..conftest import ON_CI
from .clusters import Cluster, PgBouncer
from .proxy import FaultProxy

Figure = Callable[[str, str], None]
ROW = "PgBouncer in transaction mode"


@pytest.fixture
def bouncer(cluster: Cluster) -> Iterator[PgBouncer]:
    if shutil.which("pgbouncer") is None and not ON_CI:
        pytest.skip("pgbouncer is not installed (Debian: apt install pgbouncer)")
    with PgBouncer(cluster, default_pool_size=4) as bouncer:
        yield bouncer


@pytest.fixture
def bounced(config: dict[str, Any], bouncer: PgBouncer) -> dict[str, Any]:
    settings = {**config["connection_settings"], "port": bouncer.port, "pgbouncer": True}
    limits = {"statement_timeout": "7s", "search_path": ["public", "pg_temp"]}
    return {**config, "connection_settings": settings, "sync_settings": limits, "async_settings": limits}


async def test_many_operations(bounced: dict[str, Any], figure: Figure) -> None:
    database, async_database = Database(bounced), AsyncDatabase(bounced)
    errors: list[Exception] = []
    operations = 0

    def operate() -> None:
        nonlocal operations
        for number in range(125):
            operations += 4
            try:
                assert database.fetch_value("SELECT %s::int", [number]) == number
                assert database.fetch_value("SHOW statement_timeout") == "7s"
                with database.transaction() as connection:
                    assert connection.execute("SHOW statement_timeout").fetchone() == ("7s",)
                    connection.execute("SET work_mem = '123kB'")
                assert sum(1 for _ in database.stream("SELECT generate_series(1, 20)", size=7)) == 20
            except (psycopg.Error, AssertionError) as error:
                errors.append(error)

    async def async_operate() -> None:
        nonlocal operations
        for number in range(10):
            operations += 3
            try:
                assert await async_database.fetch_value("SELECT %s::int", [number]) == number
                async with async_database.transaction() as connection:
                    cursor = await connection.execute("SHOW search_path")
                    assert await cursor.fetchone() == ("public, pg_temp",)
                assert await async_database.fetch_value("SHOW work_mem") == "4MB"
            except (psycopg.Error, AssertionError) as error:
                errors.append(error)

    threads = [threading.Thread(target=operate) for _ in range(8)]
    for thread in threads:
        thread.start()
    await asyncio.gather(*(async_operate() for _ in range(50)))
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert errors == []
    assert database.fetch_value("SHOW work_mem") == "4MB"
    figure(
        ROW,
        f"8 threads with 500 operations each, 50 tasks: {len(errors)} errors of {operations}, no SET reaches others",
    )
    await async_database.close()


@pytest.fixture(params=["transaction", "session", "statement"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def forgotten(config: dict[str, Any], cluster: Cluster, mode: str) -> Iterator[dict[str, Any]]:
    """The configuration of somebody who does not know that a PgBouncer is in between."""
    if shutil.which("pgbouncer") is None and not ON_CI:
        pytest.skip("pgbouncer is not installed (Debian: apt install pgbouncer)")
    with PgBouncer(cluster, default_pool_size=6, pool_mode=mode) as bouncer:
        settings = {**config["connection_settings"], "port": bouncer.port, "prepare_threshold": 0}
        pool = {"min_size": 2, "max_size": 2}
        yield {"connection_settings": settings, "pool_settings": pool, "async_pool_settings": pool}


PREPARED = "SELECT count(*) FROM pg_prepared_statements"


def test_a_forgotten_key_is_noticed(mode: str, forgotten: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    database = Database(forgotten)
    for number in range(8):
        assert database.fetch_value("SELECT %s::int", [number]) == number
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda _: database.fetch_value(PREPARED) > 0, range(6))) == [mode == "session"] * 6
    warnings = [record.getMessage() for record in caplog.records if "pgbouncer: true" in record.getMessage()]
    assert len(warnings) == (mode != "session")
    database.close()


async def test_tasks_notice_it_too(mode: str, forgotten: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    database = AsyncDatabase(forgotten)
    for number in range(8):
        assert await database.fetch_value("SELECT %s::int", [number]) == number
    assert (await database.fetch_value(PREPARED) > 0) is (mode == "session")
    assert ("pgbouncer: true" in caplog.text) is (mode != "session")
    await database.close()


def test_a_pooler_that_counts_its_clients_is_noticed_too(
    mode: str, forgotten: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Supavisor's numbers could be those of the server's processes."""
    with FaultProxy("127.0.0.1", forgotten["connection_settings"]["port"]) as proxy:
        proxy.key = (4711).to_bytes(4, "big")
        forgotten["connection_settings"]["port"] = proxy.port
        forgotten["pool_settings"] = {"min_size": 1, "max_size": 1}
        database = Database(forgotten)
        for number in range(8):
            assert database.fetch_value("SELECT %s::int", [number]) == number
        assert (database.fetch_value(PREPARED) > 0) is (mode == "session")
        assert ("pgbouncer: true" in caplog.text) is (mode != "session")
        database.close()


@pytest.mark.parametrize("mode", ["transaction"])
def test_whoever_says_that_it_is_safe_is_believed(
    mode: str, forgotten: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    forgotten["connection_settings"]["pgbouncer"] = False
    database = Database(forgotten)
    for _ in range(8):
        database.fetch_value("SELECT 1")
    assert database.fetch_value(PREPARED) > 0
    assert "pgbouncer" not in caplog.text
    database.close()


def test_a_server_is_no_pooler(config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    config["connection_settings"]["prepare_threshold"] = 0
    database = Database(config)
    database.fetch_value("SELECT 1")
    assert database.fetch_value(PREPARED) > 0
    assert caplog.text == ""
    database.close()


def test_without_settings_a_query_method_is_one_statement(bounced: dict[str, Any]) -> None:
    del bounced["sync_settings"]
    database = Database(bounced)
    for _ in range(20):
        assert database.fetch_value("SELECT 1") == 1
    with database.connection() as connection:
        assert connection.prepare_threshold is None


def test_pipelines_have_the_settings_too(bounced: dict[str, Any]) -> None:
    database = Database(bounced)
    with database.connection() as connection, connection.pipeline():
        cursor = connection.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("7s",)


# -- the query methods that need more than a statement -----------------------------------------------------------------

NUMBERS = [1, 2**20, 2, 2**40, None, 3]


def use(database: Database[Any], first: int) -> None:
    """Store 60 rows, from the number *first* on, in each of the ways that need a transaction."""
    insert = "INSERT INTO numbers VALUES (%s, %s)"
    rows = [(first + i, NUMBERS[i % 6]) for i in range(60)]
    assert database.execute_many(insert, rows[:20]) == 20
    returned = database.execute_many(f"{insert} RETURNING a", rows[20:26], returning=True)
    assert returned == [(a,) for a, _ in rows[20:26]]
    assert database.copy_rows("numbers", rows[26:40]) == 14
    text = "a,b\n" + "".join(f"{a},{'' if b is None else b}\n" for a, b in rows[40:50])
    assert database.copy_from("numbers", io.BytesIO(text.encode())) == 10
    with database.lock("numbers"), database.batch() as batch:
        inserted = [batch.execute(insert, row) for row in rows[50:]]
        found = batch.fetch_all("SELECT a, b FROM numbers WHERE a BETWEEN %s AND %s ORDER BY a", [first, first + 59])
    assert [answer.result for answer in inserted] == [1] * 10
    assert found.result == rows
    database.notify("numbers", str(first))
    file = io.BytesIO()
    query = "SELECT a FROM numbers WHERE a BETWEEN %s AND %s ORDER BY a"
    assert database.copy_to(query, file, [first, first + 59], header=False) == 60
    assert file.getvalue() == b"".join(b"%d\n" % (first + i) for i in range(60))


async def use_async(database: AsyncDatabase[Any], first: int) -> None:
    """Do the same in a task."""
    insert = "INSERT INTO numbers VALUES (%s, %s)"
    rows = [(first + i, NUMBERS[i % 6]) for i in range(60)]
    assert await database.execute_many(insert, rows[:20]) == 20
    returned = await database.execute_many(f"{insert} RETURNING a", rows[20:26], returning=True)
    assert returned == [(a,) for a, _ in rows[20:26]]
    assert await database.copy_rows("numbers", rows[26:50]) == 24
    async with database.lock("numbers"), database.batch() as batch:
        inserted = [batch.execute(insert, row) for row in rows[50:]]
        found = batch.fetch_all("SELECT a, b FROM numbers WHERE a BETWEEN %s AND %s ORDER BY a", [first, first + 59])
    assert [answer.result for answer in inserted] == [1] * 10
    assert found.result == rows
    await database.notify("numbers", str(first))


async def test_bulk_locks_batches_and_notifications(
    bounced: dict[str, Any], config: dict[str, Any], observer: psycopg.Connection[Any], figure: Figure
) -> None:
    observer.execute("CREATE TABLE numbers (a int PRIMARY KEY, b bigint)")
    heard: list[str] = []
    observer.add_notify_handler(lambda note: heard.append(note.payload))
    observer.execute("LISTEN numbers")
    database, async_database = Database(bounced), AsyncDatabase(bounced)
    with ThreadPoolExecutor(8) as threads:
        working = [threads.submit(use, database, 60 * number) for number in range(80)]
        await asyncio.gather(*(use_async(async_database, 60 * (80 + number)) for number in range(40)))
        for each in working:
            await asyncio.wrap_future(each)
    observer.execute("SELECT 1")
    assert sorted(map(int, heard)) == [60 * number for number in range(120)]
    count = "SELECT count(*) FROM numbers WHERE b IS NOT DISTINCT FROM (%s::bigint[])[a %% 6 + 1]"
    assert observer.execute(count, [NUMBERS]).fetchone() == (7200,)
    await _refuse_what_needs_a_session(database, async_database)
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    assert observer.execute(locks).fetchone() == (0,)
    figure(ROW, "8 threads, 40 tasks: execute_many, COPY, locks, batches and NOTIFY: 7200 of 7200 rows right")
    database.close()
    await async_database.close()


async def _refuse_what_needs_a_session(database: Database[Any], async_database: AsyncDatabase[Any]) -> None:
    for _ in range(2):
        with pytest.raises(psycopg.NotSupportedError, match="LISTEN needs a session of its own"):
            next(iter(database.listen("numbers")))
        with pytest.raises(psycopg.NotSupportedError, match="LISTEN needs a session of its own"):
            await async_database.listen("numbers").__anext__()
        with pytest.raises(psycopg.NotSupportedError, match="a lock of a session needs a session of its own"):
            with database.lock("numbers", session=True):
                raise AssertionError
        with pytest.raises(psycopg.NotSupportedError, match="a lock of a session needs a session of its own"):
            async with async_database.lock("numbers", session=True):
                raise AssertionError


@pytest.mark.parametrize("mode", ["transaction", "session"])
async def test_they_are_right_or_refused_where_the_key_was_forgotten(
    mode: str, forgotten: dict[str, Any], observer: psycopg.Connection[Any]
) -> None:
    observer.execute("CREATE TABLE numbers (a int PRIMARY KEY, b bigint)")
    database, async_database = Database(forgotten), AsyncDatabase(forgotten)
    for number in range(4):
        use(database, 120 * number)
        await use_async(async_database, 120 * number + 60)
    assert observer.execute("SELECT count(*) FROM numbers").fetchone() == (480,)
    if mode == "transaction":
        await _refuse_what_needs_a_session(database, async_database)
    else:
        with database.lock("numbers", session=True), database.listen("numbers") as notes:
            async with async_database.listen("numbers") as async_notes:
                database.notify("numbers", "7")
                note = next(iter(notes))
                assert isinstance(note, psycopg.Notify)
                assert (note.payload, await async_notes.__anext__()) == ("7", note)
    database.close()
    await async_database.close()
