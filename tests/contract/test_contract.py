"""What every adapter promises, asked over HTTP.  P1 to P9 are the promises as docs/promises.md numbers them."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pgmonkey.testing import sandbox

if TYPE_CHECKING:
    from typing_extensions import LiteralString

    from pgmonkey.embedded import Server

    from .conftest import App


def at_once(workers: int, function: Any, arguments: list[Any]) -> list[Any]:
    with ThreadPoolExecutor(workers) as executor:
        return list(executor.map(function, arguments))


@pytest.mark.parametrize("status", [200, 201, 202])
def test_p1_an_acknowledged_write_is_there_when_the_answer_is(app: App, status: int) -> None:
    for a in range(20):
        assert app.post("/write", a=a, status=status).status_code == status
        assert app.rows() == list(range(a + 1)), "visible to everybody once the client has its answer"


def test_p1_a_redirect_commits(app: App) -> None:
    assert app.post("/redirect", a=1).status_code == 302
    assert app.rows() == [1]


def test_p1_a_failing_commit_reaches_the_applications_error_handler(app: App) -> None:
    for a in range(20):
        answer = app.post("/deferred", a=a)
        assert answer.status_code == 409
        assert answer.json() == {"handled": True}
    assert app.rows() == []


def test_p1_a_failing_commit_without_a_handler_is_a_500(app: App) -> None:
    for a in range(20):
        assert app.post("/late", a=a).status_code == 500
    assert app.observer.execute("SELECT count(*) FROM late").fetchone() == (0,)


def test_p1_no_deferred_violation_is_a_success(app: App) -> None:
    assert_no_deferred_violation_is_a_success(app)


def assert_no_deferred_violation_is_a_success(app: App) -> None:
    """200 requests, 20 at a time, whose COMMIT fails, with and without a handler of the application."""
    statuses = at_once(20, lambda a: app.post(["/deferred", "/late"][a % 2], a=a).status_code, list(range(200)))
    assert set(statuses) == {409, 500}
    assert app.rows() == []
    assert app.observer.execute("SELECT count(*) FROM late").fetchone() == (0,)


def test_p1_a_server_that_dies_in_commit_is_no_success(app: App) -> None:
    for a in range(5):
        assert app.post("/doomed", a=a).status_code == 500
    assert app.observer.execute("SELECT count(*) FROM doomed").fetchone() == (0,)
    assert app.post("/write", a=1, status=201).status_code == 201


HELD = """
    CREATE TABLE held (a int);
    CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON held DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION hold();
"""


def test_p1_a_commit_whose_answer_is_lost_is_a_500_and_the_log_says_what_is_not_known(small_app: App) -> None:
    app, observer = small_app, small_app.observer
    observer.execute(HELD)
    observer.execute("SELECT pg_advisory_lock(7)")

    def wait_for(what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not what():
            assert time.monotonic() < deadline, app.log.read_text()
            time.sleep(0.01)

    def there_is_one(query: LiteralString) -> bool:
        return observer.execute(query).fetchone() == (1,)

    with ThreadPoolExecutor(1) as executor:
        try:
            asked = executor.submit(app.post, "/dirty", ["INSERT INTO held VALUES (1)"])
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND query LIKE 'COMMIT%'"
            wait_for(lambda: there_is_one(waiting))
            assert app.proxy is not None
            app.proxy.reset_all()
            answer = asked.result(30)
        finally:
            observer.execute("SELECT pg_advisory_unlock(7)")
    assert answer.status_code == 500
    assert "retry-after" not in answer.headers
    # uvicorn logs when the answer has left.
    words = "CommitUnknownError: the answer to COMMIT was lost, so the transaction may have been committed"
    wait_for(lambda: words in app.log.read_text())
    wait_for(lambda: there_is_one("SELECT count(*) FROM held"))
    assert app.get("/own", who="next", sleep=0).status_code == 200


def test_p1_an_ignored_error_is_no_success(app: App) -> None:
    assert app.post("/ignored", a=1).status_code == 500
    assert app.rows() == []
    # The log names the statement, its place and what the server said of it.
    told = (
        r"nothing was committed: SELECT \* FROM missing at \S*_app\.py:\d+ \(\w+\) failed and its error was ignored:"
        ' relation "missing" does not exist'
    )
    deadline = time.monotonic() + 20  # uvicorn logs when the answer has left
    while not re.search(told, app.log.read_text()):
        assert time.monotonic() < deadline, app.log.read_text()
        time.sleep(0.01)


@pytest.mark.parametrize("status", [400, 404, 409, 422, 500, 503])
def test_p2_a_returned_refusal_rolls_back(app: App, status: int) -> None:
    assert app.post("/write", a=1, status=status).status_code == status
    assert app.rows() == []


@pytest.mark.parametrize("status", [400, 403, 404])
def test_p2_a_raised_refusal_rolls_back(app: App, status: int) -> None:
    assert app.post("/refuse", a=1, status=status).status_code == status
    assert app.rows() == []


def test_p2_an_exception_rolls_back(app: App) -> None:
    assert app.post("/crash", a=1).status_code == 500
    assert app.rows() == []


def test_p1_p2_rows_are_the_acknowledged_writes_exactly(app: App) -> None:
    assert_rows_are_the_acknowledged_writes(app)


def assert_rows_are_the_acknowledged_writes(app: App) -> None:
    """200 requests of random outcome, 20 at a time."""
    rng = random.Random(7)
    choices = [("/write", 201), ("/write", 200), ("/write", 409), ("/crash", 500), ("/deferred", 409), ("/refuse", 404)]
    choices += [("/block", 200), ("/block", 422), ("/redirect", 302)]
    calls = [(a, *rng.choice(choices)) for a in range(200)]

    def call(arguments: tuple[int, str, int]) -> int | None:
        a, path, status = arguments
        answer = app.post(path, a=a, status=status)
        assert answer.status_code == status
        return a if status < 400 else None

    acknowledged = [a for a in at_once(20, call, calls) if a is not None]
    assert app.rows() == sorted(acknowledged)
    assert 20 < len(acknowledged) < 150


def test_p2_a_transaction_block_commits_with_the_request(app: App) -> None:
    assert app.post("/block", a=1, status=422).status_code == 422
    assert app.rows() == []
    assert app.post("/block", a=1, status=200).status_code == 200
    assert app.rows() == [1]


def test_p3_a_request_that_does_not_need_the_database_borrows_nothing(app: App) -> None:
    before = app.stats().get("requests_num", 0)
    for _ in range(5):
        assert app.get("/nothing").status_code == 200
    assert app.stats().get("requests_num", 0) == before


OWN = {"flask": ["/own"], "django": ["/own"], "fastapi": ["/own", "/own-sync", "/bare"]}


def test_p4_every_request_has_a_connection_of_its_own(app: App) -> None:
    for path in OWN[app.framework]:

        def call(i: int, path: str = path) -> Any:
            answer = app.get(path, who=f"request {i}", sleep=0.02)
            assert answer.status_code == 200
            return answer.json()

        answers = at_once(20, call, list(range(120)))
        assert [answer["who"] for answer in answers] == [f"request {i}" for i in range(120)], path
        assert all(len(set(answer["pids"])) == 1 for answer in answers), path
        app.release_frame()
        app.wait_until_all_is_given_back()


@pytest.mark.parametrize("served", ["fastapi"], indirect=True)  # only FastAPI has dependencies
def test_p4_three_nested_blocks_in_a_synchronous_dependency(app: App) -> None:
    def call(i: int) -> Any:
        answer = app.post("/bare-nested", a=3 * i)
        assert answer.status_code == 200
        return answer.json()["pids"]

    assert all(len(set(pids)) == 3 for pids in at_once(7, call, list(range(40))))
    app.release_frame()
    assert app.rows() == list(range(120))


def test_p5_connections_come_back_after_exceptions(app: App) -> None:
    def call(a: int) -> int:
        return app.post(["/crash", "/late", "/ignored"][a % 3], a=a).status_code

    assert set(at_once(20, call, list(range(90)))) == {500}
    app.release_frame()
    app.wait_until_all_is_given_back()


def test_p6_what_a_request_leaves_in_its_session_is_gone(app: App) -> None:
    assert_sessions_are_clean(app)


def assert_sessions_are_clean(app: App) -> None:
    """What a request sets, makes or locks is gone; there may be several pools."""
    statements = [
        "SET search_path TO pg_catalog",
        "SELECT set_config('contract.left', 'behind', false)",
        "CREATE TEMPORARY TABLE left_behind (a int)",
        "SELECT pg_advisory_lock(42)",
        "LISTEN gossip",
    ]
    assert app.post("/dirty", json=statements).status_code == 200
    look = (
        "SELECT current_setting('search_path') || coalesce(current_setting('contract.left', true), '')"
        " || coalesce(to_regclass('pg_temp.left_behind')::text, '')"
        " || (SELECT count(*) FROM pg_listening_channels())"
    )
    values = {app.post("/value", json=look).json()["value"] for _ in range(10)}
    assert values == {'"$user", public0'}
    here = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    locks = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND {here}"
    assert app.observer.execute(locks.encode()).fetchone() == (0,)


def test_p7_connections_that_died_while_idle_are_replaced_unnoticed(app: App) -> None:
    assert_the_dead_are_replaced(app)


def assert_the_dead_are_replaced(app: App) -> None:
    """No request fails after all connections were ended while they were idle."""
    at_once(8, lambda i: app.get("/own", who=str(i), sleep=0.05), list(range(8)))
    app.release_frame()
    app.observer.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    for i in range(20):
        assert app.get("/own", who=str(i), sleep=0).status_code == 200


def test_p3_a_pool_of_two_has_room_for_all_who_do_not_need_it(small_app: App) -> None:
    before = small_app.stats().get("requests_num", 0)
    assert {answer.status_code for answer in at_once(8, lambda i: small_app.get("/nothing"), list(range(24)))} == {200}
    assert small_app.several or small_app.stats().get("requests_num", 0) == before


OVERLOADED = {"flask": ["/own"], "django": ["/own"], "fastapi": ["/own", "/own-sync"]}


def test_p9_an_exhausted_pool_is_a_503_with_retry_after(small_app: App) -> None:
    for path in OVERLOADED[small_app.framework]:

        def call(i: int, path: str = path) -> httpx.Response:
            return small_app.get(path, who=str(i), sleep=0.3)

        answers = at_once(50, call, list(range(50)))
        # A sync worker serves one request at a time, so that none waits for a connection.
        statuses = {200} if small_app.name == "flask-sync" else {200, 503}
        assert {answer.status_code for answer in answers} == statuses
        assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 503)
        small_app.release_frame()
        assert [small_app.get(path, who="after", sleep=0).status_code for _ in range(10)] == [200] * 10


def test_the_header_of_a_sandbox_means_nothing_to_what_was_not_started_for_tests(app: App, server: Server) -> None:
    with sandbox(server.dsn(app.observer.info.dbname)) as opened:
        answer = app.client.post("/write", params={"a": 1, "status": 201}, headers=opened.headers)
        assert (answer.status_code, app.rows()) == (201, [1])
