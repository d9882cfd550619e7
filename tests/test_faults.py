# Generated from test_faults_async.py by tools/twins.py: change that file, then run the tool.

"""What the pool does when something goes wrong, in both colours: this file is the source of its synchronous twin.

The fault suite, in tests/faults, does the same on a larger scale.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from pgmonkey import CommandTimeoutError, Database, PGConnectionManager
from pgmonkey._sync.waiting import POOL_KIND, sleep

from ._colour import elsewhere

Backends = Callable[[], list[tuple[int, str]]]
Observer = psycopg.Connection[Any]


def pools(config: dict[str, Any], **settings: Any) -> dict[str, Any]:
    pool = {"min_size": 1, "max_size": 2, "timeout": 5, **settings}
    return {**config, "pool_settings": dict(pool), "async_pool_settings": dict(pool)}


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not what():
        assert time.monotonic() < deadline
        sleep(0.01)


def at_work(observer: Observer) -> int:
    row = observer.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND state = 'active' AND query LIKE '%pg_sleep%'"
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_a_command_timeout_ends_the_statement_here_and_there(config: dict[str, Any], observer: Observer) -> None:
    config["connection_settings"]["command_timeout"] = 0.3
    database = Database(pools(config))
    with pytest.raises(CommandTimeoutError, match=r"0\.3 s \(command_timeout\)"):
        database.fetch_value("SELECT pg_sleep(30)")
    until(lambda: at_work(observer) == 0)
    assert database.fetch_value("SELECT 1") == 1
    with pytest.raises(psycopg.OperationalError, match="the connection was lost"):
        with database.connection() as connection:
            with pytest.raises(CommandTimeoutError):
                connection.execute("SELECT pg_sleep(30)")
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
    until(lambda: database.stats()["pool_size"] == database.stats()["pool_available"])
    database.close()


def test_waiting_for_notifications_has_no_command_timeout(config: dict[str, Any], observer: Observer) -> None:
    config["connection_settings"]["command_timeout"] = 0.2
    database = Database(pools(config))
    with database.connection() as connection:
        connection.execute("LISTEN news")
        connection.commit()
        threading.Timer(0.6, lambda: observer.execute("NOTIFY news, 'late'")).start()
        for notification in connection.notifies(timeout=3, stop_after=1):
            assert notification.payload == "late"
            break
        else:
            raise AssertionError("nothing came")
    database.close()


def test_a_connection_that_is_out_for_long_is_reported_once(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(pools(config, leak_detection_threshold=0.2))
    with database.connection() as connection:
        connection.execute("SELECT 1")
        sleep(0.9)
    (record,) = [record.getMessage() for record in caplog.records if "possible leak" in record.getMessage()]
    assert Path(__file__).name in record
    assert "test_a_connection_that_is_out_for_long_is_reported_once" in record
    assert f"by {'thread' if POOL_KIND == 'pool' else 'task'} '" in record
    assert 0.2 <= float(record.partition("checked out for ")[2].partition(" s")[0]) < 0.9
    caplog.clear()
    with database.connection():
        sleep(0.5)
    assert len(caplog.records) == 1, "the same connection, in other hands"
    database.close()


def test_without_a_threshold_nothing_is_reported(config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    database = Database(pools(config))
    with database.connection():
        sleep(0.5)
    assert not caplog.records
    database.close()


def test_closing_names_what_is_still_out(config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    database = Database(pools(config))
    with database.connection() as connection:
        database.close()
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert Path(__file__).name in caplog.text
        assert "still out" in caplog.text
        connection.execute("SELECT 1")


def test_what_nobody_can_give_back_any_more_is_taken_back(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    get: Any = PGConnectionManager().get_database_connection_from_dict
    handle = get(pools(config, timeout=2), POOL_KIND)

    def forget() -> None:
        connection = handle.__enter__()
        connection.execute("SELECT 1")

    for _ in range(5):
        elsewhere(forget)
        with handle as connection:
            connection.execute("SELECT 1")
    assert "never given back" in caplog.text
    assert len(handle._open_blocks._by_frame) <= 2
    assert handle.stats()["pool_size"] <= 2


def test_what_somebody_still_refers_to_is_not_taken_back(config: dict[str, Any]) -> None:
    get: Any = PGConnectionManager().get_database_connection_from_dict
    handle = get(pools(config, max_size=1, timeout=0.2), POOL_KIND)
    kept = []

    def keep() -> None:
        kept.append(handle.__enter__())

    elsewhere(keep)
    with pytest.raises(psycopg.OperationalError, match="no connection came free"):
        handle.borrow()
    kept[0].execute("SELECT 1")


def test_opening_keeps_trying_for_as_long_as_it_is_told(
    config: dict[str, Any], observer: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    late = f"late_{observer.info.dbname}"
    config["connection_settings"]["dbname"] = late
    with pytest.raises(psycopg.OperationalError, match=late):
        Database(pools(config)).connect()
    started = time.monotonic()
    with pytest.raises(psycopg.OperationalError, match=late):
        Database(pools(config, open_timeout=0.5)).connect()
    assert 0.1 < time.monotonic() - started < 2
    threading.Timer(0.4, lambda: observer.execute(f"CREATE DATABASE {late}".encode())).start()
    database = Database(pools(config, open_timeout=20))
    try:
        database.connect()
        assert database.fetch_value("SELECT current_database()") == late
    finally:
        database.close()
        sleep(0.1)
        observer.execute(f"DROP DATABASE {late} WITH (FORCE)".encode())
    assert "trying again" in caplog.text


def test_one_that_hears_of_a_shutdown_replaces_all(config: dict[str, Any]) -> None:
    database = Database(pools(config, min_size=2))
    with database.connection() as first, database.connection() as second:
        pids = {first.info.backend_pid, second.info.backend_pid}
    with pytest.raises(psycopg.errors.AdminShutdown):
        database.execute("DO $$ BEGIN RAISE 'going down' USING ERRCODE = 'admin_shutdown'; END $$")
    with database.connection() as first, database.connection() as second:
        assert not pids & {first.info.backend_pid, second.info.backend_pid}
    database.close()


def test_what_was_lost_is_replaced_without_a_borrower(config: dict[str, Any], backends: Backends) -> None:
    database = Database(pools(config, min_size=2))
    database.fetch_value("SELECT 1")
    until(lambda: database.stats()["pool_available"] == 2)
    with database.connection() as connection:
        connection.close()
    until(lambda: database.stats()["pool_available"] == 2 == len(backends()))
    database.close()


def test_a_prepared_statement_of_sql_does_not_reach_the_next(config: dict[str, Any]) -> None:
    database = Database(pools(config, max_size=1))
    count = "SELECT count(*) FROM pg_prepared_statements WHERE from_sql"
    for _ in range(8):
        database.fetch_value("SELECT 1")
    prepared = database.fetch_value("SELECT count(*) FROM pg_prepared_statements")
    assert prepared > 0
    with database.connection() as connection:
        connection.execute("PREPARE left_over AS SELECT 1")
    assert database.fetch_value(count) == 0
    database.execute("PREPARE left_over AS SELECT 1")
    assert database.fetch_value(count) == 0
    assert database.fetch_value("SELECT 1") == 1
    database.close()


def test_cleaning_can_be_switched_off(config: dict[str, Any]) -> None:
    database = Database(pools(config, max_size=1, clean_on_return=False))
    with database.connection() as connection:
        connection.execute("SET work_mem = '123kB'")
    assert database.fetch_value("SHOW work_mem") == "123kB"
    database.close()


def test_a_verb_survives_a_changed_table(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t AS SELECT 1 AS a")
    database = Database(pools(config, max_size=1))
    for change in ("ALTER TABLE t ADD b int", "ALTER TABLE t ALTER b TYPE text", "ALTER TABLE t DROP b"):
        for _ in range(8):
            database.fetch_all("SELECT * FROM t")
        observer.execute(change)
        assert len(database.fetch_all("SELECT * FROM t")) == 1
        for _ in range(8):
            database.fetch_all("SELECT * FROM t")
        observer.execute("ALTER TABLE t ADD c int; ALTER TABLE t DROP c; ALTER TABLE t ADD d int")
        with database.transaction():
            assert len(database.fetch_all("SELECT * FROM t")) == 1
        observer.execute("ALTER TABLE t DROP d")
    database.close()


def test_in_the_middle_of_a_transaction_the_error_stays_one(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t AS SELECT 1 AS a")
    database = Database(pools(config, max_size=1))
    for _ in range(8):
        database.fetch_all("SELECT * FROM t")
    observer.execute("ALTER TABLE t ADD b int")
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        with database.transaction():
            database.execute("INSERT INTO t (a) VALUES (2)")
            database.fetch_all("SELECT * FROM t")
    assert len(database.fetch_all("SELECT * FROM t")) == 1
    database.close()


def test_a_prepared_statement_that_is_gone_is_prepared_again(config: dict[str, Any]) -> None:
    database = Database(pools(config, max_size=1))
    for _ in range(8):
        database.fetch_value("SELECT 1")
    with database.connection() as connection:
        connection.pgconn.exec_(b"DEALLOCATE ALL")
    assert database.fetch_value("SELECT 1") == 1
    database.close()


def test_a_changed_secret_is_used_for_the_next_connection(
    config: dict[str, Any], observer: Observer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    role = f"rotating_{observer.info.dbname}"
    observer.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'one'".encode())
    try:
        secret = tmp_path / "secret"
        secret.write_text("one\n")
        config["connection_settings"].update(user=role, password={"from_file": str(secret)})
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(pools(config, max_lifetime=0.05)))
        for source in (path, pools(config, max_lifetime=0.05)):
            observer.execute(f"ALTER ROLE {role} PASSWORD 'one'".encode())
            secret.write_text("one\n")
            database = Database(source, resolve_env=True)
            assert database.fetch_value("SELECT current_user") == role
            observer.execute(f"ALTER ROLE {role} PASSWORD 'two'".encode())
            secret.write_text("two and more\n")
            sleep(0.1)
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                database.fetch_value("SELECT 1")
            secret.write_text("two\n")
            assert database.fetch_value("SELECT 2") == 2
            # A file that is not there for a moment is no reason to fail.
            secret.unlink()
            sleep(0.1)
            assert database.fetch_value("SELECT 3") == 3
            assert "using the last credentials that worked" in caplog.text
            database.close()
    finally:
        sleep(0.1)
        observer.execute(f"DROP ROLE {role}".encode())


def test_a_function_may_be_the_password(config: dict[str, Any]) -> None:
    password: str = config["connection_settings"]["password"]
    asked = []

    def token() -> str:
        asked.append(1)
        return password

    def blocking_token() -> str:
        asked.append(2)
        return password

    for provider in (token, blocking_token) if POOL_KIND == "pool" else (blocking_token,):
        config["connection_settings"]["password"] = provider
        database = Database(pools(config))
        assert database.fetch_value("SELECT 1") == 1
        assert asked
        asked.clear()
        database.close()
