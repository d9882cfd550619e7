"""The pages, in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from ..conftest import ON_CI
from .conftest import Demo

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None and not ON_CI:
        pytest.skip("no Chromium here; Debian: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def test_an_order_placed_on_each_shop_is_seen_on_the_other_two(browser: Browser, demo: Demo) -> None:
    with psycopg.connect(demo.dsn, autocommit=True) as connection:
        connection.execute("TRUNCATE purchase, line RESTART IDENTITY")
    page = browser.new_page()
    errors: list[Any] = []
    page.on("pageerror", lambda error: errors.append(error))
    for shop, url in demo.urls.items():
        page.goto(url)
        expect(page.get_by_text(f"served by {shop}")).to_be_visible()
        page.get_by_label("Mug").fill("2")
        page.get_by_label("Your name").fill(f"Customer of {shop}")
        page.get_by_role("button", name="Place the order").click()
        expect(page.get_by_role("heading", name="Order ")).to_be_visible()
        expect(page.get_by_role("row", name="Total")).to_contain_text("24.00")
        number = page.url.rpartition("/")[2]
        for other in demo.urls.values():
            page.goto(other)
            expect(page.get_by_role("row", name=f"Customer of {shop}")).to_contain_text("24.00")
            page.get_by_role("link", name=number, exact=True).click()
            expect(page.get_by_text(f"For Customer of {shop}, placed")).to_be_visible()
    page.goto(demo.urls["Flask"])
    page.get_by_label("Last umbrella").fill("9")
    page.get_by_label("Your name").fill("Somebody")
    page.get_by_role("button", name="Place the order").click()
    expect(page.get_by_role("alert")).to_contain_text("There are not 9 of product 4 left.")
    assert errors == []
