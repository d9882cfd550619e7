"""The three shops and their panel, as somebody uses them: each button, each page, on a phone and in the dark."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from ..examples.conftest import SHOPS, Demo
from ..examples.test_shops import CHROMIUM, FLAGS

BUTTONS = {
    "kill": "Kill my connection",
    "restart": "Restart the server",
    "commit": "Fail the COMMIT",
    "exhaust": "Exhaust the pool",
    "leave": "Slow query, then leave",
}
PAGES = ("desk", "order", "missing", "refused", "kill")
SLOW = 60_000  # milliseconds


@pytest.fixture(params=SHOPS)
def shop(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    page = chromium.new_page()
    page.set_default_timeout(SLOW)
    errors: list[Any] = []
    page.on("pageerror", lambda error: errors.append(error))
    yield page
    page.close()
    assert errors == []


@pytest.mark.parametrize("button", BUTTONS)
def test_each_button_shows_what_is_promised_and_what_was_seen(button: str, shop: str, page: Page, demo: Demo) -> None:
    page.goto(demo.urls[shop])
    page.get_by_role("button", name=BUTTONS[button]).click()
    expect(page.get_by_text("The promise was kept.")).to_be_visible(timeout=SLOW)
    expect(page.get_by_role("heading", name="What is promised")).to_be_visible()
    expect(page.get_by_role("heading", level=1, name=BUTTONS[button])).to_be_visible()
    expect(page.get_by_text(f"served by {shop}")).to_be_visible()
    # It is the answer to a GET: loading it again breaks nothing again.
    seen = page.get_by_role("main").inner_text()
    page.reload()
    assert page.get_by_role("main").inner_text() == seen


def test_the_panel_is_live(shop: str, page: Page, demo: Demo) -> None:
    page.goto(demo.urls[shop])
    live = page.locator("#panel-live")
    expect(live).to_contain_text("at most")
    page.evaluate("fetch('/nowhere-at-all')")
    expect(live).to_contain_text("/nowhere-at-all", timeout=SLOW)


def test_the_shops_lead_to_each_other(page: Page, demo: Demo) -> None:
    page.goto(demo.urls["Flask"])
    for name in ("FastAPI", "Django", "Flask"):
        page.get_by_role("link", name=name, exact=True).click()
        expect(page.get_by_text(f"served by {name}")).to_be_visible(timeout=SLOW)
        assert page.url == demo.urls[name]


def show(kind: str, page: Page, url: str) -> None:
    """Open a page of that kind."""
    page.goto(url)
    if kind == "order":
        page.get_by_label("Mug").fill("1")
        page.get_by_label("Your name").fill("Ann")
        page.get_by_role("button", name="Place the order").click()
        expect(page.get_by_role("heading", level=1, name="Order ")).to_be_visible(timeout=SLOW)
    elif kind == "missing":
        page.goto(f"{url}nowhere")
    elif kind == "refused":
        page.get_by_label("Last umbrella").fill("7")
        page.get_by_label("Your name").fill("A" * 100)
        page.get_by_role("button", name="Place the order").click()
        expect(page.get_by_role("alert")).to_be_visible(timeout=SLOW)
    elif kind in BUTTONS:
        page.goto(f"{url}promises/{kind}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("kind", PAGES)
def test_a_page_fits_and_everybody_can_read_it(
    kind: str,
    width: int,
    scheme: Literal["light", "dark"],
    shop: str,
    chromium: Browser,
    demo: Demo,
    node_modules: Path,
    screenshots: Path | None,
) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(SLOW)
    show(kind, page, demo.urls[shop])
    if screenshots is not None:
        page.screenshot(path=screenshots / f"{shop}-{kind}-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    page.add_script_tag(path=node_modules / "axe-core" / "axe.min.js")
    found = page.evaluate("axe.run()")["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []
    context.close()


@pytest.mark.parametrize("path", ["", "nowhere", "promises/commit"])
def test_lighthouse(path: str, shop: str, demo: Demo, node_modules: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [
        *("node", str(node_modules / "lighthouse" / "cli" / "index.js"), f"{demo.urls[shop]}{path}", "--quiet"),
        *("--only-categories=accessibility,best-practices", "--output=json", f"--output-path={report}"),
        *("--ignore-status-code", f"--chrome-flags=--headless=new {' '.join(FLAGS)}"),
    ]
    environ = {**os.environ, "CHROME_PATH": str(CHROMIUM)}
    run = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    found = json.loads(report.read_text())
    scores = {name: round(each["score"] * 100) for name, each in found["categories"].items()}
    failed = [name for name, audit in found["audits"].items() if audit["score"] == 0]
    print(shop, path or "/", scores)
    assert min(scores.values()) >= 95, failed
