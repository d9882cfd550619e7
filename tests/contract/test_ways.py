"""Batches, locks, COPY and the like in requests: the promises hold for them as for plain statements."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import App

WAYS = ("batch", "execute_many", "copy_rows", "files", "stream", "lock", "notify")


def paths(app: App, path: str) -> list[str]:
    return [path, f"{path}-sync"] if app.framework == "fastapi" else [path]


@contextmanager
def heard(app: App) -> Iterator[list[str]]:
    """What is sent on the channel of the application, complete after the block."""
    found: list[str] = []

    def note(notification: psycopg.Notify) -> None:
        found.append(notification.payload)

    app.observer.add_notify_handler(note)
    app.observer.execute("LISTEN contract")
    try:
        yield found
        # Notifications come in the order of their commits, and one's own before the end of the statement.
        app.observer.execute("SELECT pg_notify('contract', 'last')")
        assert found.pop() == "last"
    finally:
        app.observer.execute("UNLISTEN contract")
        app.observer.remove_notify_handler(note)


def assert_nothing_is_left(app: App) -> None:
    app.release_frame()
    look = (
        "SELECT current_setting('lock_timeout') || (SELECT count(*) FROM pg_listening_channels())"
        " || (SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'pgmonkey%')"
    )
    assert {app.post("/value", json=look).json()["value"] for _ in range(5)} == {"000"}
    locks = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    assert app.observer.execute(locks).fetchone() == (0,)


def test_p1_p2_p6_the_status_decides_about_each_way_of_writing(app: App) -> None:
    stored: list[int] = []
    sent: list[str] = []
    a = 0
    with heard(app) as found:
        for path in paths(app, "/way"):
            for name in WAYS:
                for status in (200, 409, 201, 500):
                    a += 1
                    assert app.post(path, name=name, a=a, sleep=0, status=status).status_code == status
                    if status < 400:
                        stored.append(a)
                        sent += [str(a)] * (name == "notify")
                assert app.rows() == stored, "visible to everybody once the client has its answer"
    assert found == sent
    assert_nothing_is_left(app)


def test_p1_p2_what_fails_in_it_is_no_success(app: App) -> None:
    # What is refused has undone itself, as a savepoint; a batch is part of the transaction, as a statement is.
    goes_on = {"refused_batch": False, "refused_execute_many": True, "refused_copy_rows": True, "refused_lock": True}
    app.observer.execute("SELECT pg_advisory_lock(hashtextextended('busy', 0))")
    try:
        stored, a = [], 0
        for path in paths(app, "/refused"):
            for name, survives in goes_on.items():
                for caught in ("no", "yes"):
                    a += 1
                    kept = survives and caught == "yes"
                    assert app.post(path, name=name, a=a, caught=caught).status_code == (201 if kept else 500)
                    stored += [a] * kept
                assert app.rows() == stored
    finally:
        app.observer.execute("SELECT pg_advisory_unlock_all()")
    assert_nothing_is_left(app)
