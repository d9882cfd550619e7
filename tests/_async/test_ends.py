"""What ends a unit of work and what does not; and what its end says when nothing was committed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InFailedSqlTransaction, UniqueViolation

from pgmonkey import AsyncDatabase, GivenBackError, PGConnectionManager
from pgmonkey._async.handle import AsyncConnectionHandle
from pgmonkey._async.waiting import POOL_KIND, sleep

from ..configs import pools, prepared
from .concurrency import Beside, elsewhere, run_to_end

Observer = psycopg.Connection[Any]

INSERT: Any = "INSERT INTO t VALUES (%s)"


@pytest.fixture
def database(config: dict[str, Any], observer: Observer) -> AsyncDatabase:
    observer.execute("CREATE TABLE t (a int UNIQUE)")
    return AsyncDatabase(prepared(config))


@pytest.fixture
async def pool(config: dict[str, Any], observer: Observer) -> AsyncConnectionHandle:
    observer.execute("CREATE TABLE IF NOT EXISTS t (a int UNIQUE)")
    get: Any = PGConnectionManager().get_database_connection_from_dict
    handle: AsyncConnectionHandle = await get(config, POOL_KIND)
    return handle


def rows(observer: Observer) -> list[int]:
    return [row[0] for row in observer.execute("SELECT a FROM t ORDER BY a").fetchall()]


def blocks(database: AsyncDatabase, pool: AsyncConnectionHandle) -> dict[str, Callable[[], Any]]:
    """Every way to borrow a connection for a block."""
    return {
        "pool": lambda: pool,
        "pool.connection()": pool.connection,
        "database.connection()": database.connection,
        "database.transaction()": database.transaction,
    }


# -- closed connections -----------------------------------------------------------------------------------------------


async def close(connection: Any) -> None:
    await connection.close()


async def close_as_psycopg(connection: Any) -> None:
    await psycopg.AsyncConnection.close(connection)


async def close_by_hand(connection: Any) -> None:
    connection.pgconn.finish()


@pytest.mark.parametrize("closing", [close, close_as_psycopg, close_by_hand])
async def test_what_was_closed_before_its_end_is_no_success(
    closing: Callable[[Any], Awaitable[None]], database: AsyncDatabase, pool: AsyncConnectionHandle, observer: Observer
) -> None:
    for block in blocks(database, pool).values():
        with pytest.raises(psycopg.OperationalError, match=r"nothing was committed: the connection was (closed|lost)"):
            async with block() as connection:
                await connection.execute(INSERT, [1])
                await closing(connection)
    unit = database.begin()
    await database.execute(INSERT, [1])
    await closing(await unit.connection())
    with pytest.raises(psycopg.OperationalError, match="nothing was committed"):
        await unit.finish()
    assert rows(observer) == []
    assert pool._pool.lent == []
    assert await database.fetch_value("SELECT 1") == 1
    await database.close()


async def test_a_connection_that_was_closed_after_an_error_is_no_success(
    database: AsyncDatabase, observer: Observer
) -> None:
    errors: list[object] = []
    with pytest.raises(psycopg.OperationalError, match="the connection was closed") as caught:
        async with database.transaction() as connection:
            errors.append(await run_to_end(lambda: connection.execute("SELECT * FROM missing")))
            await connection.close()
    assert caught.value.__cause__ is errors[0]


async def test_closing_is_harmless_where_nothing_is_open(
    database: AsyncDatabase, pool: AsyncConnectionHandle, observer: Observer
) -> None:
    for block in blocks(database, pool).values():
        async with block() as connection:
            await connection.close()
    async with pool as connection:
        await connection.execute(INSERT, [6])
        await connection.commit()
        await connection.close()
    async with pool.connection(autocommit=True) as connection:
        await connection.execute(INSERT, [7])
        await connection.close()
    assert rows(observer) == [6, 7]


async def test_a_statement_after_closing_is_no_success(database: AsyncDatabase, pool: AsyncConnectionHandle) -> None:
    for block in blocks(database, pool).values():
        with pytest.raises(psycopg.OperationalError, match="nothing was committed: the connection was closed"):
            async with block() as connection:
                cursor = connection.cursor()
                await connection.close()
                with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
                    await connection.execute(INSERT, [1])
        with pytest.raises(psycopg.OperationalError, match="nothing was committed: the connection was closed"):
            async with block() as connection:
                cursor = connection.cursor()
                await connection.close()
                with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
                    await cursor.execute(INSERT, [1])


async def test_a_pool_that_is_terminated_meanwhile_is_no_success(
    pool: AsyncConnectionHandle, observer: Observer
) -> None:
    with pytest.raises(psycopg.OperationalError, match="nothing was committed: the connection was lost"):
        async with pool as connection:
            await connection.execute(INSERT, [1])
            pool.terminate()
    assert rows(observer) == []


async def test_closing_does_not_commit_a_unit_that_close_returns_is_for(
    config: dict[str, Any], database: AsyncDatabase, observer: Observer
) -> None:
    database = AsyncDatabase(pools(config, close_returns=True))
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as connection:
            await connection.execute(INSERT, [1])
            await connection.close()
            await connection.execute(INSERT, [2])
            raise ZeroDivisionError
    async with database.transaction() as connection:
        await connection.execute(INSERT, [3])
        await connection.close()
        assert rows(observer) == []
    assert rows(observer) == [3]
    await database.close()


# -- psycopg's own ways to end a transaction --------------------------------------------------------------------------


async def test_psycopgs_block_of_a_units_connection_is_a_savepoint(database: AsyncDatabase, observer: Observer) -> None:
    unit = database.begin()
    connection = await unit.connection()
    async with connection as same:
        assert same is connection
        await connection.execute(INSERT, [1])
        with pytest.raises(ZeroDivisionError):
            async with connection:
                await connection.execute(INSERT, [2])
                raise ZeroDivisionError
        with pytest.raises(UniqueViolation):
            async with connection:
                await connection.execute(INSERT, [1])
        with pytest.raises(psycopg.Rollback):
            async with connection:
                await connection.execute(INSERT, [4])
                raise psycopg.Rollback
        async with connection:
            await connection.execute(INSERT, [3])
    assert rows(observer) == []
    await unit.finish()
    assert rows(observer) == [1, 3]


async def test_psycopgs_block_of_a_refused_unit_stores_nothing(database: AsyncDatabase, observer: Observer) -> None:
    unit = database.begin()
    async with await unit.connection() as connection:
        await connection.execute(INSERT, [1])
    await unit.finish(ZeroDivisionError())
    assert rows(observer) == []


async def test_psycopgs_block_may_outlive_the_connection(database: AsyncDatabase, observer: Observer) -> None:
    unit = database.begin()
    async with await unit.connection() as connection:
        await connection.execute(INSERT, [1])
        await unit.finish()
    with pytest.raises(psycopg.OperationalError, match="nothing was committed"):
        async with database.transaction() as connection, connection:
            await connection.execute(INSERT, [2])
            await connection.close()
    assert rows(observer) == [1]


async def test_nothing_but_its_end_commits_a_unit(database: AsyncDatabase, observer: Observer) -> None:
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as connection:
            await connection.execute(INSERT, [1])
            for end in (
                connection.commit,
                connection.rollback,
                lambda: connection.set_autocommit(True),
                lambda: connection.tpc_begin("pgmonkey"),
            ):
                with pytest.raises(
                    psycopg.ProgrammingError, match=r"forbidden .* 'with db.transaction\(\):'|'async with"
                ):
                    await end()
            await connection.execute(INSERT, [2])
            raise ZeroDivisionError
    async with database.connection() as connection:
        await connection.execute(INSERT, [3])
        await connection.commit()
        assert rows(observer) == [3]


LONG: Any = f"SELECT 1 /* {'x' * 1_000_000} */; COMMIT"
ENDS = [
    *("COMMIT", "END", "commit and chain", "-- at once\nCOMMIT", "SELECT 1; COMMIT", "COMMIT; BEGIN"),
    *("ROLLBACK", "ABORT WORK", "ROLLBACK AND CHAIN", "PREPARE TRANSACTION 'pgmonkey'"),
    *("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; END", "SELECT 1 AS atomic; END"),
    *("SELECT '\\'; COMMIT; --'", 'SELECT 1 AS U&"a"; COMMIT'),
]


async def test_what_has_begun_and_not_ended_is_not_committed(database: AsyncDatabase, observer: Observer) -> None:
    for _ in range(2):
        with pytest.raises(psycopg.ProgrammingError, match="nothing was committed: tpc_begin"):
            async with database.connection() as connection:
                await connection.tpc_begin("pgmonkey")
                await connection.execute(INSERT, [1])
        with pytest.raises(psycopg.ProgrammingError, match=r"nothing was committed: a transaction\(\) block"):
            async with database.connection() as connection:
                await psycopg.AsyncTransaction(connection).__aenter__()
                await connection.execute(INSERT, [1])
    async with database.connection() as connection:
        await connection.execute(INSERT, [2])
    assert rows(observer) == [2]


async def test_a_pipeline_that_is_left_open_is_not_committed(
    database: AsyncDatabase, observer: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    for block in (database.transaction, database.connection):
        for synced in (False, True):
            kept: list[Any] = []
            with pytest.raises(psycopg.OperationalError, match=r"nothing was committed: a pipeline\(\) block"):
                async with block() as connection:
                    kept += [connection, connection.pipeline()]
                    pipeline = await kept[1].__aenter__()
                    await connection.execute(INSERT, [1])
                    if synced:
                        await pipeline.sync()
            given_back, left = kept
            with pytest.raises(GivenBackError):
                await given_back.execute(INSERT, [2])
            # What Python's garbage collector does with it, too: psycopg writes a line that names the pipeline.
            error = GeneratorExit()
            assert not await left.__aexit__(GeneratorExit, error, None)
            assert "Pipeline [GIVEN BACK] at" in caplog.text
            assert await database.fetch_value("SELECT 1") == 1
    assert rows(observer) == []


async def executing_many(connection: psycopg.AsyncConnection[Any], text: Any) -> None:
    await connection.cursor().executemany(text, [(), ()])


async def copying(connection: psycopg.AsyncConnection[Any], text: Any) -> None:
    async with connection.cursor().copy(text):
        pass


async def streaming(connection: psycopg.AsyncConnection[Any], text: Any) -> None:
    async for _ in connection.cursor().stream(text):
        pass


@pytest.mark.parametrize("cursor", [psycopg.AsyncCursor, psycopg.AsyncClientCursor, psycopg.AsyncRawCursor])
async def test_no_statement_ends_a_unit(
    cursor: type[psycopg.AsyncCursor[Any]], database: AsyncDatabase, observer: Observer
) -> None:
    texts: Any = [text for end in ENDS for text in (end, end.encode(), sql.SQL(cast(Any, end)))]
    for fails in (False, True):
        with suppress(ZeroDivisionError):
            async with database.transaction() as connection:
                connection.cursor_factory = cursor
                assert await database.execute("INSERT INTO t VALUES (1)") == 1
                ways: list[Callable[[Any], Any]] = [
                    *(database.execute, database.fetch_one, connection.execute),
                    *(partial(way, connection) for way in (executing_many, copying, streaming)),
                    lambda text: database.execute_many(text, [()]),
                ]
                for text in texts:
                    for execute in ways:
                        with pytest.raises(psycopg.ProgrammingError, match="is forbidden in a unit of work"):
                            await execute(text)
                assert await database.execute("INSERT INTO t VALUES (2)") == 1
                if fails:
                    raise ZeroDivisionError
        assert rows(observer) == ([] if fails else [1, 2])
        observer.execute("DELETE FROM t")
    await database.close()


async def test_a_quote_hidden_by_a_backslash_ends_nothing(database: AsyncDatabase, observer: Observer) -> None:
    """It is the server's setting that decides what is in the string and what is not."""
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL standard_conforming_strings = off")
        assert await database.fetch_value("SELECT '\\'; COMMIT; --'") == "'; COMMIT; --"
        for text in ("SELECT '\\\\'; COMMIT", "SELECT n'\\''; COMMIT", "SELECT '\\'', 'a'\n'\\''; COMMIT; --'"):
            with pytest.raises(psycopg.ProgrammingError, match="is forbidden in a unit of work"):
                await connection.execute(text)
        await database.execute("INSERT INTO t VALUES (1)")
    assert rows(observer) == [1]


async def test_what_has_ended_a_unit_all_the_same_is_an_error(database: AsyncDatabase, observer: Observer) -> None:
    """Such as a statement of a cursor that is none of ours, or one that is too long to be read."""

    class Own(psycopg.AsyncCursor[Any]):
        async def execute(self, *arguments: Any, **options: Any) -> Any:
            return await super().execute(*arguments, **options)

    async def in_pipeline(connection: psycopg.AsyncConnection[Any]) -> None:
        async with connection.pipeline():
            await psycopg.AsyncCursor(connection).execute("COMMIT")

    ways: list[Callable[[psycopg.AsyncConnection[Any]], Any]] = [
        lambda connection: psycopg.AsyncCursor(connection).execute("COMMIT"),
        lambda connection: psycopg.AsyncCursor(connection).executemany("ROLLBACK", [()]),
        lambda connection: Own(connection).execute("ROLLBACK AND NO CHAIN"),
        lambda connection: connection.execute(LONG, prepare=False),
        in_pipeline,
    ]
    for way in ways:
        for nested in (False, True):
            with pytest.raises(psycopg.ProgrammingError, match="nothing more of this transaction is committed"):
                async with database.transaction() as connection:
                    await database.execute("INSERT INTO t VALUES (1)")
                    async with database.transaction() if nested else nullcontext():
                        with pytest.raises(psycopg.Error):
                            await way(connection)
                        for execute in (database.execute, connection.execute):
                            with pytest.raises(psycopg.ProgrammingError, match="has ended it"):
                                await execute("INSERT INTO t VALUES (2)")
            assert 2 not in rows(observer)
            observer.execute("DELETE FROM t")
    async with database.transaction():
        await database.execute("INSERT INTO t VALUES (3)")
    assert rows(observer) == [3]


async def test_savepoints_and_functions_may_have_such_words(database: AsyncDatabase, observer: Observer) -> None:
    async with database.transaction() as connection:
        for execute in (database.execute, connection.execute):
            await execute("SAVEPOINT a")
            await execute("INSERT INTO t VALUES (1)")
            await execute("ROLLBACK TO a")
            await execute("RELEASE SAVEPOINT a")
            await execute("SELECT 'COMMIT' AS end")
            await execute("PREPARE p AS SELECT 1")
            await execute("DEALLOCATE p")
            await execute("DO $$BEGIN NULL; END$$")
            await execute("CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END")
            await execute("DROP FUNCTION f()")
        await database.execute("INSERT INTO t VALUES (2)")
    async with database.connection() as connection:
        await connection.execute("INSERT INTO t VALUES (3)")
        await connection.execute("COMMIT")
        await connection.execute("INSERT INTO t VALUES (4)")
        await connection.execute("ROLLBACK")
    assert rows(observer) == [2, 3]
    await database.close()


# -- errors that were ignored -----------------------------------------------------------------------------------------


async def by_connection(database: AsyncDatabase, connection: Any) -> None:
    await connection.execute("INSERT INTO t  VALUES\n(%s)", [7])


async def by_cursor(database: AsyncDatabase, connection: Any) -> None:
    async with connection.cursor() as cursor:
        await cursor.execute("INSERT INTO t VALUES (%s)", [7])


async def by_query_method(database: AsyncDatabase, connection: Any) -> None:
    await database.execute("INSERT INTO t VALUES (%s)", [7])


async def many(database: AsyncDatabase, connection: Any) -> None:
    await connection.cursor().executemany("INSERT INTO t VALUES (%s)", [[7]])


async def by_copy(database: AsyncDatabase, connection: Any) -> None:
    async with connection.cursor() as cursor, cursor.copy("COPY t FROM STDIN") as copy:
        await copy.write_row([7])


async def composed(database: AsyncDatabase, connection: Any) -> None:
    await connection.execute(sql.SQL("INSERT INTO {} VALUES ({})").format(sql.Identifier("t"), sql.Literal(7)))


async def in_a_pipeline(database: AsyncDatabase, connection: Any) -> None:
    async with connection.pipeline():
        await connection.execute("INSERT INTO t VALUES (%s)", [7])


async def by_client_cursor(database: AsyncDatabase, connection: Any) -> None:
    async with psycopg.AsyncClientCursor(connection) as cursor:
        await cursor.execute("INSERT INTO t VALUES (%s)", [7])


WAYS: dict[Callable[[AsyncDatabase, Any], Awaitable[None]], str] = {
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
async def test_the_end_names_what_failed_first(
    way: Callable[[AsyncDatabase, Any], Awaitable[None]], database: AsyncDatabase, observer: Observer
) -> None:
    observer.execute("INSERT INTO t VALUES (7)")
    for _ in range(3):  # prepared by then, where it is
        errors: list[Any] = []
        with pytest.raises(InFailedSqlTransaction) as caught:
            async with database.transaction() as connection:
                errors.append(await run_to_end(partial(way, database, connection)))
                errors.append(await run_to_end(partial(connection.execute, "SELECT 1")))
                errors.append(await run_to_end(partial(database.fetch_value, "SELECT 1")))
                with pytest.raises(psycopg.errors.SyntaxError):
                    await connection.execute("SELEKT")
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


async def test_long_statements_are_cut(database: AsyncDatabase) -> None:
    long: Any = "SELECT * FROM missing WHERE a IN (" + ", ".join(["1"] * 500) + ")"
    with pytest.raises(InFailedSqlTransaction) as caught:
        async with database.transaction() as connection:
            with pytest.raises(psycopg.errors.UndefinedTable):
                await connection.execute(long)
    statement = str(caught.value).removeprefix("nothing was committed: ").partition("... at ")[0]
    assert len(statement) == 117


async def test_what_was_rolled_back_is_forgotten(database: AsyncDatabase, observer: Observer) -> None:
    observer.execute("INSERT INTO t VALUES (7)")
    with pytest.raises(InFailedSqlTransaction, match=r"SELECT 1 / 0 .*division by zero"):
        async with database.transaction() as connection:
            with pytest.raises(UniqueViolation):
                async with database.transaction():
                    await connection.execute(INSERT, [7])
            with pytest.raises(psycopg.errors.SyntaxError):
                async with connection.transaction():
                    await connection.execute("SELEKT")
            with pytest.raises(psycopg.errors.DivisionByZero):
                await connection.execute("SELECT 1 / 0")
    with pytest.raises(InFailedSqlTransaction, match=r"SELEKT at .*syntax error"):
        async with database.connection() as connection:
            for end in (connection.rollback, connection.commit):
                with pytest.raises(UniqueViolation):
                    await connection.execute(INSERT, [7])
                await end()
            with pytest.raises(psycopg.errors.SyntaxError):
                await connection.execute("SELEKT")
    with pytest.raises(psycopg.errors.SyntaxError) as caught:
        async with database.transaction() as connection:
            await connection.execute("SELEKT")
    assert caught.value.__cause__ is None


async def test_a_lost_connection_names_what_failed_first(database: AsyncDatabase) -> None:
    errors: list[object] = []
    with pytest.raises(psycopg.OperationalError, match="nothing was committed: the connection was lost") as caught:
        async with database.transaction() as connection:
            query = "SELECT pg_terminate_backend(pg_backend_pid())"
            errors.append(await run_to_end(lambda: connection.execute(query)))
    assert isinstance(errors[0], psycopg.OperationalError)
    assert caught.value.__cause__ is errors[0]


async def test_an_error_that_was_ignored_keeps_nothing_alive(database: AsyncDatabase, observer: Observer) -> None:
    observer.execute("INSERT INTO t VALUES (7)")

    class Held:
        """What the borrower has in hand."""

    async def fail() -> weakref.ref[Held]:
        held = Held()
        with suppress(UniqueViolation):
            await database.execute(INSERT, [7])
        return weakref.ref(held)

    with pytest.raises(InFailedSqlTransaction) as caught:
        async with database.transaction():
            held = await fail()
            await sleep(0)  # a step of a task has the answer in hand that it began with
            gc.collect()
            assert held() is None
    cause = caught.value.__cause__
    assert isinstance(cause, UniqueViolation)
    assert cause.sqlstate == "23505"
    assert cause.diag.constraint_name == "t_a_key"
    assert cause.__traceback__ is None


async def test_a_forgotten_lease_is_taken_back_after_an_error(pool: AsyncConnectionHandle) -> None:
    async def forget() -> None:
        lease = await pool.borrow()
        with suppress(psycopg.Error):
            await lease.connection.execute("SELECT 1 / 0")

    await elsewhere(forget)
    gc.collect()
    assert pool.stats()["pool_size"] == 0


async def test_an_ignored_error_keeps_its_result(database: AsyncDatabase) -> None:
    ignored: list[psycopg.Error] = []
    with pytest.raises(InFailedSqlTransaction) as raised:
        async with database.transaction() as connection:
            with pytest.raises(psycopg.errors.DivisionByZero) as caught:
                await connection.execute("SELECT 1/0")
            ignored.append(caught.value)
    assert ignored[0].pgresult is not None
    assert raised.value.__cause__ is ignored[0]


async def test_the_first_error_is_named_also_when_tables_have_changed_meanwhile(database: AsyncDatabase) -> None:
    with pytest.raises(InFailedSqlTransaction, match="SELECT 1/0"):
        async with database.transaction() as connection:
            with suppress(psycopg.errors.DivisionByZero):
                await connection.execute("SELECT 1/0")
            connection.__dict__["pool"]().forget_plans()
            with pytest.raises(InFailedSqlTransaction) as later:
                await connection.execute("SELECT 1")
            assert isinstance(later.value.__cause__, psycopg.errors.DivisionByZero)


@pytest.mark.parametrize("unclean", [False, True])
async def test_a_statement_that_fails_just_before_commit(
    unclean: bool, database: AsyncDatabase, observer: Observer
) -> None:
    divide: Any = "SELECT 1 / %s::int"
    async with database.connection() as connection:
        for _ in range(3):
            await connection.execute(divide, [1])
    unit = database.begin()
    connection = await unit.connection()
    await connection.execute(INSERT, [1])
    if unclean:
        await connection.execute("SET application_name TO 'theirs'")
    async with connection.lock:
        failing = Beside(partial(connection.execute, divide, [0]))
        await sleep(0.1)
        ending = Beside(unit.finish)
        await sleep(0.1)
    # In threads, either may come first.
    ended, failed = await ending.end(), await failing.end()
    assert rows(observer) == ([1] if ended is None else [])
    if isinstance(failed, psycopg.errors.DivisionByZero):
        assert isinstance(ended, InFailedSqlTransaction)
        assert ended.__cause__ is failed
        assert divide in str(ended)
