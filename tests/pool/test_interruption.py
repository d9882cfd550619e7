"""An exception at each bytecode of what borrows, gives back and closes: the pool is whole afterwards.

Signal handlers raise between two bytecodes (Ctrl-C, Celery's soft limit), and nobody can say which.  So these tests
try them one after the other, in the code of pgmonkey.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
import pytest

import pgmonkey
from pgmonkey import AsyncDatabase, Database, PoolTimeoutError
from pgmonkey._driver.deadlines import connecting_until

OURS = str(Path(pgmonkey.__file__).parent)
SIZE = 2
# Every how many bytecodes the tests interrupt: all of them takes minutes.  The first one is drawn anew for each run.
STEP = int(os.environ.get("PGMONKEY_STEP", "23"))
INTERRUPTIONS = [KeyboardInterrupt, type("Interruption", (BaseException,), {})]


class Tracer:
    """Raises *error* at the bytecode of that *number*, counted from 1 in pgmonkey's own files."""

    def __init__(self, number: int, error: type[BaseException]) -> None:
        self.number = number
        self.error = error
        self.at = ""
        """Where it has raised."""

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        # The exceptions of a finalizer, or of a generator that is closed because nobody wants more of it, reach nobody.
        if not frame.f_code.co_filename.startswith(OURS) or frame.f_code.co_name in ("__del__", "<genexpr>"):
            return None
        frame.f_trace, frame.f_trace_lines, frame.f_trace_opcodes = self.count, False, True
        return self.count

    def count(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode":
            self.number -= 1
            if self.number == 0:
                code = frame.f_code
                self.at = f"{code.co_filename}:{frame.f_lineno} ({code.co_name}, {frame.f_lasti})"
                self.act()
        return self.count

    def act(self) -> None:
        raise self.error


def interrupt(tracer: Tracer, function: Callable[[], object]) -> None:
    """Call *function*, traced; return quietly when it was interrupted."""
    # Not a generator: contextlib would make a cycle with the exception, and keep what its frames refer to.
    sys.settrace(tracer)
    try:
        function()
    except tracer.error:
        pass
    finally:
        sys.settrace(None)


def interruptions(error: type[BaseException], step: int = STEP) -> Iterator[Tracer]:
    """Yield tracers that raise at every *step*-th bytecode, one a tracer, until the caller was not interrupted."""
    for _ in range(3):  # to have Python trace bytecodes, and to warm up
        yield Tracer(0, error)
    for number in itertools.count(1 + time.time_ns() % step, step):
        tracer = Tracer(number, error)
        yield tracer
        if not tracer.at:
            return


def settings(config: dict[str, Any], **more: Any) -> dict[str, Any]:
    pool = {"min_size": 0, "max_size": SIZE, "timeout": 5, **more}
    return {
        **config,
        "connection_settings": {**config["connection_settings"], "prepare_threshold": 0},
        "pool_settings": pool,
        "async_pool_settings": dict(pool),
    }


def assert_whole(database: Database[Any], at: str) -> None:
    """All connections can be borrowed at once, within a second, and nobody else has one."""
    try:
        leases = [database.borrow(timeout=1) for _ in range(SIZE)]
        pids = {lease.connection.execute("SELECT pg_backend_pid()").fetchone()[0] for lease in leases}  # type: ignore[index]
        for lease in leases:
            lease.finish()
    except psycopg.Error as error:
        raise AssertionError(f"after an interruption at {at}") from error
    stats = database.stats()
    assert (len(pids), stats["pool_size"], stats["pool_available"]) == (SIZE, SIZE, SIZE), at
    assert stats["requests_waiting"] == 0, at
    assert database.current_unit() is None, at


class Work:
    """What the tests interrupt: each does something twice, and says when its block was over."""

    def __init__(self, database: Database[Any], key: int) -> None:
        self.database = database
        self.key = key
        self.done = False

    def insert(self, connection: psycopg.Connection[Any]) -> None:
        for _ in range(2):
            connection.execute("INSERT INTO t VALUES (%s)", [self.key])
        self.done = True

    def alone(self) -> None:
        self.database.fetch_one("SELECT 1")

    def bare(self) -> None:
        pool = self.database._pool()
        with pool as connection:
            self.insert(connection)

    def connection(self) -> None:
        with self.database.connection() as connection:
            self.insert(connection)

    def lease(self) -> None:
        lease = self.database.borrow()
        self.insert(lease.connection)
        lease.finish()

    def transaction(self) -> None:
        with self.database.transaction() as connection:
            self.insert(connection)

    def rollback(self) -> None:
        with suppress(ZeroDivisionError), self.database.transaction() as connection:
            self.insert(connection)
            self.done = False
            raise ZeroDivisionError


@pytest.mark.timeout(600)
@pytest.mark.parametrize("error", INTERRUPTIONS)
@pytest.mark.parametrize("work", [Work.alone, Work.bare, Work.connection, Work.lease, Work.transaction, Work.rollback])
def test_interrupted_work_leaves_the_pool_whole_and_stores_all_or_nothing(
    work: Callable[[Work], None],
    error: type[BaseException],
    config: dict[str, Any],
    observer: psycopg.Connection[Any],
) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = Database(settings(config))
    for key, tracer in enumerate(interruptions(error)):
        doing = Work(database, key)
        interrupt(tracer, partial(work, doing))
        assert_whole(database, tracer.at)
        stored = observer.execute("SELECT count(*) FROM t WHERE a = %s", [key]).fetchone()
        # Once the COMMIT was sent it may have been executed.
        assert stored in ([(0,), (2,)] if doing.done and tracer.at else [(2 * doing.done,)]), tracer.at
    database.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("timeout", [5, 0.05])
def test_an_interrupted_wait_leaves_the_queue(timeout: float, config: dict[str, Any]) -> None:
    database = Database(settings(config, timeout=timeout))
    while not database.stats().get("pool_size"):
        with suppress(psycopg.errors.ConnectionTimeout):  # opening the pool may take longer
            database.fetch_one("SELECT 1")
    for tracer in interruptions(KeyboardInterrupt):
        leases = [database.borrow(timeout=1) for _ in range(SIZE)]

        def give_back(leases: list[Any] = leases) -> None:
            time.sleep(0.002)
            for lease in leases:
                lease.finish()

        other = threading.Thread(target=give_back)
        if timeout > 1:
            other.start()
        with suppress(PoolTimeoutError, psycopg.errors.ConnectionTimeout):
            interrupt(tracer, partial(database.fetch_one, "SELECT 1"))
        if timeout > 1:
            other.join()
        else:
            give_back(leases)
        del leases
        assert_whole(database, tracer.at)
    database.close()


@pytest.mark.timeout(600)
def test_an_interrupted_connect_leaves_its_place(config: dict[str, Any]) -> None:
    # The longest of them: thousands of bytecodes, and three connections for each that is tried.
    for tracer in interruptions(KeyboardInterrupt, 3 * STEP):
        database = Database(settings(config))
        interrupt(tracer, partial(database.fetch_one, "SELECT 1"))
        assert connecting_until.get() is None, tracer.at
        assert_whole(database, tracer.at)
        database.close()


@pytest.mark.timeout(600)
def test_an_interrupted_close_can_be_called_again(config: dict[str, Any], observer: psycopg.Connection[Any]) -> None:
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    for tracer in interruptions(KeyboardInterrupt):
        database = Database(settings(config))
        assert_whole(database, tracer.at)
        interrupt(tracer, database.close)
        database.close()
        deadline = time.monotonic() + 5
        while observer.execute(sessions).fetchone() != (0,):
            assert time.monotonic() < deadline, tracer.at
            time.sleep(0.001)


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # interrupted between the call and the await
@pytest.mark.parametrize("work", ["alone", "bare", "connection", "transaction"])
def test_interrupted_tasks_leave_the_pool_whole(work: str, config: dict[str, Any]) -> None:
    database: AsyncDatabase[Any] = AsyncDatabase(settings(config))

    async def execute() -> None:
        if work == "alone":
            await database.fetch_one("SELECT 1")
        elif work == "bare":
            pool = await database._pool()
            async with pool as connection:
                await connection.execute("SELECT 1")
        else:
            async with getattr(database, work)() as connection:
                await connection.execute("SELECT 1")

    async def whole(at: str) -> None:
        try:
            leases = [await database.borrow(timeout=1) for _ in range(SIZE)]
            for lease in leases:
                await lease.connection.execute("SELECT 1")
                await lease.finish()
        except psycopg.Error as error:
            raise AssertionError(f"after an interruption at {at}") from error
        stats = database.stats()
        assert stats["pool_size"] == stats["pool_available"] == SIZE, at
        assert stats["requests_waiting"] == 0, at

    async def begin() -> None:
        await asyncio.wait_for(execute(), 5)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # told of what a callback of the loop raised
    for tracer in interruptions(INTERRUPTIONS[1]):
        interrupt(tracer, lambda: loop.run_until_complete(begin()))
        loop.run_until_complete(whole(tracer.at))
    loop.run_until_complete(database.close())
    loop.close()


POSIX = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="POSIX only")


def interrupt_often(
    handler: Callable[[int, FrameType | None], None], handled: list[Any], work: Callable[[], None]
) -> None:
    """Call *work* again and again, while *handler* is called by 300 signals; it adds to *handled* at its end."""
    main = threading.get_ident()

    def send() -> None:
        for number in range(300):
            time.sleep(0.0001 + number % 50 / 20_000)
            signal.pthread_kill(main, signal.SIGUSR1)
            while len(handled) <= number:  # not into the handler
                time.sleep(0.0001)

    previous = signal.signal(signal.SIGUSR1, handler)
    sender = threading.Thread(target=send)
    sender.start()
    while sender.is_alive():
        work()
    sender.join()
    signal.signal(signal.SIGUSR1, previous)


@POSIX
def test_real_signals_interrupt_at_random(config: dict[str, Any]) -> None:
    database = Database(settings(config))
    handled: list[Any] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code.co_filename.startswith(OURS):
            handled.append(number)
            raise KeyboardInterrupt
        handled.append(number)

    def work() -> None:
        with suppress(KeyboardInterrupt):
            database.fetch_one("SELECT 1")
            with database.connection() as connection:
                connection.execute("SELECT 1")

    interrupt_often(handler, handled, work)
    gc.collect()
    assert_whole(database, "random places")
    database.close()


@POSIX
def test_a_signal_handler_may_use_the_database_that_it_interrupts(config: dict[str, Any]) -> None:
    database = Database(settings(config))
    answers: list[Any] = []

    def handler(number: int, frame: FrameType | None) -> None:
        answers.append(database.fetch_value("SELECT 2"))

    def work() -> None:
        assert database.fetch_value("SELECT 1") == 1
        with database.connection() as connection:
            connection.execute("SELECT 1")

    interrupt_often(handler, answers, work)
    assert set(answers) == {2}
    database.close()


@pytest.mark.timeout(300)
def test_a_signal_handler_at_any_bytecode_may_use_the_database(config: dict[str, Any]) -> None:
    database = Database(settings(config))
    database.fetch_one("SELECT 1")
    answers: list[Any] = []

    class Handler(Tracer):
        def act(self) -> None:
            answers.append(database.fetch_value("SELECT 2"))

    def work() -> None:
        assert database.fetch_value("SELECT 1") == 1
        with database.connection() as connection:
            connection.execute("SELECT 1")

    for number in range(0, 2000, STEP):
        interrupt(Handler(number, KeyboardInterrupt), work)
        assert_whole(database, str(number))
    assert len(answers) > 20
    assert set(answers) == {2}
    database.close()
