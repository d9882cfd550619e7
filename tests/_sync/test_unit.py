# Generated from tests/_async/test_unit.py by tools/twins.py: change that file, then run the tool.

"""Units of work, retries and session values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.errors import DeadlockDetected, SerializationFailure

from pgmonkey import CancelledUnitError, Database, GivenBackError, PoolTimeoutError
from pgmonkey._driver import prepared as bookkeeping

from ..configs import pools
from .concurrency import Beside, Event

Observer = psycopg.Connection[Any]

DEADLOCK = "DO $$ BEGIN RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01'; END $$"


@pytest.fixture
def database(config: dict[str, Any], observer: Observer) -> Database:
    observer.execute("CREATE TABLE t (a int)")
    return Database(config)


def rows(observer: Observer) -> list[int]:
    return [row[0] for row in observer.execute("SELECT a FROM t ORDER BY a").fetchall()]


def test_a_commit_stands_when_the_session_cannot_be_cleaned(
    database: Database, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bookkeeping, "_CLEAN", b"SELECT 1 / 0")
    with database.transaction() as connection:
        pid = connection.info.backend_pid
        connection.execute("SET work_mem = '1MB'")
        connection.execute("INSERT INTO t VALUES (1)")
    assert rows(observer) == [1]
    assert database.fetch_value("SELECT pg_backend_pid()") != pid
    database.close()


def test_a_transaction_that_begins_a_unit_of_work_does_not_end_it(database: Database, observer: Observer) -> None:
    unit = database.begin()
    with database.transaction():
        database.execute("INSERT INTO t VALUES (1)")
    assert rows(observer) == []
    unit.finish(ZeroDivisionError())
    assert rows(observer) == []


def test_the_connection_as_a_block_does_not_end_a_unit_of_work(database: Database, observer: Observer) -> None:
    unit = database.begin()
    with unit.connection() as connection:
        connection.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(ZeroDivisionError):
            with connection:
                connection.execute("INSERT INTO t VALUES (2)")
                raise ZeroDivisionError
        with connection:
            connection.execute("INSERT INTO t VALUES (3)")
    assert rows(observer) == []
    unit.finish()
    assert rows(observer) == [1, 3]


def test_commit_is_forbidden_in_a_unit_of_work(database: Database, observer: Observer) -> None:
    unit = database.begin()
    connection = unit.connection()
    connection.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(psycopg.ProgrammingError, match=r"commit\(\) is forbidden"):
        connection.commit()
    unit.finish(ZeroDivisionError())
    assert rows(observer) == []


def test_nothing_is_executed_behind_the_commit(config: dict[str, Any], observer: Observer) -> None:
    """By a task or thread that has the connection still: it would be acknowledged and lost."""
    observer.execute("CREATE TABLE t (a int)")
    committed, tried = Event(), Event()

    def reset(_: object) -> None:
        committed.set()
        tried.wait()

    database: Database[Any] = Database(pools(config, max_size=1, reset=reset))

    def late() -> None:
        committed.wait()
        try:
            connection.execute("INSERT INTO t VALUES (2)")
        finally:
            tried.set()

    with database.transaction() as connection:
        connection.execute("INSERT INTO t VALUES (1)")
        beside = Beside(late)
    assert isinstance(beside.end(), GivenBackError)
    assert rows(observer) == [1]
    database.close()


def test_closing_the_connection_of_a_unit_of_work_is_no_success(database: Database, observer: Observer) -> None:
    with pytest.raises(psycopg.OperationalError, match=r"close\(\) was called before its end"):
        with database.transaction() as connection:
            connection.execute("INSERT INTO t VALUES (1)")
            connection.close()
    assert rows(observer) == []
    with database.transaction() as connection:
        connection.execute("INSERT INTO t VALUES (2)")
    assert rows(observer) == [2]


def test_close_that_gives_back_does_not_end_a_unit_of_work(config: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    pool = {**config["pool_settings"], "close_returns": True}
    database = Database({**config, "pool_settings": pool, "async_pool_settings": pool})
    unit = database.begin()
    connection = unit.connection()
    connection.execute("INSERT INTO t VALUES (1)")
    connection.close()
    assert rows(observer) == []
    unit.finish()
    assert rows(observer) == [1]
    database.close()


def test_psycopgs_transaction_block_does_not_end_a_unit_of_work(database: Database, observer: Observer) -> None:
    unit = database.begin()
    connection = unit.connection()
    with connection.transaction():
        connection.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(ZeroDivisionError):
        with connection.transaction("named"):
            connection.execute("INSERT INTO t VALUES (2)")
            raise ZeroDivisionError
    with connection.transaction(force_rollback=True):
        connection.execute("INSERT INTO t VALUES (3)")
    assert rows(observer) == []
    unit.finish()
    assert rows(observer) == [1]


def test_after_a_unit_of_work_psycopgs_transaction_block_commits_again(database: Database, observer: Observer) -> None:
    with database.unit_of_work() as unit:
        unit.connection()
    with database.connection() as connection:
        with connection.transaction():
            connection.execute("INSERT INTO t VALUES (1)")
        assert rows(observer) == [1]


def test_a_unit_of_work_takes_a_mode_until_it_begins(database: Database) -> None:
    with database.unit_of_work() as unit:
        with database.transaction(isolation="serializable", read_only=True):
            assert database.fetch_value("SHOW transaction_isolation") == "serializable"
        assert database.fetch_value("SHOW transaction_read_only") == "on"
    with database.unit_of_work() as unit:
        unit.connection()
        with database.transaction(isolation=IsolationLevel.REPEATABLE_READ):
            assert database.fetch_value("SHOW transaction_isolation") == "repeatable read"
    unit = database.begin(isolation="serializable", read_only=True, deferrable=True)
    assert database.fetch_value("SHOW transaction_deferrable") == "on"
    unit.finish()
    assert database.fetch_value("SHOW transaction_isolation") == "read committed"


def test_a_unit_of_work_goes_on_after_a_roll_back(database: Database, observer: Observer) -> None:
    with database.unit_of_work() as unit:
        database.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(psycopg.errors.UndefinedTable) as caught:
            database.execute("SELECT * FROM missing")
        unit.roll_back(caught.value)
        assert not unit.borrowed
        database.execute("INSERT INTO t VALUES (2)")
    assert rows(observer) == [2]


def test_a_cancelled_unit_of_work_refuses_all_that_follows(database: Database, observer: Observer) -> None:
    unit = database.begin()
    database.execute("INSERT INTO t VALUES (1)")
    unit.cancel("the client is gone")
    assert database.stats()["pool_available"] == 1
    with pytest.raises(CancelledUnitError, match="the client is gone"):
        database.execute("INSERT INTO t VALUES (2)")
    with pytest.raises(CancelledUnitError):
        with database.transaction():
            pass
    with pytest.raises(CancelledUnitError):
        unit.finish()
    assert rows(observer) == []
    database.execute("INSERT INTO t VALUES (3)")
    assert rows(observer) == [3]


def test_a_unit_of_work_cancelled_before_it_borrowed(database: Database) -> None:
    with database.unit_of_work() as unit:
        unit.cancel("the client is gone")
        with pytest.raises(CancelledUnitError):
            database.fetch_value("SELECT 1")
        unit.finish(ZeroDivisionError())
    assert database.stats() == {}


def test_a_pool_timeout_names_who_borrowed(config: dict[str, Any]) -> None:
    config["pool_settings"] = config["async_pool_settings"] = {"max_size": 1, "timeout": 0.5}
    database = Database(config)
    unit = database.begin(label=lambda: "GET /slow")
    unit.connection()
    with pytest.raises(
        PoolTimeoutError, match=r"borrowed for GET /slow, at .*test_unit\w*\.py:\d+ \(test_a_pool_timeout"
    ):
        with database.connection():
            pass
    with pytest.raises(PoolTimeoutError, match=r"within 0\.02 s"):
        with database.connection(timeout=0.02):
            pass
    unit.finish()


def test_on_borrow_is_called_once_a_borrow(database: Database) -> None:
    told: list[int] = []
    unit = database.begin(on_borrow=lambda: told.append(1))
    assert told == []
    database.fetch_value("SELECT 1")
    database.fetch_value("SELECT 1")
    assert told == [1]
    unit.finish()


# -- retries ----------------------------------------------------------------------------------------------------------


def test_a_transaction_that_cannot_be_serialised_is_tried_again(database: Database, observer: Observer) -> None:
    observer.execute("INSERT INTO t VALUES (0)")
    tries: list[int] = []

    def add_one() -> str:
        tries.append(database.fetch_value("SELECT a FROM t"))
        if len(tries) < 3:
            observer.execute("UPDATE t SET a = a + 10")
        database.execute("UPDATE t SET a = %s", [tries[-1] + 1])
        return "done"

    assert database.retry(add_one, isolation="repeatable read") == "done"
    assert tries == [0, 10, 20]
    assert rows(observer) == [21]


def test_a_transaction_whose_commit_fails_is_tried_again(database: Database, observer: Observer) -> None:
    observer.execute("CREATE SEQUENCE s")
    observer.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF nextval('s') < 3 THEN RAISE EXCEPTION 'not yet' USING ERRCODE = '40001'; END IF; RETURN NULL; END $$"
    )
    observer.execute(
        "CREATE CONSTRAINT TRIGGER c AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION refuse()"
    )

    def insert() -> int:
        return database.execute("INSERT INTO t VALUES (1)")

    assert database.retry(insert) == 1
    assert rows(observer) == [1]
    assert observer.execute("SELECT last_value FROM s").fetchone() == (3,)


def test_retries_end_after_the_given_attempts(database: Database, observer: Observer) -> None:
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        database.execute("INSERT INTO t VALUES (1)")
        database.execute(DEADLOCK)

    with pytest.raises(DeadlockDetected):
        database.retry(fail, attempts=3)
    assert len(tries) == 3
    assert rows(observer) == []
    stats = database.stats()
    assert stats["pool_available"] == stats["pool_size"] == 1


def test_other_errors_are_not_retried(database: Database) -> None:
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        database.execute("SELECT 1 / 0")

    with pytest.raises(psycopg.errors.DivisionByZero):
        database.retry(fail)
    assert len(tries) == 1


def test_a_retry_in_a_transaction_that_has_begun_is_refused(database: Database, observer: Observer) -> None:
    def insert() -> int:
        return database.execute("INSERT INTO t VALUES (1)")

    unit = database.begin()
    database.execute("INSERT INTO t VALUES (2)")
    with pytest.raises(psycopg.ProgrammingError, match="call it first"):
        database.retry(insert)
    unit.finish(SerializationFailure())
    assert rows(observer) == []


@pytest.mark.parametrize("error", [None, ZeroDivisionError()])
def test_a_retry_that_comes_first_in_a_unit_of_work_is_part_of_it(
    error: Exception | None, database: Database, observer: Observer
) -> None:
    tries: list[str] = []

    def insert() -> int:
        tries.append(database.fetch_value("SHOW transaction_isolation"))
        inserted = database.execute("INSERT INTO t VALUES (1)")
        if len(tries) < 3:
            database.execute(DEADLOCK)
        return inserted

    def nested() -> int:
        return database.retry(insert)

    unit = database.begin()
    assert database.retry(nested, isolation="serializable") == 1
    assert tries == ["serializable"] * 3
    assert rows(observer) == []
    unit.finish(error)
    assert rows(observer) == ([1] if error is None else [])


def test_a_retry_that_fails_leaves_nothing_in_its_unit_of_work(database: Database, observer: Observer) -> None:
    def fail() -> None:
        database.execute("INSERT INTO t VALUES (1)")
        raise ZeroDivisionError

    with database.unit_of_work():
        with pytest.raises(ZeroDivisionError):
            database.retry(fail, isolation="serializable", read_only=False)
        assert database.fetch_value("SHOW transaction_isolation") == "read committed"
        database.execute("INSERT INTO t VALUES (2)")
    assert rows(observer) == [2]


# -- session values ---------------------------------------------------------------------------------------------------


def test_rollback_ends_a_transaction_block_as_psycopgs(database: Database, observer: Observer) -> None:
    with database.transaction():
        database.execute("INSERT INTO t VALUES (1)")
        raise psycopg.Rollback
    with database.transaction():
        with database.transaction():
            database.execute("INSERT INTO t VALUES (2)")
            raise psycopg.Rollback
        database.execute("INSERT INTO t VALUES (3)")
    assert rows(observer) == [3]


def test_a_rollback_of_another_block_is_raised(database: Database, observer: Observer) -> None:
    with pytest.raises(psycopg.Rollback):
        with database.transaction() as connection:
            with connection.transaction() as inner:
                pass
            raise psycopg.Rollback(inner)


@pytest.mark.parametrize("method", ["transaction", "unit_of_work"])
def test_a_block_is_good_for_one_use(method: str, database: Database, observer: Observer) -> None:
    block = getattr(database, method)()
    with block:
        database.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(RuntimeError, match=method):
        with block:
            database.execute("INSERT INTO t VALUES (2)")
    assert rows(observer) == [1]


@pytest.fixture
def tenant(config: dict[str, Any], observer: Observer, dbname: str) -> Iterator[dict[str, Any]]:
    """The values that the next transaction gets, for a table whose rows only their tenant sees."""
    observer.execute("CREATE TABLE notes (tenant int, note text)")
    observer.execute("INSERT INTO notes VALUES (1, 'one'), (2, 'two')")
    observer.execute("ALTER TABLE notes ENABLE ROW LEVEL SECURITY")
    observer.execute(
        "CREATE POLICY own ON notes USING (tenant = nullif(current_setting('app.tenant', true), '')::int)"
        " WITH CHECK (tenant = nullif(current_setting('app.tenant', true), '')::int)"
    )
    observer.execute("ALTER TABLE notes FORCE ROW LEVEL SECURITY")
    observer.execute(f"CREATE ROLE member_{dbname}; GRANT ALL ON notes TO member_{dbname}".encode())
    config["sync_settings"] = config["async_settings"] = {"role": f"member_{dbname}"}
    yield {}
    observer.execute(f"DROP OWNED BY member_{dbname}; DROP ROLE member_{dbname}".encode())


def test_session_values_hold_wherever_a_statement_runs(config: dict[str, Any], tenant: dict[str, Any]) -> None:
    config["pool_settings"] = config["async_pool_settings"] = {"max_size": 2}
    database = Database(config, session_values=lambda: tenant)
    query = "SELECT note FROM notes"
    assert database.fetch_all(query) == []
    for tenant["app.tenant"], note in ((1, "one"), (2, "two"), (None, None)):
        seen = [(note,)] if note else []
        assert database.fetch_all(query) == seen
        with database.transaction():
            assert database.fetch_all(query) == seen
        with database.unit_of_work() as unit:
            connection = unit.connection()
            cursor = connection.execute(query)
            assert cursor.fetchall() == seen
        with database.connection() as connection:
            cursor = connection.execute(query)
            assert cursor.fetchall() == seen
        assert [row for row in database.stream(query)] == seen
    tenant["app.tenant"] = 1
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        database.execute("INSERT INTO notes VALUES (2, 'not mine')")
    assert database.execute("INSERT INTO notes VALUES (1, 'mine')") == 1


def test_session_values_are_refused_where_there_is_no_transaction(
    config: dict[str, Any], tenant: dict[str, Any]
) -> None:
    config["connection_settings"]["autocommit"] = True
    database = Database(config, session_values=lambda: tenant)
    tenant["app.tenant"] = 1
    with pytest.raises(psycopg.ProgrammingError, match=r"use transaction\(\)"):
        with database.connection():
            pytest.fail("without its tenant")
    with database.transaction():
        assert database.fetch_value("SELECT current_setting('app.tenant')") == "1"
    database.close()


def test_session_values_of_a_stream_are_those_of_the_call(config: dict[str, Any], tenant: dict[str, Any]) -> None:
    database = Database(config, session_values=lambda: dict(tenant))
    tenant["app.tenant"] = 1
    stream = database.stream("SELECT note FROM notes")
    tenant.clear()
    assert [row for row in stream] == [("one",)]


def test_session_values_cannot_inject(config: dict[str, Any], tenant: dict[str, Any]) -> None:
    database = Database(config, session_values=lambda: tenant)
    tenant["app.tenant"] = "1'); DROP TABLE notes; --"
    assert database.fetch_value("SELECT current_setting('app.tenant')") == tenant["app.tenant"]
    tenant.clear()
    tenant["app.tenant', '1', true); --"] = 1
    with pytest.raises(psycopg.Error):
        database.fetch_value("SELECT 1")


def test_a_connection_that_was_cancelled_says_so(config: dict[str, Any]) -> None:
    database = Database(config)
    unit = database.begin()
    connection = unit.connection()
    connection.execute("SELECT 1")
    unit.cancel("the client is gone")
    with pytest.raises(CancelledUnitError, match="the client is gone"):
        connection.execute("SELECT 1")
    database.close()
