"""Run the command ``pgmonkey``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .. import programs

SECRET = "hunter2-very-secret"


def pgmonkey(
    *arguments: object, env: dict[str, str] | None = None, folder: Path = Path("/")
) -> subprocess.CompletedProcess[str]:
    """Run ``python -W error -m pgmonkey`` in *folder*, with *env* added to the environment."""
    return programs.run(module="pgmonkey", arguments=arguments, folder=folder, environ={**os.environ, **(env or {})})


def failed(finished: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Assert that it failed with one line on stderr that holds *parts*, names a page, and holds no secret."""
    assert finished.returncode == 1, finished
    assert finished.stdout == ""
    assert finished.stderr.startswith("pgmonkey: ")
    assert "; see docs/" in finished.stderr or "; see https://" in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert SECRET not in finished.stderr
    for part in parts:
        assert part in finished.stderr
