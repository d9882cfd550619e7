# Generated from tests/_async/test_ends.py by tools/twins.py: change that file, then run the tool.

"""What ends a unit of work and what does not; and what its end says when nothing was committed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InFailedSqlTransaction, UniqueViolation

from pgmonkey import Database, GivenBackError, PGConnectionManager
from pgmonkey._sync.handle import ConnectionHandle
from pgmonkey._sync.waiting import POOL_KIND, sleep

from ..configs import pools, prepared
from .concurrency import Beside, elsewhere, run_to_end

Observer = psycopg.Connection[Any]

INSERT: Any = "INSERT INTO t VALUES (%s)"


@pytest.fixture
def database(config: dict[str, Any], observer: Observer) -> Database:
    observer.execute("CREATE TABLE t (a int UNIQUE)")
    return Database(prepared(config))


@pytest.fixture
def pool(config: dict[str, Any], observer: Observer) -> ConnectionHandle:
    observer.execute("CREATE TABLE IF NOT EXISTS t (a int UNIQUE)")
    get: Any = PGConnectionManager().get_database_connection_from_dict
    handle: ConnectionHandle = get(config, POOL_KIND)
    return handle


def rows(observer: Observer) -> list[int]:
    return [row[0] for row in observer.execute("SELECT a FROM t ORDER BY a").fetchall()]


def blocks(database: Database, pool: ConnectionHandle) -> dict[str, Callable[[], Any]]:
    """Every way to borrow a connection for a block."""
    return {
        "pool": lambda: pool,
        "pool.connection()": pool.connection,
        "database.connection()": database.connection,
        "database.transaction()": database.transaction,
    }


# -- closed connections -----------------------------------------------------------------------------------------------


def close(connection: Any) -> None:
    connection.close()


def close_as_psycopg(connection: Any) -> None:
    psycopg.Connection.close(connection)


def close_by_hand(connection: Any) -> None:
    connection.pgconn.finish()


@pytest.mark.parametrize("closing", [close, close_as_psycopg, close_by_hand])
def test_what_was_closed_before_its_end_is_no_success(
    closing: Callable[[Any], None], database: Database, pool: ConnectionHandle, observer: Observer
) -> None:
    for block in blocks(database, pool).values():
        with pytest.raises(psycopg.OperationalError, match=r"nothing was committed: the connection was (closed|lost)"):
            with block() as connection:
                connection.execute(INSERT, [1])
                closing(connection)
    unit = database.begin()
    database.execute(INSERT, [1])
    closing(unit.connection())
    with pytest.raises(psycopg.OperationalError, match="nothing was committed"):
        unit.finish()
    assert rows(observer) == []
    assert pool._pool.lent == []
    assert database.fetch_value("SELECT 1") == 1
    database.close()


def test_a_connection_that_was_closed_after_an_error_is_no_success(database: Database, observer: Observer) -> None:
    errors: list[object] = []
    with pytest.raises(psycopg.OperationalError, match="the connection was closed") as caught:
        with database.transaction() as connection:
            errors.append(run_to_end(lambda: connection.execute("SELECT * FROM missing")))
            connection.close()
    assert caught.value.__cause__ is errors[0]


def test_closing_is_harmless_where_nothing_is_open(
    database: Database, pool: ConnectionHandle, observer: Observer
) -> None:
    for block in blocks(database, pool).values():
        with block() as connection:
            connection.close()
    with pool as connection:
        connection.execute(INSERT, [6])
        connection.commit()
        connection.close()
    with pool.connection(autocommit=True) as connection:
        connection.execute(INSERT, [7])
        connection.close()
    assert rows(observer) == [6, 7]


def test_a_statement_after_closing_is_no_success(database: Database, pool: ConnectionHandle) -> None:
    for block in blocks(database, pool).values():
        with pytest.raises(psycopg.OperationalError, match="nothing was committed: the connection was closed"):
            with block() as connection:
                cursor = connection.cursor()
                connection.close()
                with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
                    connection.execute(INSERT, [1])
        with pytest.raises(psycopg.OperationalError, match="nothing was committed: the connection was closed"):
            with block() as connection:
                cursor = connection.cursor()
                connection.close()
                with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
                    cursor.execute(INSERT, [1])


def test_a_pool_that_is_terminated_meanwhile_is_no_success(pool: ConnectionHandle, observer: Observer) -> None:
    with pytest.raises(psycopg.OperationalError, match="nothing was committed: the connection was lost"):
        with pool as connection:
            connection.execute(INSERT, [1])
            pool.terminate()
    assert rows(observer) == []


def test_closing_does_not_commit_a_unit_that_close_returns_is_for(
    config: dict[str, Any], database: Database, observer: Observer
) -> None:
    database = Database(pools(config, close_returns=True))
    with pytest.raises(ZeroDivisionError):
        with database.transaction() as connection:
            connection.execute(INSERT, [1])
            connection.close()
            connection.execute(INSERT, [2])
            raise ZeroDivisionError
    with database.transaction() as connection:
        connection.execute(INSERT, [3])
        connection.close()
        assert rows(observer) == []
    assert rows(observer) == [3]
    database.close()


# -- psycopg's own ways to end a transaction --------------------------------------------------------------------------


def test_psycopgs_block_of_a_units_connection_is_a_savepoint(database: Database, observer: Observer) -> None:
    unit = database.begin()
    connection = unit.connection()
    with connection as same:
        assert same is connection
        connection.execute(INSERT, [1])
        with pytest.raises(ZeroDivisionError):
            with connection:
                connection.execute(INSERT, [2])
                raise ZeroDivisionError
        with pytest.raises(UniqueViolation):
            with connection:
                connection.execute(INSERT, [1])
        with pytest.raises(psycopg.Rollback):
            with connection:
                connection.execute(INSERT, [4])
                raise psycopg.Rollback
        with connection:
            connection.execute(INSERT, [3])
    assert rows(observer) == []
    unit.finish()
    assert rows(observer) == [1, 3]


def test_psycopgs_block_of_a_refused_unit_stores_nothing(database: Database, observer: Observer) -> None:
    unit = database.begin()
    with unit.connection() as connection:
        connection.execute(INSERT, [1])
    unit.finish(ZeroDivisionError())
    assert rows(observer) == []


def test_psycopgs_block_may_outlive_the_connection(database: Database, observer: Observer) -> None:
    unit = database.begin()
    with unit.connection() as connection:
        connection.execute(INSERT, [1])
        unit.finish()
    with pytest.raises(psycopg.OperationalError, match="nothing was committed"):
        with database.transaction() as connection, connection:
            connection.execute(INSERT, [2])
            connection.close()
    assert rows(observer) == [1]


def test_nothing_but_its_end_commits_a_unit(database: Database, observer: Observer) -> None:
    with pytest.raises(ZeroDivisionError):
        with database.transaction() as connection:
            connection.execute(INSERT, [1])
            for end in (
                connection.commit,
                connection.rollback,
                lambda: connection.set_autocommit(True),
                lambda: connection.tpc_begin("pgmonkey"),
            ):
                with pytest.raises(psycopg.ProgrammingError, match=r"forbidden .* 'with db.transaction\(\):'|'with"):
                    end()
            connection.execute(INSERT, [2])
            raise ZeroDivisionError
    with database.connection() as connection:
        connection.execute(INSERT, [3])
        connection.commit()
        assert rows(observer) == [3]


LONG: Any = f"SELECT 1 /* {'x' * 1_000_000} */; COMMIT"
ENDS = [
    *("COMMIT", "END", "commit and chain", "-- at once\nCOMMIT", "SELECT 1; COMMIT", "COMMIT; BEGIN"),
    *("ROLLBACK", "ABORT WORK", "ROLLBACK AND CHAIN", "PREPARE TRANSACTION 'pgmonkey'"),
    *("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; END", "SELECT 1 AS atomic; END"),
    *("SELECT '\\'; COMMIT; --'", 'SELECT 1 AS U&"a"; COMMIT'),
]


def test_what_has_begun_and_not_ended_is_not_committed(database: Database, observer: Observer) -> None:
    for _ in range(2):
        with pytest.raises(psycopg.ProgrammingError, match="nothing was committed: tpc_begin"):
            with database.connection() as connection:
                connection.tpc_begin("pgmonkey")
                connection.execute(INSERT, [1])
        with pytest.raises(psycopg.ProgrammingError, match=r"nothing was committed: a transaction\(\) block"):
            with database.connection() as connection:
                psycopg.Transaction(connection).__enter__()
                connection.execute(INSERT, [1])
    with database.connection() as connection:
        connection.execute(INSERT, [2])
    assert rows(observer) == [2]


def test_a_pipeline_that_is_left_open_is_not_committed(
    database: Database, observer: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    for block in (database.transaction, database.connection):
        for synced in (False, True):
            kept: list[Any] = []
            with pytest.raises(psycopg.OperationalError, match=r"nothing was committed: a pipeline\(\) block"):
                with block() as connection:
                    kept += [connection, connection.pipeline()]
                    pipeline = kept[1].__enter__()
                    connection.execute(INSERT, [1])
                    if synced:
                        pipeline.sync()
            given_back, left = kept
            with pytest.raises(GivenBackError):
                given_back.execute(INSERT, [2])
            # What Python's garbage collector does with it, too: psycopg writes a line that names the pipeline.
            error = GeneratorExit()
            assert not left.__exit__(GeneratorExit, error, None)
            assert "Pipeline [GIVEN BACK] at" in caplog.text
            assert database.fetch_value("SELECT 1") == 1
    assert rows(observer) == []


def executing_many(connection: psycopg.Connection[Any], text: Any) -> None:
    connection.cursor().executemany(text, [(), ()])


def copying(connection: psycopg.Connection[Any], text: Any) -> None:
    with connection.cursor().copy(text):
        pass


def streaming(connection: psycopg.Connection[Any], text: Any) -> None:
    for _ in connection.cursor().stream(text):
        pass


@pytest.mark.parametrize("cursor", [psycopg.Cursor, psycopg.ClientCursor, psycopg.RawCursor])
def test_no_statement_ends_a_unit(cursor: type[psycopg.Cursor[Any]], database: Database, observer: Observer) -> None:
    texts: Any = [text for end in ENDS for text in (end, end.encode(), sql.SQL(cast(Any, end)))]
    for fails in (False, True):
        with suppress(ZeroDivisionError):
            with database.transaction() as connection:
                connection.cursor_factory = cursor
                assert database.execute("INSERT INTO t VALUES (1)") == 1
                ways: list[Callable[[Any], Any]] = [
                    *(database.execute, database.fetch_one, connection.execute),
                    *(partial(way, connection) for way in (executing_many, copying, streaming)),
                    lambda text: database.execute_many(text, [()]),
                ]
                for text in texts:
                    for execute in ways:
                        with pytest.raises(psycopg.ProgrammingError, match="is forbidden in a unit of work"):
                            execute(text)
                assert database.execute("INSERT INTO t VALUES (2)") == 1
                if fails:
                    raise ZeroDivisionError
        assert rows(observer) == ([] if fails else [1, 2])
        observer.execute("DELETE FROM t")
    database.close()


def test_a_quote_hidden_by_a_backslash_ends_nothing(database: Database, observer: Observer) -> None:
    """It is the server's setting that decides what is in the string and what is not."""
    with database.transaction() as connection:
        connection.execute("SET LOCAL standard_conforming_strings = off")
        assert database.fetch_value("SELECT '\\'; COMMIT; --'") == "'; COMMIT; --"
        for text in ("SELECT '\\\\'; COMMIT", "SELECT n'\\''; COMMIT", "SELECT '\\'', 'a'\n'\\''; COMMIT; --'"):
            with pytest.raises(psycopg.ProgrammingError, match="is forbidden in a unit of work"):
                connection.execute(text)
        database.execute("INSERT INTO t VALUES (1)")
    assert rows(observer) == [1]


def test_what_has_ended_a_unit_all_the_same_is_an_error(database: Database, observer: Observer) -> None:
    """Such as a statement of a cursor that is none of ours, or one that is too long to be read."""

    class Own(psycopg.Cursor[Any]):
        def execute(self, *arguments: Any, **options: Any) -> Any:
            return super().execute(*arguments, **options)

    def in_pipeline(connection: psycopg.Connection[Any]) -> None:
        with connection.pipeline():
            psycopg.Cursor(connection).execute("COMMIT")

    ways: list[Callable[[psycopg.Connection[Any]], Any]] = [
        lambda connection: psycopg.Cursor(connection).execute("COMMIT"),
        lambda connection: psycopg.Cursor(connection).executemany("ROLLBACK", [()]),
        lambda connection: Own(connection).execute("ROLLBACK AND NO CHAIN"),
        lambda connection: connection.execute(LONG, prepare=False),
        in_pipeline,
    ]
    for way in ways:
        for nested in (False, True):
            with pytest.raises(psycopg.ProgrammingError, match="nothing more of this transaction is committed"):
                with database.transaction() as connection:
                    database.execute("INSERT INTO t VALUES (1)")
                    with database.transaction() if nested else nullcontext():
                        with pytest.raises(psycopg.Error):
                            way(connection)
                        for execute in (database.execute, connection.execute):
                            with pytest.raises(psycopg.ProgrammingError, match="has ended it"):
                                execute("INSERT INTO t VALUES (2)")
            assert 2 not in rows(observer)
            observer.execute("DELETE FROM t")
    with database.transaction():
        database.execute("INSERT INTO t VALUES (3)")
    assert rows(observer) == [3]


def test_savepoints_and_functions_may_have_such_words(database: Database, observer: Observer) -> None:
    with database.transaction() as connection:
        for execute in (database.execute, connection.execute):
            execute("SAVEPOINT a")
            execute("INSERT INTO t VALUES (1)")
            execute("ROLLBACK TO a")
            execute("RELEASE SAVEPOINT a")
            execute("SELECT 'COMMIT' AS end")
            execute("PREPARE p AS SELECT 1")
            execute("DEALLOCATE p")
            execute("DO $$BEGIN NULL; END$$")
            execute("CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END")
            execute("DROP FUNCTION f()")
        database.execute("INSERT INTO t VALUES (2)")
    with database.connection() as connection:
        connection.execute("INSERT INTO t VALUES (3)")
        connection.execute("COMMIT")
        connection.execute("INSERT INTO t VALUES (4)")
        connection.execute("ROLLBACK")
    assert rows(observer) == [2, 3]
    database.close()


# -- errors that were ignored -----------------------------------------------------------------------------------------


def by_connection(database: Database, connection: Any) -> None:
    connection.execute("INSERT INTO t  VALUES\n(%s)", [7])


def by_cursor(database: Database, connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (%s)", [7])


def by_query_method(database: Database, connection: Any) -> None:
    database.execute("INSERT INTO t VALUES (%s)", [7])


def many(database: Database, connection: Any) -> None:
    connection.cursor().executemany("INSERT INTO t VALUES (%s)", [[7]])


def by_copy(database: Database, connection: Any) -> None:
    with connection.cursor() as cursor, cursor.copy("COPY t FROM STDIN") as copy:
        copy.write_row([7])


def composed(database: Database, connection: Any) -> None:
    connection.execute(sql.SQL("INSERT INTO {} VALUES ({})").format(sql.Identifier("t"), sql.Literal(7)))


def in_a_pipeline(database: Database, connection: Any) -> None:
    with connection.pipeline():
        connection.execute("INSERT INTO t VALUES (%s)", [7])


def by_client_cursor(database: Database, connection: Any) -> None:
    with psycopg.ClientCursor(connection) as cursor:
        cursor.execute("INSERT INTO t VALUES (%s)", [7])


WAYS: dict[Callable[[Database, Any], None], str] = {
    by_connection: "INSERT INTO t VALUES (%s)",
    by_cursor: "INSERT INTO t VALUES (%s)",
    by_query_method: "INSERT INTO t VALUES (%s)",
    many: "INSERT INTO t VALUES (%s)",
    by_copy: "COPY t FROM STDIN",
    composed: 'INSERT INTO "t" VALUES (...)',
    in_a_pipeline: "",  # the error comes at the end of the block, which does not know the statement
    by_client_cursor: "INSERT INTO t VALUES (%s)",
}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_end_names_what_failed_first(
    way: Callable[[Database, Any], None], database: Database, observer: Observer
) -> None:
    observer.execute("INSERT INTO t VALUES (7)")
    for _ in range(3):  # prepared by then, where it is
        errors: list[Any] = []
        with pytest.raises(InFailedSqlTransaction) as caught:
            with database.transaction() as connection:
                errors.append(run_to_end(partial(way, database, connection)))
                errors.append(run_to_end(partial(connection.execute, "SELECT 1")))
                errors.append(run_to_end(partial(database.fetch_value, "SELECT 1")))
                with pytest.raises(psycopg.errors.SyntaxError):
                    connection.execute("SELEKT")
        message = str(caught.value)
        assert message.startswith(f"nothing was committed: {WAYS[way]}")
        assert f"{Path(__file__).name}:" in message
        assert f"({way.__name__}) failed and its error was ignored: duplicate key value violates" in message
        assert "with db.transaction():', which is a savepoint" in message
        assert "7" not in message.replace(f":{_line(message)} ", "")
        first, *later = errors
        assert isinstance(first, UniqueViolation)
        for error in (caught.value, *later):
            assert isinstance(error, InFailedSqlTransaction)
            assert error.__cause__ is first


def _line(message: str) -> str:
    return message.partition(f"{Path(__file__).name}:")[2].partition(" ")[0]


def test_long_statements_are_cut(database: Database) -> None:
    long: Any = "SELECT * FROM missing WHERE a IN (" + ", ".join(["1"] * 500) + ")"
    with pytest.raises(InFailedSqlTransaction) as caught:
        with database.transaction() as connection:
            with pytest.raises(psycopg.errors.UndefinedTable):
                connection.execute(long)
    statement = str(caught.value).removeprefix("nothing was committed: ").partition("... at ")[0]
    assert len(statement) == 117


def test_what_was_rolled_back_is_forgotten(database: Database, observer: Observer) -> None:
    observer.execute("INSERT INTO t VALUES (7)")
    with pytest.raises(InFailedSqlTransaction, match=r"SELECT 1 / 0 .*division by zero"):
        with database.transaction() as connection:
            with pytest.raises(UniqueViolation):
                with database.transaction():
                    connection.execute(INSERT, [7])
            with pytest.raises(psycopg.errors.SyntaxError):
                with connection.transaction():
                    connection.execute("SELEKT")
            with pytest.raises(psycopg.errors.DivisionByZero):
                connection.execute("SELECT 1 / 0")
    with pytest.raises(InFailedSqlTransaction, match=r"SELEKT at .*syntax error"):
        with database.connection() as connection:
            for end in (connection.rollback, connection.commit):
                with pytest.raises(UniqueViolation):
                    connection.execute(INSERT, [7])
                end()
            with pytest.raises(psycopg.errors.SyntaxError):
                connection.execute("SELEKT")
    with pytest.raises(psycopg.errors.SyntaxError) as caught:
        with database.transaction() as connection:
            connection.execute("SELEKT")
    assert caught.value.__cause__ is None


def test_a_lost_connection_names_what_failed_first(database: Database) -> None:
    errors: list[object] = []
    with pytest.raises(psycopg.OperationalError, match="nothing was committed: the connection was lost") as caught:
        with database.transaction() as connection:
            query = "SELECT pg_terminate_backend(pg_backend_pid())"
            errors.append(run_to_end(lambda: connection.execute(query)))
    assert isinstance(errors[0], psycopg.OperationalError)
    assert caught.value.__cause__ is errors[0]


def test_an_error_that_was_ignored_keeps_nothing_alive(database: Database, observer: Observer) -> None:
    observer.execute("INSERT INTO t VALUES (7)")

    class Held:
        """What the borrower has in hand."""

    def fail() -> weakref.ref[Held]:
        held = Held()
        with suppress(UniqueViolation):
            database.execute(INSERT, [7])
        return weakref.ref(held)

    with pytest.raises(InFailedSqlTransaction) as caught:
        with database.transaction():
            held = fail()
            sleep(0)  # a step of a task has the answer in hand that it began with
            gc.collect()
            assert held() is None
    cause = caught.value.__cause__
    assert isinstance(cause, UniqueViolation)
    assert cause.sqlstate == "23505"
    assert cause.diag.constraint_name == "t_a_key"
    assert cause.__traceback__ is None


def test_a_forgotten_lease_is_taken_back_after_an_error(pool: ConnectionHandle) -> None:
    def forget() -> None:
        lease = pool.borrow()
        with suppress(psycopg.Error):
            lease.connection.execute("SELECT 1 / 0")

    elsewhere(forget)
    gc.collect()
    assert pool.stats()["pool_size"] == 0


def test_an_ignored_error_keeps_its_result(database: Database) -> None:
    ignored: list[psycopg.Error] = []
    with pytest.raises(InFailedSqlTransaction) as raised:
        with database.transaction() as connection:
            with pytest.raises(psycopg.errors.DivisionByZero) as caught:
                connection.execute("SELECT 1/0")
            ignored.append(caught.value)
    assert ignored[0].pgresult is not None
    assert raised.value.__cause__ is ignored[0]


def test_the_first_error_is_named_also_when_tables_have_changed_meanwhile(database: Database) -> None:
    with pytest.raises(InFailedSqlTransaction, match="SELECT 1/0"):
        with database.transaction() as connection:
            with suppress(psycopg.errors.DivisionByZero):
                connection.execute("SELECT 1/0")
            connection.__dict__["pool"]().forget_plans()
            with pytest.raises(InFailedSqlTransaction) as later:
                connection.execute("SELECT 1")
            assert isinstance(later.value.__cause__, psycopg.errors.DivisionByZero)


@pytest.mark.parametrize("unclean", [False, True])
def test_a_statement_that_fails_just_before_commit(unclean: bool, database: Database, observer: Observer) -> None:
    divide: Any = "SELECT 1 / %s::int"
    with database.connection() as connection:
        for _ in range(3):
            connection.execute(divide, [1])
    unit = database.begin()
    connection = unit.connection()
    connection.execute(INSERT, [1])
    if unclean:
        connection.execute("SET application_name TO 'theirs'")
    with connection.lock:
        failing = Beside(partial(connection.execute, divide, [0]))
        sleep(0.1)
        ending = Beside(unit.finish)
        sleep(0.1)
    # In threads, either may come first.
    ended, failed = ending.end(), failing.end()
    assert rows(observer) == ([1] if ended is None else [])
    if isinstance(failed, psycopg.errors.DivisionByZero):
        assert isinstance(ended, InFailedSqlTransaction)
        assert ended.__cause__ is failed
        assert divide in str(ended)
