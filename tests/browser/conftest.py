"""The demo of tests/examples, in a browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from ..examples.conftest import Demo, demo
from ..examples.test_shops import CHROMIUM, FLAGS

__all__ = ["Demo", "demo"]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    assert CHROMIUM is not None, "no Chromium here; Debian: apt install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The folder with axe-core and Lighthouse, which ``nox -s browser`` installs."""
    folder = os.environ.get("PGMONKEY_NODE_MODULES")
    assert folder, "PGMONKEY_NODE_MODULES names no folder with axe-core and lighthouse in it"
    return Path(folder)


@pytest.fixture(scope="session")
def screenshots() -> Path | None:
    """Where pictures of the pages go, to be looked at; None where nobody asks for them."""
    folder = os.environ.get("PGMONKEY_SCREENSHOTS")
    return Path(folder) if folder else None
