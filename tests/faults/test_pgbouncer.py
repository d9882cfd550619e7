"""PgBouncer in transaction mode: every transaction may be in another session."""

from __future__ import annotations

import asyncio
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
