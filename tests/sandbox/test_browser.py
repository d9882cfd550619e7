"""A browser drives a shop in a sandbox, and another test at the same time sees none of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psycopg
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from pgmonkey.embedded import die_with_parent
from pgmonkey.testing import environ, function, sandbox, template

from ..contract.conftest import free_port
from ..examples.test_shops import CHROMIUM, FLAGS

if TYPE_CHECKING:
    from pgmonkey.testing import TestDatabase, TestServer


def load_shop(dsn: str) -> None:
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
    pgmonkey_server: TestServer, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(examples)
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
                expect(pages[0].locator("body")).to_contain_text("Last umbrella is sold out", timeout=60_000)
                for page, present, absent in ((pages[0], "Ann", "Bob"), (pages[1], "Bob", "Ann")):
                    page.goto(url)
                    expect(page.locator("body")).to_contain_text(present, timeout=60_000)
                    expect(page.locator("body")).not_to_contain_text(absent)
        finally:
            browser.close()
        with database.connect() as connection:
            assert connection.execute("SELECT count(*) FROM purchase").fetchone() == (0,)
