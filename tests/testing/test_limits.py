"""What cannot be had in a sandbox is an error that names the fixture to use; what differs is as the page says."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgmonkey import AsyncDatabase, Database
from pgmonkey.testing import sandbox

from .conftest import NOWHERE

if TYPE_CHECKING:
    from pgmonkey.testing import Sandbox, TestDatabase

REFUSED = (
    *("VACUUM", "CREATE DATABASE x", "DROP DATABASE postgres", "CREATE INDEX CONCURRENTLY ON t (a)", "LISTEN x"),
    *("REINDEX TABLE CONCURRENTLY t", "ALTER SYSTEM SET work_mem = '5MB'", "DO 'BEGIN COMMIT; END'"),
    *("PREPARE TRANSACTION 'x'", "COMMIT PREPARED 'x'", "SET TRANSACTION SNAPSHOT 'x'", "SELECT pg_export_snapshot()"),
)


def test_what_cannot_be_had_names_the_fixture_to_use(box: Sandbox) -> None:
    with psycopg.connect(box.dsn, autocommit=True) as connection:
        for statement in REFUSED:
            for prepare in (False, True):
                if "SNAPSHOT" in statement:
                    connection.execute("BEGIN")
                with pytest.raises(psycopg.Error) as caught:
                    connection.execute(cast(Any, statement), prepare=prepare)
                assert "pgmonkey_database" in str(caught.value.diag.message_hint), caught.value
                assert "pgmonkey_database" in str(caught.value)
                connection.rollback()
                assert connection.execute("SELECT 1").fetchone() == (1,)


def test_two_phase_commit_names_the_fixture_to_use(box: Sandbox, database: Database[Any]) -> None:
    with pytest.raises(psycopg.NotSupportedError, match="pgmonkey_database"), database.connection() as connection:
        connection.tpc_begin(connection.xid(1, "global", "branch"))
        connection.execute("INSERT INTO t VALUES (1)")
        connection.tpc_prepare()
    assert database.fetch_value("SELECT count(*) FROM t") == 0


def test_listening_names_the_fixture_to_use_and_is_itself_again(pgmonkey_database: TestDatabase) -> None:
    database = Database(pgmonkey_database.config)

    async def listen() -> None:
        other = AsyncDatabase(pgmonkey_database.config)
        with pytest.raises(psycopg.NotSupportedError, match=r"LISTEN.*\n.*pgmonkey_database"):
            async with other.listen("x"):
                pass
        await other.close()

    for _ in range(2):
        with sandbox(pgmonkey_database.dsn):
            asyncio.run(listen())
            with pytest.raises(psycopg.NotSupportedError, match=r"LISTEN.*\n.*pgmonkey_database"), database.listen("x"):
                pass
            database.notify("x", "in a sandbox")
        with database.listen("x") as notes:
            database.notify("x", "outside")
            assert cast(Any, next(iter(notes))).payload == "outside"
    database.close()


def test_a_stream_beside_a_transaction_names_the_fixture_to_use(pgmonkey_session_database: TestDatabase) -> None:
    database = Database(NOWHERE)
    with sandbox(pgmonkey_session_database.dsn, patience=0.1):
        with pytest.raises(psycopg.errors.LockNotAvailable, match=r"FETCH FORWARD(?s:.*)pgmonkey_database"):
            for _ in database.stream("SELECT generate_series(1, 9)", size=2):
                database.fetch_value("SELECT 1")
        assert database.fetch_value("SELECT 1") == 1
    database.close()


# -- what differs -----------------------------------------------------------------------------------------------------


def test_it_is_one_transaction(pgmonkey_database: TestDatabase) -> None:
    with pgmonkey_database.connect() as outside:
        outside.execute("CREATE SEQUENCE s; LISTEN x")
        numbers = []
        for _ in range(2):
            with sandbox(pgmonkey_database.dsn) as opened:
                one, other = (psycopg.connect(opened.dsn, autocommit=True) for _ in range(2))
                (begins,) = one.execute("SELECT now(), clock_timestamp()").fetchall()
                time.sleep(0.01)
                (goes_on,) = other.execute("SELECT now(), clock_timestamp()").fetchall()
                assert begins[0] == goes_on[0]
                assert begins[1] < goes_on[1]
                numbers.append(other.execute("SELECT nextval('s')").fetchone())
                one.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
                assert one.execute("SHOW transaction_isolation").fetchone() == ("read committed",)
                one.execute("COMMIT")
                taken = [each.execute("SELECT pg_try_advisory_lock(1)").fetchone() for each in (one, other)]
                assert taken == [(True,), (True,)]
                one.execute("CREATE TEMP TABLE x (a int)")
                assert other.execute("TABLE x").fetchall() == []
                one.execute("NOTIFY x")
                one.close()
                other.close()
        assert numbers == [(1,), (2,)]
        assert list(outside.notifies(timeout=0.1)) == []


def test_a_sandbox_waits_for_its_test_whatever_limits_there_are(pgmonkey_database: TestDatabase) -> None:
    limits = ["idle_in_transaction_session_timeout", "idle_session_timeout"]
    with pgmonkey_database.connect() as connection:
        for limit in limits:
            name = sql.Identifier(pgmonkey_database.name)
            connection.execute(sql.SQL("ALTER DATABASE {} SET {} = '2s'").format(name, sql.Identifier(limit)))
    local = f"BEGIN; SET LOCAL {limits[0]} = '2s'; COMMIT"
    with ExitStack() as stack:
        clients = []
        for statement in ("SELECT 1", "RESET ALL", "DISCARD ALL", *(f"SET {limit} = '2s'" for limit in limits), local):
            opened = stack.enter_context(sandbox(pgmonkey_database.dsn))
            clients.append(stack.enter_context(psycopg.connect(opened.dsn, autocommit=True)))
            clients[-1].execute(cast(Any, statement))
        time.sleep(3)
        assert [client.execute("SELECT 1").fetchone() for client in clients] == [(1,)] * 6


def test_a_server_whose_user_is_no_superuser(pgmonkey_database: TestDatabase) -> None:
    mine, app = (f"sandbox_{name}_{os.getpid()}" for name in ("mine", "app"))
    with pgmonkey_database.connect() as connection:
        for role in (mine, app):
            statement = "CREATE ROLE {} LOGIN PASSWORD 'secret'"
            connection.execute(sql.SQL(statement).format(sql.Identifier(role)))
        dsn = make_conninfo(pgmonkey_database.dsn, user=mine, password="secret")
        try:
            with sandbox(dsn), Database(f"postgresql://{app}@nowhere/app").connection() as lent:
                assert lent.execute("SELECT current_user").fetchone() == (mine,)
        finally:
            for role in (mine, app):
                connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
