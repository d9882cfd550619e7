"""The program's own code runs under no lock of ours: what it does with the database works, or is an error at once."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import psycopg
import pytest
from psycopg.adapt import Dumper, Loader
from psycopg.rows import class_row

from pgmonkey import Database
from pgmonkey.embedded import Server

from ..configs import pools

Observer = psycopg.Connection[Any]


@pytest.fixture
def config_of_one(config: dict[str, Any]) -> dict[str, Any]:
    config["connection_settings"]["prepare_threshold"] = 2
    return pools(config, max_size=1, timeout=2)


class Item:
    """A row that looks something up when it is made."""

    database: Database[Any]

    def __init__(self, a: int) -> None:
        self.a = a
        # The very statement that this row comes from, too, but only once.
        self.other = self.database.fetch_value("SELECT 10 * %s", [a])
        self.same = self.database.fetch_value("SELECT %s::int AS a", [0])


@pytest.mark.parametrize("way", ["alone", "transaction", "unit_of_work"])
def test_a_row_class_may_use_the_database(way: str, config_of_one: dict[str, Any]) -> None:
    database = Database(config_of_one, row_factory=class_row(Item))
    Item.database = database

    def read() -> None:
        for _ in range(6):
            one = database.fetch_one("SELECT %s::int AS a", [3])
            assert one is not None
            assert (one.a, one.other, one.same) == (3, 30, 0)
            assert [item.other for item in database.fetch_all("SELECT a FROM generate_series(1, %s) AS a", [2])] == [
                10,
                20,
            ]

    if way == "alone":
        read()
    else:
        with getattr(database, way)():
            read()
    database.close()


@pytest.mark.parametrize("way", ["alone", "transaction", "unit_of_work"])
def test_a_loader_may_use_the_database(way: str, config_of_one: dict[str, Any]) -> None:
    class Looking(Loader):
        def load(self, data: Any) -> Any:
            return database.fetch_value("SELECT 10 * %s::int8", [int(bytes(data))])

    def configure(connection: psycopg.Connection[Any]) -> None:
        connection.adapters.register_loader("int4", Looking)

    # It is called while its connection is there, which it may look at, so it needs another one where that is lent.
    config_of_one["pool_settings"].update(configure=configure, max_size=2)
    database = Database(config_of_one)

    def read() -> None:
        for _ in range(6):
            assert database.fetch_all("SELECT a FROM generate_series(1, %s) AS a", [2]) == [(10,), (20,)]

    if way == "alone":
        read()
    else:
        with getattr(database, way)():
            read()
    database.close()


def test_rows_are_made_while_other_threads_use_the_same_statement(config_of_one: dict[str, Any]) -> None:
    making, made = threading.Event(), threading.Event()

    class Slow:
        def __init__(self, a: int) -> None:
            self.a = a
            if a == 1:
                making.set()
                made.wait(5)

    database = Database(config_of_one, row_factory=class_row(Slow))
    answers: list[Any] = []
    with database.unit_of_work():
        for _ in range(5):
            database.fetch_one("SELECT %s::int AS a", [2])

        def first() -> None:
            answers.append(database.fetch_one("SELECT %s::int AS a", [1]))

        thread = threading.Thread(target=copy_context().run, args=(first,))
        thread.start()
        making.wait(5)
        for a in (2, 3, 4):
            one = database.fetch_one("SELECT %s::int AS a", [a])
            assert one is not None
            assert one.a == a
        made.set()
        thread.join()
    assert [answer.a for answer in answers] == [1]
    database.close()


class Money:
    """A value that is dumped by a look-up."""


def test_a_dumper_that_uses_its_own_transaction_is_an_error_at_once(
    config_of_one: dict[str, Any], observer: Observer
) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = Database(config_of_one)

    class MoneyDumper(Dumper):
        oid = 20

        def dump(self, obj: Money) -> bytes:
            return str(database.execute("INSERT INTO t VALUES (1)")).encode()

    for direct in (False, False, False, False, True, True):
        with pytest.raises(psycopg.ProgrammingError, match="in this very thread"):
            with database.transaction() as connection:
                connection.adapters.register_dumper(Money, MoneyDumper)
                (connection if direct else database).execute("INSERT INTO t VALUES (%s)", [Money()])
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (0,)
    database.close()


@pytest.mark.parametrize("way", ["connection", "transaction"])
@pytest.mark.parametrize("does", ["fetch_value", "transaction"])
def test_a_notice_handler_never_waits_for_its_own_statement(way: str, does: str, config_of_one: dict[str, Any]) -> None:
    config_of_one["pool_settings"]["max_size"] = 2
    database = Database(config_of_one)
    heard: list[object] = []

    def hear(notice: object) -> None:
        try:
            if does == "fetch_value":
                heard.append(database.fetch_value("SELECT 5"))
            else:
                with database.transaction():
                    heard.append(5)
        except psycopg.ProgrammingError as error:
            heard.append(str(error)[:16])

    for warm in range(4):
        with getattr(database, way)() as connection:
            connection.add_notice_handler(hear)
            connection.execute("DO $$ BEGIN RAISE NOTICE 'x'; END $$")
            assert database.fetch_value("SELECT %s::int", [warm]) == warm
    # Outside of a transaction that is executing, it has a connection of its own.
    assert heard == ([5] if way == "connection" else ["this transaction"]) * 4
    database.close()


def test_to_wait_for_another_thread_keeps_nothing_that_the_program_forgets(config: dict[str, Any]) -> None:
    database = Database(pools(config))

    class Thing:
        """Something of the program's."""

    things = [Thing()]
    reference = weakref.ref(things[0])
    with database.transaction() as connection:
        for number in range(5):
            database.fetch_value("SELECT %s::int", [number])
        thing = things.pop()
        beside = threading.Thread(target=connection.execute, args=("SELECT pg_sleep(0.5)",))
        beside.start()
        while beside.is_alive() and not connection.lock.locked():
            time.sleep(0.001)
        assert database.fetch_value("SELECT %s::int", [7]) == 7  # waits for that, and looks who calls it
        beside.join()
    assert reference() is thing
    del thing
    assert reference() is None
    database.close()


def test_parameters_may_be_made_by_queries(config_of_one: dict[str, Any], observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")
    database = Database(config_of_one)

    def numbers() -> Iterator[tuple[int]]:
        for a in range(3):
            yield (database.fetch_value("SELECT 1 + %s", [a]),)

    database.execute_many("INSERT INTO t VALUES (%s)", numbers())
    with database.transaction():
        database.execute_many("INSERT INTO t VALUES (%s)", numbers())
    assert observer.execute("SELECT array_agg(a) FROM t").fetchone() == ([1, 2, 3, 1, 2, 3],)
    database.close()


def test_sys_exit_in_reconnect_failed_does_not_end_upkeep(config: dict[str, Any], server: Server, dbname: str) -> None:
    told = threading.Semaphore(0)

    def reconnect_failed(pool: object) -> None:
        told.release()
        sys.exit(1)

    database = Database(pools(config, min_size=2, reconnect_timeout=0.1, reconnect_failed=reconnect_failed))
    allow = f"ALTER DATABASE {dbname} ALLOW_CONNECTIONS"
    with psycopg.connect(server.dsn(), autocommit=True) as admin, database.connection() as connection:
        admin.execute(f"{allow} false".encode())
        connection.close()
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        for _ in range(3):
            assert told.acquire(timeout=30)
        admin.execute(f"{allow} true".encode())
    database.close()
