"""The promises that a server could break, on further servers: several processes, other workers, other event loops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .test_contract import (
    assert_no_deferred_violation_is_a_success,
    assert_rows_are_the_acknowledged_writes,
    assert_sessions_are_clean,
    assert_the_dead_are_replaced,
    at_once,
)

if TYPE_CHECKING:
    from typing_extensions import LiteralString

    from .conftest import App


def test_p1_no_deferred_violation_is_a_success(app_elsewhere: App) -> None:
    assert_no_deferred_violation_is_a_success(app_elsewhere)


def test_p1_a_server_that_dies_in_commit_is_no_success(app_elsewhere: App) -> None:
    assert {app_elsewhere.post("/doomed", a=a).status_code for a in range(5)} == {500}


def test_p1_p2_rows_are_the_acknowledged_writes_exactly(app_elsewhere: App) -> None:
    assert_rows_are_the_acknowledged_writes(app_elsewhere)


def test_p3_a_request_that_does_not_need_the_database_does_not_use_it(app_elsewhere: App) -> None:
    sessions: LiteralString = (
        "SELECT pid, state_change FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY pid"
    )
    assert app_elsewhere.get("/own", who="first", sleep=0).status_code == 200
    app_elsewhere.release_frame()

    def sessions_change() -> bool:
        before = app_elsewhere.observer.execute(sessions).fetchall()
        answers = at_once(8, lambda i: app_elsewhere.get("/nothing"), list(range(24)))
        assert {answer.status_code for answer in answers} == {200}
        return app_elsewhere.observer.execute(sessions).fetchall() != before

    # More than once, as a pool may be replacing what an earlier test has ended.
    assert not all(sessions_change() for _ in range(50))


def test_p4_every_request_has_a_connection_of_its_own(app_elsewhere: App) -> None:
    def call(i: int) -> str:
        who: str = app_elsewhere.get("/own", who=f"request {i}", sleep=0.01).json()["who"]
        return who

    assert at_once(20, call, list(range(60))) == [f"request {i}" for i in range(60)]


def test_p5_connections_come_back_after_exceptions(app_elsewhere: App) -> None:
    # The pool is waited for 10 s where any is lost of its 24, in each of at most 4 processes.
    calls = [["/crash", "/late", "/ignored"][a % 3] for a in range(120)]
    assert set(at_once(20, lambda a: app_elsewhere.post(calls[a], a=a).status_code, list(range(120)))) == {500}
    app_elsewhere.release_frame()
    assert app_elsewhere.post("/write", a=1, status=201).status_code == 201


def test_p6_what_a_request_leaves_in_its_session_is_gone(app_elsewhere: App) -> None:
    assert_sessions_are_clean(app_elsewhere)


def test_p7_connections_that_died_while_idle_are_replaced_unnoticed(app_elsewhere: App) -> None:
    assert_the_dead_are_replaced(app_elsewhere)


def test_p13_a_stream_is_whole(app_elsewhere: App) -> None:
    text = app_elsewhere.get("/stream", rows=5000).text
    assert text == ("x" * 1023 + "\n") * 5000
    app_elsewhere.release_frame()
