"""The promises that a server could break, on further servers: several processes, other workers, other event loops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .test_contract import (
    assert_no_deferred_violation_is_a_success,
    assert_rows_are_the_acknowledged_writes,
    at_once,
)

if TYPE_CHECKING:
    from .conftest import App


def test_p1_no_deferred_violation_is_a_success(app_elsewhere: App) -> None:
    assert_no_deferred_violation_is_a_success(app_elsewhere)


def test_p1_a_server_that_dies_in_commit_is_no_success(app_elsewhere: App) -> None:
    assert {app_elsewhere.post("/doomed", a=a).status_code for a in range(5)} == {500}


def test_p1_p2_rows_are_the_acknowledged_writes_exactly(app_elsewhere: App) -> None:
    assert_rows_are_the_acknowledged_writes(app_elsewhere)


def test_p4_every_request_has_a_connection_of_its_own(app_elsewhere: App) -> None:
    def call(i: int) -> str:
        who: str = app_elsewhere.get("/own", who=f"request {i}", sleep=0.01).json()["who"]
        return who

    assert at_once(20, call, list(range(60))) == [f"request {i}" for i in range(60)]


def test_p13_a_stream_is_whole(app_elsewhere: App) -> None:
    text = app_elsewhere.get("/stream", rows=5000).text
    assert text == ("x" * 1023 + "\n") * 5000
    app_elsewhere.release_frame()
