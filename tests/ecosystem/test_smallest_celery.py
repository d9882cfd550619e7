"""The smallest application on Celery, as somebody copies it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from .conftest import Programs

WORKER = ("-m", "celery", "-A", "smallest_celery:app", "worker", "--without-gossip", "--without-mingle")
SEND = "from smallest_celery import greet; greet.apply_async([{name!r}], task_id={task!r})"


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_task_that_comes_twice_is_done_once(
    pool: str, programs: Programs, config: dict[str, Any], examples: Path
) -> None:
    folder = examples / "example_apps" / "smallest"
    lines = (folder / "celery_tasks.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 22
    queue = programs.folder / "queue"
    queue.mkdir()
    url = "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**config["connection_settings"])
    path = os.pathsep.join([str(folder), programs.environ["PYTHONPATH"]])
    programs.environ.update(QUEUE=str(queue), DATABASE_URL=url, CELERY_BROKER_URL="filesystem://", PYTHONPATH=path)
    for name, task in (("Ann", "one"), ("Ann", "one"), ("Bob", "two")):
        programs.run("-c", SEND.format(name=name, task=task))
    programs.start(*WORKER, f"--pool={pool}", "--concurrency=2")
    programs.wait_for("SELECT task, name FROM visitor ORDER BY task", [("one", "Ann"), ("two", "Bob")], seconds=90)
    programs.wait_until_idle()
