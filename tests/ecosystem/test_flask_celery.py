"""Celery's workers with Flask's application context: a pool in each process, each statement its own transaction."""

from __future__ import annotations

import httpx
import pytest

from .browsers import at_once
from .conftest import GUNICORN, Programs

JOBS = "SELECT name FROM jobs ORDER BY name"
WORKER = ("-m", "celery", "-A", "flask_celery_app:celery", "worker", "--without-gossip", "--without-mingle")


@pytest.fixture(params=["threads", "prefork"])
def client(request: pytest.FixtureRequest, programs: Programs) -> httpx.Client:
    programs.observer.execute("CREATE TABLE jobs (name text UNIQUE); CREATE TABLE stats (available int, size int)")
    queue = programs.folder / "queue"
    queue.mkdir()
    programs.environ["QUEUE"] = str(queue)
    programs.start(*WORKER, f"--pool={request.param}", "--concurrency=2")
    return programs.serve(*GUNICORN, "flask_celery_app:app")


def whole(programs: Programs, client: httpx.Client) -> None:
    programs.wait_until_whole(lambda: client.get("/stats").json())
    client.post("/tasks/note_stats", json=[])  # of the worker that takes it
    programs.wait_for("SELECT available = size FROM stats", [(True,)])
    programs.wait_until_idle()


def test_tasks_see_what_was_committed_before_they_were_sent(programs: Programs, client: httpx.Client) -> None:
    names = [f"order {n}" for n in range(12)]
    assert at_once(12, lambda n: client.post(f"/orders/{names[n]}").status_code) == [201] * 12
    assert client.post(f"/orders/{names[0]}").status_code == 500
    programs.wait_for(JOBS, sorted((name + end,) for name in names for end in ("", " filed")))
    whole(programs, client)


def test_a_task_that_fails_leaves_nothing_of_its_block_and_may_be_tried_again(
    programs: Programs, client: httpx.Client
) -> None:
    for name, arguments in (("two", ["a", "b"]), ("two", ["c", "a"]), ("again", ["d"])):
        client.post(f"/tasks/{name}", json=arguments)
        if name == "two" and arguments[0] == "a":
            programs.wait_for(JOBS, [("a",), ("b",)])
    programs.wait_for(JOBS, [("a",), ("b",), ("d 2",)])
    whole(programs, client)
