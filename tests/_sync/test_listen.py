# Generated from tests/_async/test_listen.py by tools/twins.py: change that file, then run the tool.

"""LISTEN and NOTIFY: who hears what, and what happens when the connection is lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import Notify

from pgmonkey import Database, Gap, Listening
from pgmonkey._sync.waiting import sleep

from .concurrency import Beside

Observer = psycopg.Connection[Any]

LISTENERS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND query LIKE '%LISTEN%'"
)


@pytest.fixture
def database(config: dict[str, Any]) -> Database:
    return Database(config)


def notify(observer: Observer, *payloads: object, channel: str = "orders") -> None:
    for payload in payloads:
        observer.execute("SELECT pg_notify(%s, %s)", [channel, str(payload)])


def end_listeners(observer: Observer) -> int:
    found = observer.execute(LISTENERS).fetchall()
    for (pid,) in found:
        observer.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
    return len(found)


def none_listen(observer: Observer) -> bool:
    """Tell whether nobody listens any more; a server that is busy needs a moment to notice."""
    end = time.monotonic() + 30
    while observer.execute(LISTENERS).fetchall() and time.monotonic() < end:
        time.sleep(0.05)
    return not observer.execute(LISTENERS).fetchall()


def take(listening: Listening, count: int) -> list[str]:
    """Return the payloads of the next *count* notes, and "gap" for gaps."""
    found: list[str] = []
    for note in listening:
        found.append("gap" if isinstance(note, Gap) else note.payload)
        if len(found) == count:
            break
    return found


def test_notifications_come_in_order(database: Database, observer: Observer) -> None:
    with database.listen("orders", "Odd name; --") as notes:
        notify(observer, 1, 2)
        notify(observer, 3, channel="Odd name; --")
        notify(observer, 4, channel="odd name; --")
        database.notify("orders", "5 é")
        database.notify("orders")
        with database.transaction():
            database.notify("orders", "7")
            notify(observer, "before the COMMIT")
        assert take(notes, 7) == ["1", "2", "3", "5 é", "", "before the COMMIT", "7"]
        with pytest.raises(ZeroDivisionError):
            with database.transaction():
                database.notify("orders", "rolled back")
                raise ZeroDivisionError
        notify(observer, 8)
        note = notes.__next__()
        assert isinstance(note, Notify)
        assert (note.channel, note.payload, note.pid) == ("orders", "8", observer.info.backend_pid)
    assert [note for note in notes] == []
    database.close()


def test_all_listeners_share_one_connection(database: Database, config: dict[str, Any], observer: Observer) -> None:
    other = Database(config)
    with database.listen("orders") as one, other.listen("orders", "stock") as two:
        assert len(observer.execute(LISTENERS).fetchall()) == 1
        assert database.stats() == {}  # none of the pool
        waiting = [Beside(lambda: take(one, 2)), Beside(lambda: take(two, 3))]
        with database.listen("more") as three:
            notify(observer, 1, channel="more")
            assert take(three, 1) == ["1"]
            notify(observer, 1)
            notify(observer, 2, channel="stock")
            notify(observer, 3)
            assert [each.end() for each in waiting] == [["1", "3"], ["1", "2", "3"]]
    notify(observer, 1)
    with database.listen("orders") as again:
        notify(observer, 2)
        assert take(again, 1) == ["2"]
        assert len(observer.execute(LISTENERS).fetchall()) == 1
    database.close()
    other.close()


def test_a_gap_tells_of_each_interruption(
    database: Database, observer: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    with database.listen("orders") as one, database.listen("orders") as two:
        for interruption in range(3):
            notify(observer, f"before {interruption}")
            assert take(one, 1) == take(two, 1) == [f"before {interruption}"]
            assert end_listeners(observer) == 1
            gap = one.__next__()
            assert isinstance(gap, Gap)
            assert "terminating connection due to administrator command" in gap.reason
            assert 0 < gap.seconds < 60
            notify(observer, f"after {interruption}")
            assert take(one, 1) == [f"after {interruption}"]
            assert take(two, 2) == ["gap", f"after {interruption}"]
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(messages) == 6
    assert "lost the connection that listens, reconnecting: terminating connection" in messages[0]
    database.close()


def test_what_came_before_the_end_of_a_connection_is_not_lost(database: Database, observer: Observer) -> None:
    with database.listen("orders") as notes:
        # More than libpq reads at a time, so that the end comes with the last of them.
        payloads = [str(number).ljust(1000) for number in range(100)]
        notify(observer, *payloads)
        end_listeners(observer)
        assert take(notes, 101) == [*payloads, "gap"]
    database.close()


def test_closing_ends_the_listening(database: Database, observer: Observer) -> None:
    begun: list[Listening] = []

    def listen() -> list[str]:
        with database.listen("orders") as mine:
            begun.append(mine)
            return [str(note) for note in mine]

    with database.listen("orders") as notes:
        waiting = [Beside(listen), Beside(listen)]
        while len(begun) < 2:  # what begins after the close listens anew
            sleep(0.01)
        notify(observer, 1)
        assert take(notes, 1) == ["1"]
        database.close()
        for each in waiting:
            assert isinstance(each.end(), list)
        assert take(notes, 1) == []
    assert none_listen(observer)
    # As after a close of the pool, a later use begins anew.
    with database.listen("orders") as notes:
        notify(observer, 2)
        assert take(notes, 1) == ["2"]
    assert none_listen(observer)
    database.close()


def test_one_that_is_closed_by_another_ends(database: Database, observer: Observer) -> None:
    with database.listen("orders") as one, database.listen("orders") as two:
        ending = Beside(lambda: take(one, 9))
        notify(observer, 1)
        assert take(two, 1) == ["1"]
        one.close()
        assert ending.end() in (["1"], [])
        notify(observer, 2)
        assert take(two, 1) == ["2"]
    database.close()


def test_what_is_not_taken_is_bounded(database: Database, observer: Observer) -> None:
    with database.listen("orders") as slow, database.listen("orders") as quick:
        observer.execute("SELECT pg_notify('orders', i::text) FROM generate_series(1, 10001) AS i")
        assert len(take(quick, 10001)) == 10001
        notify(observer, "last")
        assert take(quick, 1) == ["last"]
        gap = slow.__next__()
        assert isinstance(gap, Gap)
        assert gap.reason == "more than 10000 notifications were not taken in time"
        assert take(slow, 1) == ["last"]
    database.close()


def test_a_first_connection_that_fails_is_the_listeners_error(config: dict[str, Any]) -> None:
    config["connection_settings"]["password"] = "wrong"
    database = Database(config)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        take(database.listen("orders"), 1)
    database.close()


def test_behind_pgbouncer_it_is_refused(config: dict[str, Any]) -> None:
    config["connection_settings"]["pgbouncer"] = True
    database = Database(config)
    with pytest.raises(psycopg.NotSupportedError, match="LISTEN needs a session of its own, and 'pgbouncer: true'"):
        take(database.listen("orders"), 1)
    database.close()


def test_names_of_channels(database: Database) -> None:
    listen: Callable[..., object] = database.listen
    for names in ((), ("",), ("é" * 32,), ("orders", "")):
        with pytest.raises(ValueError, match="channel"):
            listen(*names)
    assert isinstance(database.listen("x" * 63), Iterator) or hasattr(database.listen("x" * 63), "__iter__")
