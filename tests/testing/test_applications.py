"""Applications promise the same in a sandbox as outside: the same requests, answered and stored alike."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from fastapi.testclient import TestClient

from pgmonkey.testing import sandbox, statements

from ..contract.conftest import APPS, POOL

if TYPE_CHECKING:
    from pgmonkey.testing import Sandbox, TestDatabase

Request = Callable[[str, str, Any, dict[str, Any]], tuple[int, Any]]


@pytest.fixture(params=["flask", "fastapi"])
def application(
    request: pytest.FixtureRequest, pgmonkey_database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, ModuleType]:
    """The contract's application of each framework, over a database of the test's own."""
    pool = {**POOL, "max_size": 4}
    config = {**pgmonkey_database.config, "pool_settings": pool, "async_pool_settings": pool}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("CONTRACT_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.syspath_prepend(APPS)
    spec = importlib.util.spec_from_file_location(f"{request.param}_app", APPS / f"{request.param}_app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return request.param, module


@pytest.fixture
def ask(application: tuple[str, ModuleType]) -> Iterator[Request]:
    name, module = application
    if name == "flask":

        def ask(method: str, path: str, body: Any, params: dict[str, Any]) -> tuple[int, Any]:
            answer = module.app.test_client().open(path, method=method, json=body, query_string=params)
            return answer.status_code, answer.get_json(silent=True)

        yield ask
        return
    # One event loop for all requests, which is a pool, and the same one in a sandbox and outside.
    with TestClient(module.app, raise_server_exceptions=False, follow_redirects=False) as client:

        def ask(method: str, path: str, body: Any, params: dict[str, Any]) -> tuple[int, Any]:
            answer = client.request(method, path, json=body, params=params)
            json = answer.headers.get("content-type") == "application/json"
            return answer.status_code, answer.json() if json else None

        yield ask


def program(seed: int) -> list[tuple[str, str, Any, dict[str, Any]]]:
    """Requests of all kinds of outcomes."""
    rng = random.Random(seed)
    requests: list[tuple[str, str, Any, dict[str, Any]]] = []
    for a in range(25):
        path = rng.choice(
            ["write", "redirect", "refuse", "crash", "deferred", "late", "block", "ignored", "dirty", "own"]
        )
        status = rng.choice([200, 201, 400, 404, 409, 500, 503])
        others: dict[str, tuple[str, str, Any, dict[str, Any]]] = {
            "refuse": ("POST", "/refuse", None, {"a": a, "status": max(status, 400)}),
            "dirty": ("POST", "/dirty", ["SET LOCAL work_mem = '5MB'", f"INSERT INTO t VALUES ({a})"], {}),
            "own": ("GET", "/own", None, {"who": f"w{a}", "sleep": 0}),
        }
        requests.append(others.get(path, ("POST", f"/{path}", None, {"a": a, "status": status})))
        requests.append(("POST", "/value", "SELECT json_agg(a ORDER BY a) FROM t", {}))
        requests.append(("POST", "/value", "SELECT current_setting('work_mem')", {}))
    return requests


def without_process(answer: tuple[int, Any]) -> tuple[int, Any]:
    status, body = answer
    return status, {key: value for key, value in body.items() if key != "pids"} if isinstance(body, dict) else body


def test_p1_p2_the_same_answers_and_the_same_rows(ask: Request, pgmonkey_database: TestDatabase) -> None:
    requests = program(seed=2)
    with sandbox(pgmonkey_database.dsn, patience=60):
        inside = [without_process(ask(*each)) for each in requests]
    with pgmonkey_database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,), "nothing is left"
    outside = [without_process(ask(*each)) for each in requests]
    assert inside == outside
    assert {status for status, _ in inside} >= {200, 302, 409, 500}


def test_p1_p2_side_by_side(ask: Request, pgmonkey_database: TestDatabase) -> None:
    rng = random.Random(1)

    def write(a: int) -> int | None:
        path, status = rng.choice([("write", 201), ("write", 409), ("deferred", 201), ("crash", 500), ("block", 200)])
        answered, _ = ask("POST", f"/{path}", None, {"a": a, "status": status})
        return a if answered < 400 else None

    with sandbox(pgmonkey_database.dsn, patience=60), ThreadPoolExecutor(6) as executor:
        acknowledged = sorted(a for a in executor.map(write, range(40)) if a is not None)
        _, found = ask("POST", "/value", "SELECT coalesce(json_agg(a ORDER BY a), '[]') FROM t", {})
        assert found == {"value": acknowledged}
        assert 0 < len(acknowledged) < 40
    with pgmonkey_database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_a_test_of_ones_own_error_handling(ask: Request, box: Sandbox) -> None:
    with statements() as counted:
        assert ask("POST", "/write", None, {"a": 1, "status": 201})[0] == 201
    assert counted.texts == ["INSERT INTO t VALUES ($1)"]
    box.fail_next_commit()
    assert ask("POST", "/write", None, {"a": 2, "status": 201})[0] == 500
    box.fail_next_commit("23505", "there is one already")
    assert ask("POST", "/write", None, {"a": 3, "status": 201}) == (409, {"handled": True})
    with box.server_away():
        assert ask("POST", "/write", None, {"a": 4, "status": 201})[0] == 503
    assert ask("POST", "/value", "SELECT json_agg(a) FROM t", {}) == (200, {"value": [1]})
