"""The first error, the secrets in it, and the end of a server at work."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from pgmonkey.embedded import Server

from .conftest import POOL, STARTED, Started, running


@pytest.mark.parametrize("name", STARTED)
def test_p10_p11_a_wrong_password_is_told_in_the_servers_words_and_is_not_shown(
    name: str, server: Server, tmp_path: Path
) -> None:
    config: dict[str, Any] = server.config("postgres")
    config["connection_settings"]["password"] = "hunter2-and-more"
    started = Started(name, tmp_path, config)
    if name.startswith("fastapi"):
        status = started.process.wait(20)
        # hypercorn ends with status 0 whatever the start of an application raises.
        assert (status == 0) == (name == "fastapi-hypercorn"), "its start connects"
    else:
        with started.client() as client:
            answer = client.get("/own", params={"who": "me", "sleep": 0})
            assert answer.status_code == 503
            assert "hunter2" not in answer.text
    log = started.log.read_text()
    assert "password authentication failed for user" in log
    assert "hunter2" not in log


@pytest.mark.parametrize("name", STARTED)
def test_p14_a_server_that_is_told_to_end_finishes_its_work_and_leaves_nothing(
    name: str, server: Server, new_database: Any
) -> None:
    dbname = f"leaving_{name.replace('-', '_')}_{new_database()}"
    with running(name, server, dbname, POOL) as app, ThreadPoolExecutor(1) as executor:
        for a in range(10):
            app.post("/write", a=a, status=201)
        slow = executor.submit(app.get, "/slow", a=10, sleep=1)
        while (
            app.observer.execute(
                "SELECT FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND state = 'active'"
                " AND datname = current_database() AND pid <> pg_backend_pid()"
            ).rowcount
            != 1
        ):
            time.sleep(0.01)
        app.process.terminate()
        assert slow.result().status_code == 200
        assert app.process.wait(20) in (0, -15)
        assert app.rows() == list(range(11))
        left = app.observer.execute(
            "SELECT pid, state, query FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        ).fetchall()
        assert left == []
        log = app.log.read_text()
        for word in ("Traceback", "Warning", "Error"):
            assert word not in log
        with pytest.raises(httpx.TransportError):
            app.get("/nothing")
