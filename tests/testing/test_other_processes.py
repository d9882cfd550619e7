"""Applications in processes of their own: each request finds its sandbox by a header, also those of a browser."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from pgmonkey.embedded import die_with_parent
from pgmonkey.testing import HEADER, environ, function, sandbox, template

from ..contract.conftest import POOL, Started, free_port
from ..examples.test_shops import CHROMIUM, FLAGS

if TYPE_CHECKING:
    from pgmonkey.testing import TestDatabase, TestServer

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


def test_the_header_means_nothing_elsewhere(
    pgmonkey_database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Started("fastapi", tmp_path, pgmonkey_database.config)
    with started.client() as client, sandbox(pgmonkey_database.dsn) as opened:
        assert client.post("/write", params={"a": 1, "status": 201}, headers=opened.headers).status_code == 201
        assert rows(client, {}) == [1]


# -- a browser --------------------------------------------------------------------------------------------------------


def load_shop(dsn: str) -> None:
    import psycopg

    from example_apps import shop

    with psycopg.connect(dsn, autocommit=True) as connection:
        for text in (shop.SCHEMA, shop.SEED):
            connection.execute(text.encode())


@contextmanager
def shop_server(database: TestDatabase, folder: Path) -> Iterator[str]:
    """Serve FastAPI's shop for tests; yield its address."""
    port = free_port()
    settings = database.config["connection_settings"]
    names = {"SHOP_HOST": "host", "SHOP_PORT": "port", "SHOP_USER": "user", "SHOP_PASSWORD": "password"}
    told = {**{name: str(settings[key]) for name, key in names.items()}, "SHOP_DATABASE": database.name, **environ()}
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), "example_apps.fastapi_orders:app"]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **told}, cwd=folder, stdout=log, stderr=log, preexec_fn=die_with_parent
        )
    try:
        for _ in range(1200):
            assert server.poll() is None, (folder / "log").read_text()
            try:
                httpx.get(f"http://127.0.0.1:{port}/api/orders")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_drives_a_shop_in_a_sandbox_and_another_test_sees_none_of_it(
    pgmonkey_server: TestServer, examples: Path
) -> None:
    from playwright.sync_api import Page, expect, sync_playwright

    made = template(pgmonkey_server, function(load_shop))
    with made.clone() as database, shop_server(database, examples) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)

        def order(page: Page, customer: str, product: int) -> None:
            page.goto(url)
            page.fill("input[name=customer]", customer)
            page.fill(f"input[name=quantity-{product}]", "1")
            page.click("button")

        try:
            with sandbox(database.dsn, patience=60) as one, sandbox(database.dsn, patience=60) as other:
                pages = [browser.new_context(extra_http_headers=each.headers).new_page() for each in (one, other)]
                # The first takes the last umbrella, and the second sees that there is one.
                for page, customer, product in ((pages[0], "Ann", 4), (pages[1], "Bob", 3)):
                    order(page, customer, product)
                    expect(page.locator("body")).to_contain_text(customer, timeout=60_000)
                order(pages[0], "Eve", 4)
                expect(pages[0].locator("body")).to_contain_text("There are not 1 of product 4 left", timeout=60_000)
                for page, present, absent in ((pages[0], "Ann", "Bob"), (pages[1], "Bob", "Ann")):
                    page.goto(url)
                    expect(page.locator("body")).to_contain_text(present, timeout=60_000)
                    expect(page.locator("body")).not_to_contain_text(absent)
        finally:
            browser.close()
        with database.connect() as connection:
            assert connection.execute("SELECT count(*) FROM purchase").fetchone() == (0,)
