"""The tutorials, followed as a reader follows them; with ``--tutorials``, because they start many programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import ROOT
from .typist import Typist

PAGES = sorted(ROOT.glob("docs/tutorial/*.md"))
# Machines may be busy.
pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tutorial(page: Path, environ: dict[str, str], tmp_path: Path) -> None:
    Typist(tmp_path, environ).follow(page.read_text(encoding="utf-8"))
