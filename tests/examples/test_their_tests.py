"""The tests of the shops, run as their authors run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_the_tests_of_the_shops_pass_and_leave_nothing(examples: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pgmonkey.testing.plugin", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, "example_apps/orders_test.py"],
        cwd=examples,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "14 passed" in run.stdout
