"""Celery's workers, as processes and as threads, and its periodic tasks of django-celery-beat."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from .conftest import GUNICORN, Programs

NAMES = "SELECT name FROM shop_thing ORDER BY name"
WORKER = ("-m", "celery", "-A", "celery_app", "worker", "--without-gossip", "--without-mingle", "--concurrency=3")


@pytest.fixture(autouse=True)
def _tables(programs: Programs) -> None:
    programs.manage("celery_app", "migrate")


def send(programs: Programs, *calls: tuple[Any, ...]) -> None:
    """Send tasks, each a name and its arguments."""
    code = f"import json, celery_app; celery_app.send(*json.loads({json.dumps(calls)!r}))"
    programs.run("-c", code)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_tasks_commit_is_stored_and_all_is_given_back(programs: Programs, pool: str) -> None:
    programs.environ["WARM"] = "1"
    programs.start(*WORKER, f"--pool={pool}")
    send(programs, ("create", "counter"))
    programs.wait_for("SELECT name FROM shop_thing", [("counter",)], seconds=90)
    send(
        programs,
        *[("create", f"made {number}") for number in range(10)],
        *[("fail", f"failed {number}") for number in range(10)],
        *[("leave_open", f"left {number}") for number in range(4)],
        *[("create", "made 0") for _ in range(4)],  # is there already
        *[("count_up", "counter") for _ in range(30)],
        ("third_time", "third time"),
    )
    names = sorted(["counter", "third time", *(f"made {number}" for number in range(10))])
    programs.wait_for(NAMES, [(name,) for name in names], seconds=90)
    programs.wait_for("SELECT price FROM shop_thing WHERE name = 'counter'", [(31,)], seconds=90)
    programs.wait_until_idle()
    send(programs, *[("report", f"report {number}") for number in range(9)])
    programs.wait_for("SELECT count(*) FROM shop_thing WHERE name LIKE 'report%'", [(9,)], seconds=90)
    if pool == "prefork":
        assert programs.rows("SELECT max(price) FROM shop_thing WHERE name LIKE 'report%'") == [(0,)]
    programs.wait_until_idle()
    # One of each child and of the parent, or one pool of at most 4; and the observer.
    assert programs.rows("SELECT count(*) <= 5 FROM pg_stat_activity WHERE datname = current_database()") == [(True,)]


def test_a_child_that_is_killed_stores_nothing_and_harms_no_other(programs: Programs) -> None:
    programs.environ["WARM"] = "1"
    programs.start(*WORKER, "--pool=prefork")
    send(programs, ("create", "first"), ("kill", "killed"), *[("create", f"made {number}") for number in range(6)])
    names = sorted(["first", *(f"made {number}" for number in range(6))])
    programs.wait_for(NAMES, [(name,) for name in names], seconds=90)
    send(programs, *[("create", f"made {number}") for number in range(6, 12)])
    names = sorted(["first", *(f"made {number}" for number in range(12))])
    programs.wait_for(NAMES, [(name,) for name in names], seconds=90)
    programs.wait_until_idle()


def test_a_request_sends_its_task_once_it_is_committed(programs: Programs) -> None:
    client = programs.serve(*GUNICORN, "celery_web:application")
    assert client.get("/order/refused?status=409").status_code == 409
    assert client.get("/order/apple?status=201").status_code == 201
    programs.start(*WORKER, "--pool=threads")
    programs.wait_for(NAMES, [("apple",), ("task of apple 2",)], seconds=90)
    programs.wait_until_server_is_whole(client)


def test_periodic_tasks_run_while_their_row_says_so(programs: Programs) -> None:
    make = """
import celery_app
from django_celery_beat.models import IntervalSchedule, PeriodicTask
celery_app.create("ticks")
every, _ = IntervalSchedule.objects.get_or_create(every=1, period=IntervalSchedule.SECONDS)
PeriodicTask.objects.create(name="tick", task="celery_app.tick", interval=every)
"""
    programs.run("-c", make)
    programs.start(*WORKER, "--pool=threads")
    programs.start("-m", "celery", "-A", "celery_app", "beat", "--max-interval=1", "--loglevel=info")
    programs.wait_for("SELECT price > 3 FROM shop_thing", [(True,)], seconds=90)
    programs.wait_until_idle()
    stop = "import celery_app; from django_celery_beat.models import PeriodicTask as P; t = P.objects.get(name='tick')"
    programs.run("-c", f"{stop}; t.enabled = False; t.save()")
    time.sleep(4)
    before = programs.rows("SELECT price FROM shop_thing")
    time.sleep(3)
    assert programs.rows("SELECT price FROM shop_thing") == before
    assert programs.rows("SELECT total_run_count > 2 FROM django_celery_beat_periodictask WHERE name = 'tick'") == [
        (True,)
    ]
    programs.wait_until_idle()
