"""The socket of a connection is watched by its event loop for as long as the connection lives, and no longer."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import socket
import threading
import time
import weakref
from typing import Any

import psycopg
import pytest
from psycopg.generators import execute
from psycopg.pq import ExecStatus

from pgmonkey import AsyncDatabase, PGConnectionManager

from ..event_loops import LOOPS, run_on, single

PSYCOPG = tuple(int(number) for number in psycopg.__version__.split(".")[:2])


async def watching(database: AsyncDatabase[Any]) -> Any:
    """Return what watches the only connection, having used it."""
    await database.fetch_value("SELECT 1")
    async with database.connection() as connection:
        return connection.__dict__["watcher"]


async def check_number(number: int) -> None:
    """See that the loop watches what gets the *number* of a descriptor that was closed."""
    running, arrived = asyncio.get_running_loop(), asyncio.Event()
    theirs, ours = socket.socketpair()
    reused = theirs.fileno() == number
    if not reused:
        os.dup2(theirs.fileno(), number)
    running.add_reader(number, arrived.set)
    ours.send(b"x")
    await asyncio.wait_for(arrived.wait(), 5)
    running.remove_reader(number)
    if not reused:
        os.close(number)
    theirs.close()
    ours.close()


@pytest.mark.parametrize("loop", LOOPS)
def test_the_end_of_an_idle_connection_is_noticed_once(loop: str, config: dict[str, Any], observer: Any) -> None:
    async def main() -> None:
        database = AsyncDatabase(single(config))
        watcher = await watching(database)
        assert watcher._reading
        observer.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
        await asyncio.sleep(0.2)
        assert not watcher._reading  # or the loop would call again and again
        busy = time.process_time()
        await asyncio.sleep(0.5)
        assert time.process_time() - busy < 0.25
        assert await database.fetch_value("SELECT 2") == 2
        await database.close()

    run_on(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_descriptor_leaves_the_loop_before_it_is_closed(loop: str, config: dict[str, Any]) -> None:
    """Else the loop would mistake what gets its number next for it."""

    async def main() -> None:
        for way in ("close", "terminate", "kill", "kill quietly", "abandon"):
            manager = PGConnectionManager()
            handle = await manager.get_database_connection_from_dict(single(config), "async_pool")
            lease = await handle.borrow()
            await lease.connection.execute("SELECT 1")
            number = lease.connection.pgconn.socket
            if way == "close":
                await lease.connection.close()
                await check_number(number)
                with pytest.raises(psycopg.OperationalError, match="the connection was closed"):
                    await lease.finish()
            elif way == "terminate":
                handle.terminate()
            elif way == "kill quietly":  # psycopg's generator returns the reason as a result
                lease.connection.pgconn.send_query(b"SELECT pg_terminate_backend(pg_backend_pid())")
                if PSYCOPG < (3, 3):  # which raises it
                    with pytest.raises(psycopg.OperationalError):
                        await lease.connection.wait(execute(lease.connection.pgconn))
                else:
                    results = await lease.connection.wait(execute(lease.connection.pgconn))
                    assert results[-1].status == ExecStatus.FATAL_ERROR
                await check_number(number)
                await lease.finish(RuntimeError())
            elif way == "kill":
                with pytest.raises(psycopg.OperationalError):
                    await lease.connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
                await check_number(number)  # which libpq has closed by now
                await lease.finish(RuntimeError())
            else:
                lease.abandon()
            await manager.clear_cache_async()
            await check_number(number)

    run_on(loop, main())


@pytest.mark.parametrize("loop", LOOPS)
def test_closing_a_connection_wakes_the_task_that_waits_for_it(loop: str, config: dict[str, Any]) -> None:
    async def main() -> None:
        manager = PGConnectionManager()
        handle = await manager.get_database_connection_from_dict(single(config), "async_pool")
        for elsewhere in (False, True):
            handle = await manager.get_database_connection_from_dict(single(config), "async_pool", force_reload=True)
            lease = await handle.borrow()
            waiting = asyncio.create_task(lease.connection.execute("SELECT pg_sleep(30)"))
            await asyncio.sleep(0.2)
            if elsewhere:
                thread = threading.Thread(target=handle.terminate)
                thread.start()
                await asyncio.to_thread(thread.join)
            else:
                handle.terminate()
            with pytest.raises(psycopg.OperationalError):
                await asyncio.wait_for(waiting, 3)
            await lease.finish(RuntimeError())
        await manager.clear_cache_async()

    run_on(loop, main())


def test_without_a_loop_of_asyncio_the_error_says_what_to_do(config: dict[str, Any]) -> None:
    coroutines: list[Any] = [AsyncDatabase(config).fetch_value("SELECT 1"), AsyncDatabase(config).connect()]
    for coroutine in coroutines:
        with pytest.raises(RuntimeError, match=r"no event loop of asyncio .* '--worker-class asyncio'"):
            coroutine.send(None)  # as trio does


def test_the_loop_keeps_no_context_of_a_borrower(config: dict[str, Any]) -> None:
    class Request:
        """Something large that a context variable refers to."""

    current: contextvars.ContextVar[Any] = contextvars.ContextVar("current")

    async def main() -> None:
        database = AsyncDatabase(single(config))

        async def serve() -> weakref.ref[Request]:
            request = Request()
            current.set(request)
            await database.fetch_value("SELECT 1")
            return weakref.ref(request)

        await database.connect()
        await asyncio.sleep(0.1)
        reference = await asyncio.create_task(serve())
        await asyncio.sleep(0)
        gc.collect()
        assert reference() is None
        await database.close()

    asyncio.run(main())


def test_notice_handlers_run_in_the_context_of_the_caller(config: dict[str, Any], observer: Any) -> None:
    observer.execute(
        "CREATE FUNCTION tell() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'x'; RETURN 1; END $$"
    )
    current: contextvars.ContextVar[str] = contextvars.ContextVar("current", default="nobody")
    heard: list[str] = []

    async def main() -> None:
        database = AsyncDatabase(single(config))
        for _ in range(8):
            await database.fetch_value("SELECT tell()")
        async with database.connection() as connection:
            await connection.execute("SELECT tell()")
            connection.add_notice_handler(lambda diagnostic: heard.append(current.get()))
            for name in ("one", "two"):
                current.set(name)
                await connection.execute("SELECT tell()")
        await database.close()

    asyncio.run(main())
    assert heard == ["one", "two"]


def test_a_forgotten_pool_leaves_the_loop(config: dict[str, Any], backends: Any) -> None:
    from pgmonkey._async.pool import AsyncPool
    from pgmonkey._config.blueprint import blueprint

    async def main() -> None:
        loaded = PGConnectionManager().load(single(config))
        pool = AsyncPool(blueprint(loaded, "async_pool"))
        pooled = await pool.borrow()
        await pooled.connection.execute("SELECT 1")
        pool.give_back(pooled)
        assert len(backends()) == 1
        number = pooled.pgconn.socket
        del pool, pooled
        gc.collect()
        deadline = time.monotonic() + 5
        while backends():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        await check_number(number)

    asyncio.run(main())


@pytest.mark.parametrize("running", [False, True])
def test_a_forked_child_leaves_the_parents_loop_alone(running: bool, config: dict[str, Any]) -> None:
    """They share what the loop waits with, so that what the child removed would be removed from the parent's."""
    loop = asyncio.new_event_loop()
    database = AsyncDatabase(single(config))

    def fork(watcher: Any) -> None:
        child = os.fork()
        if child == 0:
            gc.collect()
            os._exit(watcher._reading)
        assert os.waitpid(child, 0)[1] == 0

    async def use(forking: bool) -> Any:
        watcher = await asyncio.wait_for(watching(database), 3)
        assert watcher._reading
        if forking:
            fork(watcher)
            await asyncio.wait_for(database.fetch_value("SELECT 1"), 3)
        return watcher

    for _ in range(3):
        watcher = loop.run_until_complete(use(running))
        if not running:
            fork(watcher)
    loop.run_until_complete(database.close())
    loop.close()


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")  # it is
def test_a_forked_child_leaves_the_loops_of_threads_alone(config: dict[str, Any]) -> None:
    """Python ends the threads in the child, and what they have with them, before it tells anybody of the fork."""
    from pgmonkey._async.pool import AsyncPool
    from pgmonkey._config.blueprint import blueprint

    plan = blueprint(PGConnectionManager().load(single(config)), "async_pool")
    of_thread, ready, forked, told = threading.local(), threading.Event(), threading.Event(), []

    class Collector:
        def __del__(self) -> None:
            gc.collect()

    async def use() -> Any:
        if not hasattr(of_thread, "pool"):
            of_thread.pool, of_thread.collector = AsyncPool(plan), Collector()
        pooled = await of_thread.pool.borrow()
        row = await (await asyncio.wait_for(pooled.connection.execute("SELECT pg_backend_pid()"), 5)).fetchone()
        assert pooled.watcher._reading
        of_thread.pool.give_back(pooled)
        return row

    def work() -> None:
        loop = asyncio.new_event_loop()
        told.append(loop.run_until_complete(use()))
        ready.set()
        forked.wait(30)
        told.append(loop.run_until_complete(use()))
        of_thread.pool.close()
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(30)
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    forked.set()
    thread.join()
    assert len(told) == 2
    assert told[0] == told[1]


def test_a_large_statement_and_a_large_answer(config: dict[str, Any]) -> None:
    async def main() -> None:
        database = AsyncDatabase(single(config))
        text = "x" * 20_000_000
        for _ in range(2):
            async with database.transaction() as connection:
                cursor = await connection.execute("SELECT %s::text", [text])
                assert await cursor.fetchone() == (text,)
        await database.close()

    asyncio.run(main())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_task_that_is_cancelled_where_a_pipeline_begins(loop: str, config: dict[str, Any]) -> None:
    async def main() -> None:
        database = AsyncDatabase(single(config))
        await database.execute("CREATE TABLE t (a int)")

        async def write() -> None:
            async with database.transaction():
                await database.execute_many("INSERT INTO t VALUES (%s)", [[1], [2]])

        for steps in range(20):
            task = asyncio.ensure_future(write())
            for _ in range(steps):
                time.sleep(0.006)  # psycopg lets other tasks run where the loop was busy for so long
                await asyncio.sleep(0)
            task.cancel()
            result = (await asyncio.gather(task, return_exceptions=True))[0]
            assert result is None or isinstance(result, asyncio.CancelledError)
            assert await database.fetch_value("SELECT 1") == 1
        await database.close()

    run_on(loop, main())
