"""The tutorials and how-to pages, followed as a reader follows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import ROOT
from .typist import Typist

DOCS = ROOT / "docs"
TUTORIALS = sorted(path.name for path in DOCS.glob("tutorial/*.md"))
HOW_TO = sorted(path.name for path in DOCS.glob("how-to/*.md"))
# Many programs, one after the other, on machines that may be busy.
pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorial(name: str, environ: dict[str, str], tmp_path: Path) -> None:
    Typist(tmp_path, environ).follow((DOCS / "tutorial" / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", HOW_TO)
def test_how_to(name: str, folder: Path, environ: dict[str, str]) -> None:
    Typist(folder, environ).follow((DOCS / "how-to" / name).read_text(encoding="utf-8"))
