"""The how-to pages, followed as a reader follows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import ROOT
from .typist import Typist

PAGES = sorted(ROOT.glob("docs/how-to/*.md"))
# Machines may be busy.
pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_how_to(page: Path, folder: Path, environ: dict[str, str]) -> None:
    Typist(folder, environ).follow(page.read_text(encoding="utf-8"))
