"""What applications do in a sandbox is one transaction that is rolled back, wherever and however they do it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgmonkey import AsyncDatabase, Database, PGConnectionManager, PoolClosedError, ServerUnavailableError
from pgmonkey._pool import detour
from pgmonkey.testing import SandboxError, sandbox, statements

from .conftest import NOWHERE

if TYPE_CHECKING:
    from pgmonkey.testing import Sandbox, TestDatabase

ROWS = "SELECT a FROM t ORDER BY a"


@pytest.fixture
def seen(pgmonkey_session_database: TestDatabase) -> Callable[[], list[int]]:
    """A function that returns the rows that everybody can see."""

    def look() -> list[int]:
        with pgmonkey_session_database.connect() as connection:
            return [row[0] for row in connection.execute(ROWS).fetchall()]

    return look


def rows(database: Database[Any]) -> list[int]:
    return [row[0] for row in database.fetch_all(ROWS)]


def test_everything_is_one_transaction_and_nothing_is_left(
    pgmonkey_session_database: TestDatabase, seen: Callable[[], list[int]], database: Database[Any]
) -> None:
    manager = PGConnectionManager()
    with sandbox(pgmonkey_session_database.dsn, patience=60):
        database.execute("INSERT INTO t VALUES (1)")
        with database.transaction() as connection:
            connection.execute("INSERT INTO t VALUES (2)")
        with database.connection() as connection, connection.cursor().copy("COPY t FROM STDIN") as copy:
            copy.write_row((3,))
        assert database.execute_many("INSERT INTO t VALUES (%s)", [(4,), (5,)]) == 2
        handle = manager.get_database_connection_from_dict({"connection_settings": {"host": "nowhere"}}, "normal")
        with handle as connection:
            connection.execute("INSERT INTO t VALUES (6)")

        async def in_a_task() -> None:
            other = AsyncDatabase(NOWHERE)
            await other.execute("INSERT INTO t VALUES (7)")
            async with other.transaction() as connection, connection.pipeline():
                await connection.execute("INSERT INTO t VALUES (8)")
                await connection.execute("INSERT INTO t VALUES (9)")
            assert [row[0] async for row in other.stream(ROWS)] == list(range(1, 10))
            await other.close()

        asyncio.run(in_a_task())
        with ThreadPoolExecutor(4) as executor:
            list(executor.map(lambda a: database.execute("INSERT INTO t VALUES (%s)", [a]), range(10, 30)))
        assert rows(database) == [row[0] for row in database.stream(ROWS, size=7)] == list(range(1, 30))
        assert seen() == []
    manager.clear_cache()
    assert seen() == []


def test_a_database_that_was_used_before_is_itself_again(pgmonkey_database: TestDatabase) -> None:
    config = {**pgmonkey_database.config, "pool_settings": {"min_size": 1, "max_size": 4}}
    database, handle = Database(config), PGConnectionManager().get_database_connection_from_dict(config, "pool")
    for a in range(3):
        database.execute("INSERT INTO t VALUES (%s)", [a])
        stats = database.stats()
        with sandbox(pgmonkey_database.dsn, patience=60):
            assert database.execute("DELETE FROM t") == a + 1
            with handle as connection:
                assert connection.execute(ROWS).fetchall() == []
            database.close()
            assert rows(database) == []
        assert rows(database) == list(range(a + 1))
        assert database.stats()["connections_num"] == stats["connections_num"], "it has its own connection again"
        with handle as connection:
            assert len(connection.execute(ROWS).fetchall()) == a + 1
    database.close()
    assert detour.find is None, "nothing is looked up where there is no sandbox"


def test_handles_nest_and_end_as_outside(box: Sandbox, database: Database[Any]) -> None:
    manager = PGConnectionManager()
    config = {"connection_settings": {"host": "nowhere"}}
    single, pool = (manager.get_database_connection_from_dict(config, kind) for kind in ("normal", "pool"))
    for handle in (single, pool):
        with handle as outer:
            outer.execute("INSERT INTO t VALUES (1)")
            if handle is single:
                with contextlib.suppress(ZeroDivisionError), handle as inner:
                    inner.execute("INSERT INTO t VALUES (2)")
                    raise ZeroDivisionError
            assert outer.execute(ROWS).fetchall() == [(1,)]
            outer.rollback()
        handle.close()
        with pytest.raises(PoolClosedError), handle:
            pass
    manager.clear_cache()


def test_sandboxes_side_by_side_see_nothing_of_each_other(
    pgmonkey_session_database: TestDatabase, seen: Callable[[], list[int]], database: Database[Any]
) -> None:
    together = threading.Barrier(4)

    def in_thread(a: int) -> list[int]:
        with sandbox(pgmonkey_session_database.dsn, patience=60):
            together.wait(60)
            database.execute("INSERT INTO t VALUES (%s)", [a])
            together.wait(60)
            found = rows(database)
            together.wait(60)
            return found

    with ThreadPoolExecutor(4) as executor:
        assert list(executor.map(in_thread, range(4))) == [[0], [1], [2], [3]]
    assert seen() == []


def test_tasks_side_by_side_have_sandboxes_of_their_own(
    pgmonkey_session_database: TestDatabase, seen: Callable[[], list[int]]
) -> None:
    async def in_task(a: int, entered: list[int]) -> list[Any]:
        with sandbox(pgmonkey_session_database.dsn, patience=60):
            entered.append(a)
            while len(entered) < 3:
                await asyncio.sleep(0.01)
            other = AsyncDatabase(NOWHERE)
            await other.execute("INSERT INTO t VALUES (%s)", [a])
            entered.append(a)
            while len(entered) < 6:
                await asyncio.sleep(0.01)
            found = await other.fetch_all(ROWS)
            await other.close()
            return found

    async def tasks() -> list[list[Any]]:
        entered: list[int] = []
        return await asyncio.gather(*(asyncio.create_task(in_task(a, entered)) for a in range(3)))

    assert asyncio.run(tasks()) == [[(0,)], [(1,)], [(2,)]]
    assert seen() == []


def test_a_thread_that_does_not_tell_its_sandbox_is_refused(
    pgmonkey_session_database: TestDatabase, database: Database[Any]
) -> None:
    with sandbox(pgmonkey_session_database.dsn), sandbox(pgmonkey_session_database.dsn), ThreadPoolExecutor(1) as pool:
        with pytest.raises(SandboxError, match=r"2 sandboxes are open.*copy_context"):
            pool.submit(database.fetch_value, "SELECT 1").result(60)
        assert pool.submit(contextvars.copy_context().run, database.fetch_value, "SELECT 1").result(60) == 1


def test_a_task_that_outlives_its_sandbox_is_refused(
    pgmonkey_session_database: TestDatabase, seen: Callable[[], list[int]], database: Database[Any]
) -> None:
    with sandbox(pgmonkey_session_database.dsn):
        context = contextvars.copy_context()
        assert context.run(database.fetch_value, "SELECT 1") == 1
    # Another one is open: the write must not become part of it, nor reach the database itself.
    with sandbox(pgmonkey_session_database.dsn) as other:
        with pytest.raises(SandboxError, match="has ended"):
            context.run(database.execute, "INSERT INTO t VALUES (1)")
        with pytest.raises(SandboxError, match="has ended"):
            context.run(Database(NOWHERE).execute, "INSERT INTO t VALUES (1)")
        with psycopg.connect(other.dsn) as connection:
            assert connection.execute(ROWS).fetchall() == []
    assert seen() == []


def test_transactions_take_turns(box: Sandbox, database: Database[Any]) -> None:
    def work(a: int) -> None:
        with database.transaction() as connection:
            (before,) = connection.execute("SELECT count(*) FROM t").fetchone() or (0,)
            time.sleep(0.002)
            connection.execute("INSERT INTO t SELECT count(*) FROM t")
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (before + 1,)

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(work, range(40)))
    assert rows(database) == list(range(40))


def test_a_turn_that_does_not_come_is_an_error_that_says_so(
    pgmonkey_session_database: TestDatabase, database: Database[Any]
) -> None:
    with sandbox(pgmonkey_session_database.dsn, patience=0.1):
        other = Database(NOWHERE)
        assert other.fetch_value("SELECT %s::int", [1]) == 1
        with database.transaction():
            database.execute("INSERT INTO t VALUES (1)")
            for params in (None, [1]):
                with pytest.raises(psycopg.errors.LockNotAvailable) as caught, other.connection() as connection:
                    connection.execute("SELECT 1" if params is None else "SELECT %s::int", params)
                assert "whose last statement was: INSERT INTO t VALUES (1)" in str(caught.value)
                assert "pgmonkey_database" in str(caught.value.diag.message_hint)
        assert other.fetch_value("SELECT count(*) FROM t") == 1
        other.close()


def test_the_settings_of_a_configuration_are_those_of_its_connections(box: Sandbox) -> None:
    config: dict[str, Any] = {
        "connection_settings": {"host": "nowhere", "user": "nobody", "password": "x", "sslmode": "verify-full"},
        "sync_settings": {"timezone": "Asia/Tokyo", "app.tenant": "a b\\c", "search_path": ["pg_catalog", "public"]},
    }
    one, other = Database(config), Database(NOWHERE)
    for _ in range(3):
        assert one.fetch_value("SELECT current_setting('app.tenant')") == "a b\\c"
        assert one.fetch_one("SELECT current_setting('timezone'), current_setting('search_path')") == (
            "Asia/Tokyo",
            "pg_catalog, public",
        )
        assert other.fetch_value("SHOW timezone") != "Asia/Tokyo"
    wrong = Database({**config, "sync_settings": {"work_mem": "much"}, "pool_settings": {"open_timeout": 0.0}})
    with pytest.raises(ServerUnavailableError, match="work_mem"):
        wrong.fetch_value("SELECT 1")
    for each in (one, other, wrong):
        each.close()


def test_row_level_security_sees_the_user_of_the_configuration(box: Sandbox) -> None:
    with psycopg.connect(box.dsn) as connection:
        connection.execute("CREATE ROLE sandbox_app")
        connection.execute("CREATE TABLE own (who text DEFAULT current_user)")
        connection.execute("GRANT ALL ON own TO sandbox_app")
        connection.execute("ALTER TABLE own ENABLE ROW LEVEL SECURITY")
        connection.execute("CREATE POLICY own ON own USING (who = current_user)")
        connection.execute("INSERT INTO own DEFAULT VALUES")
    app = Database("postgresql://sandbox_app@nowhere/app")
    app.execute("INSERT INTO own DEFAULT VALUES")
    assert app.fetch_all("SELECT who FROM own") == [("sandbox_app",)]
    app.close()


def test_further_databases_are_transactions_of_their_own(
    pgmonkey_session_database: TestDatabase, pgmonkey_database: TestDatabase, seen: Callable[[], list[int]]
) -> None:
    shop, reports = Database("postgresql://app@nowhere/shop"), Database("postgresql://app@nowhere/reports")
    with sandbox(pgmonkey_session_database.dsn, databases={"reports": pgmonkey_database.dsn}):
        shop.execute("INSERT INTO t VALUES (1)")
        with shop.transaction(), reports.transaction():
            reports.execute("INSERT INTO t VALUES (2)")
            assert shop.fetch_value("SELECT current_database()") != reports.fetch_value("SELECT current_database()")
        assert (rows(shop), rows(reports)) == ([1], [2])
    with pgmonkey_database.connect() as connection:
        assert connection.execute(ROWS).fetchall() == seen() == []
    shop.close()
    reports.close()


# -- what tests ask for -----------------------------------------------------------------------------------------------


def test_statements_are_counted(box: Sandbox, database: Database[Any]) -> None:
    database.fetch_value("SELECT 0")
    with statements() as counted:
        with database.transaction():
            database.execute("INSERT INTO t VALUES (%s)", [1])
            with database.transaction():
                database.fetch_value("SELECT 1")
        database.fetch_value("SELECT 2")
    database.fetch_value("SELECT 3")
    assert counted.texts == ["INSERT INTO t VALUES ($1)", "SELECT 1", "SELECT 2"]
    assert (counted.count, counted.connections) == (3, 1)
    assert 4 <= counted.round_trips <= 6


def test_counting_needs_a_sandbox() -> None:
    with pytest.raises(SandboxError, match="pgmonkey_sandbox"), statements():
        pass


def test_a_commit_can_be_made_to_fail(box: Sandbox, database: Database[Any]) -> None:
    box.fail_next_commit()
    with pytest.raises(psycopg.errors.SerializationFailure, match="could not serialize"), database.transaction():
        database.execute("INSERT INTO t VALUES (1)")
    assert rows(database) == []
    box.fail_next_commit("23505", "there is one already")
    tried: list[int] = []

    def work() -> None:
        tried.append(database.execute("INSERT INTO t VALUES (2)"))

    with pytest.raises(psycopg.errors.UniqueViolation, match="there is one already"):
        database.retry(work)
    box.fail_next_commit()
    box.fail_next_commit("40P01", "deadlock detected")
    database.retry(work)
    assert (len(tried), rows(database)) == (4, [2])


def test_a_connection_can_be_lost(box: Sandbox, database: Database[Any]) -> None:
    with pytest.raises(psycopg.OperationalError), database.transaction():
        database.execute("INSERT INTO t VALUES (1)")
        box.lose_connection()
        database.execute("INSERT INTO t VALUES (2)")
    assert rows(database) == []


def test_the_server_can_be_away(box: Sandbox, database: Database[Any]) -> None:
    database.execute("INSERT INTO t VALUES (1)")
    away = Database({"connection_settings": {"host": "nowhere"}, "pool_settings": {"open_timeout": 0.0}})
    with box.server_away(), pytest.raises(ServerUnavailableError):
        away.fetch_value("SELECT 1")
    assert rows(database) == rows(away) == [1]
    away.close()


def test_a_statement_is_cancelled(box: Sandbox) -> None:
    with psycopg.connect(box.dsn) as running, psycopg.connect(box.dsn) as waiting, ThreadPoolExecutor(2) as executor:
        running.execute("SELECT 1")
        waits = executor.submit(waiting.execute, "SELECT 1")
        sleeps = executor.submit(running.execute, "SELECT pg_sleep(60)")
        for connection, future in ((waiting, waits), (running, sleeps)):
            while not future.done():
                connection.cancel()
                time.sleep(0.05)
            with pytest.raises(psycopg.errors.QueryCanceled):
                future.result()


def test_a_sandbox_ends_while_a_statement_runs(
    pgmonkey_session_database: TestDatabase, seen: Callable[[], list[int]]
) -> None:
    with ThreadPoolExecutor(1) as executor:
        with sandbox(pgmonkey_session_database.dsn) as opened:
            connection = psycopg.connect(opened.dsn)
            connection.execute("INSERT INTO t VALUES (1)")
            sleeps = executor.submit(connection.execute, "SELECT pg_sleep(60)")
            time.sleep(0.2)
        with pytest.raises(psycopg.Error):
            sleeps.result(60)
    connection.close()
    assert seen() == []


@pytest.mark.parametrize("where", ["a transaction", "a result", "a COPY"])
def test_a_client_that_leaves_in_the_middle_leaves_nothing(where: str, box: Sandbox) -> None:
    connection = psycopg.connect(box.dsn)
    connection.execute("INSERT INTO t VALUES (1)")
    if where == "a result":
        connection.pgconn.send_query(b"SELECT repeat('x', 1000) FROM generate_series(1, 50000)")
    elif where == "a COPY":
        connection.pgconn.send_query(b"COPY t FROM STDIN")
    connection.close()
    with psycopg.connect(box.dsn) as other:
        assert other.execute(ROWS).fetchall() == []


def test_only_who_knows_the_secret_comes_in(box: Sandbox) -> None:
    with pytest.raises(psycopg.OperationalError, match="wrong password for the sandbox"):
        psycopg.connect(box.dsn, password="guessed")


def test_a_transaction_that_is_lost_ends_the_sandbox(pgmonkey_session_database: TestDatabase) -> None:
    with sandbox(pgmonkey_session_database.dsn) as opened:
        with pytest.raises(psycopg.OperationalError), psycopg.connect(opened.dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        with pytest.raises(psycopg.OperationalError, match="the transaction of the sandbox is over"):
            psycopg.connect(opened.dsn, autocommit=True).execute("SELECT 1")
