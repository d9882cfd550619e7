"""A Django whose private methods changed is refused when the backend is loaded, with one clear error."""

from __future__ import annotations

import subprocess
import sys

import django
import pytest

PROGRAM = """
from django.db.backends.postgresql import base
{change}
import django_pgmonkey.base
print("loaded")
"""
RENAMED = "base.DatabaseWrapper._end = base.DatabaseWrapper.{0}; del base.DatabaseWrapper.{0}"


def load(change: str) -> str:
    program = PROGRAM.format(change=change)
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    return (finished.stdout + finished.stderr).splitlines()[-1]


def test_what_is_installed_is_loaded() -> None:
    assert load("") == "loaded"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (RENAMED.format("_configure_connection"), "has no method _configure_connection()"),
        (RENAMED.format("_configure_timezone"), "has no method _configure_timezone()"),
        (
            "base.DatabaseWrapper._set_autocommit = lambda self, autocommit, begin: None",
            "_set_autocommit(self, autocommit, begin) of its PostgreSQL backend is not called with 2 arguments",
        ),
    ],
)
def test_a_change_is_refused(change: str, message: str) -> None:
    last = load(change)
    assert last.startswith("django.core.exceptions.ImproperlyConfigured: ")
    assert f"Django {django.__version__}: " in last
    assert message in last
    assert "this release of pgmonkey works with Django 5.2 to" in last
