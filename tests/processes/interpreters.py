"""Fresh interpreters."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def run(code: str, config: dict[str, Any] | None = None, *, flags: tuple[str, ...] = ("-W", "error")) -> str:
    """Run *code* in a fresh interpreter, with *config* as ``CONFIG``; return what it printed."""
    prelude = f"import json\nCONFIG = json.loads({json.dumps(json.dumps(config))})\n"
    finished = subprocess.run(
        [sys.executable, *flags, "-c", prelude + code], capture_output=True, text=True, timeout=60, cwd="/"
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return finished.stdout
