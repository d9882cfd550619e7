"""Run programs on copies of installed packages in which something is named, or done, otherwise."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path


def run_altered(
    folder: Path, packages: Iterable[str], changes: Mapping[str, str], program: str, *, only: str = "*.py"
) -> str:
    """Change texts in the files of *packages* that are named *only*; return the output of *program*, errors too."""
    found = 0
    for package in packages:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        shutil.copytree(Path(spec.origin).parent, folder / package)
        for path in (folder / package).rglob(only):
            before = text = path.read_text(encoding="utf-8")
            for old, new in changes.items():
                found += text.count(old)
                text = text.replace(old, new)
            if text != before:  # the others keep their time, and so their bytecode
                path.write_text(text, encoding="utf-8")
    assert found, f"nothing in {packages} reads {list(changes)}"
    environ = {**os.environ, "PYTHONPATH": str(folder)}
    finished = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    return finished.stdout + finished.stderr
