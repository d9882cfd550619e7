"""Applications in processes of their own: each request finds its sandbox by a header."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from pgmonkey.testing import HEADER, environ, sandbox

from ..contract.conftest import POOL, Started

if TYPE_CHECKING:
    from pgmonkey.testing import TestDatabase

JSON = "SELECT coalesce(json_agg(a ORDER BY a), '[]') FROM t"


@pytest.fixture(params=["flask", "fastapi"])
def client(
    request: pytest.FixtureRequest, pgmonkey_database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[httpx.Client]:
    """A client of the contract's application, which was started for tests, on a database of the test's own."""
    pool = {**POOL, "min_size": 1}
    config = {**pgmonkey_database.config, "pool_settings": pool, "async_pool_settings": pool}
    with monkeypatch.context() as patch:
        for name, value in environ().items():
            patch.setenv(name, value)
        started = Started(request.param, tmp_path, config)
    with started.client() as client:
        yield client


def rows(client: httpx.Client, headers: dict[str, str]) -> list[int]:
    found: list[int] = client.post("/value", json=JSON, headers=headers).json()["value"]
    return found


def test_each_request_finds_its_sandbox(client: httpx.Client, pgmonkey_database: TestDatabase) -> None:
    with sandbox(pgmonkey_database.dsn, patience=60) as one, sandbox(pgmonkey_database.dsn, patience=60) as other:

        def write(a: int) -> None:
            headers = (one if a % 2 else other).headers
            kept = client.post("/write", params={"a": a, "status": 201}, headers=headers)
            refused = client.post("/write", params={"a": a + 100, "status": 409}, headers=headers)
            deferred = client.post("/deferred", params={"a": a + 200}, headers=headers)
            assert (kept.status_code, refused.status_code, deferred.status_code) == (201, 409, 409)

        with ThreadPoolExecutor(6) as executor:
            list(executor.map(write, range(20)))
        assert rows(client, one.headers) == list(range(1, 20, 2))
        assert rows(client, other.headers) == list(range(0, 20, 2))
        assert rows(client, {}) == []
        with one.statements() as counted:
            rows(client, one.headers)
            rows(client, other.headers)
        assert counted.texts == [JSON]
        headers = one.headers
    for wrong in (headers[HEADER].rpartition(".")[0] + ".guessed", "5432.secret", ""):
        assert client.get("/nothing", headers={HEADER: wrong}).status_code == 403
    with pgmonkey_database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
    # The server that the header names is gone, and its database is not used in its place.
    assert client.post("/write", params={"a": 1, "status": 201}, headers=headers).status_code >= 500
    assert rows(client, {}) == []
