"""A Django whose private methods changed is refused when the backend is loaded, with one clear error."""

from __future__ import annotations

import runpy
from importlib.util import find_spec

import django
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.base import BaseHandler
from django.db.backends.postgresql.base import DatabaseWrapper

from ..altered import difference


def load() -> None:
    spec = find_spec("django_pgmonkey._compat")
    assert spec is not None
    assert spec.origin is not None
    runpy.run_path(spec.origin)


def refused() -> str:
    with pytest.raises(ImproperlyConfigured) as error:
        load()
    return difference(error.value, f"Django {django.__version__}", "Django 5.2 to ")


def test_what_is_installed_is_loaded() -> None:
    load()


@pytest.mark.parametrize("name", ["_close", "_configure_connection", "_configure_timezone", "_set_autocommit"])
def test_a_missing_method_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    # Not deleted: a base class may have a method of the name.
    monkeypatch.setattr(DatabaseWrapper, name, None)
    assert refused() == f"its PostgreSQL backend has no method {name}()"


def test_a_handler_that_makes_views_atomic_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BaseHandler, "make_view_atomic", None)
    assert refused() == "its handler of requests has no method make_view_atomic()"


def test_other_arguments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DatabaseWrapper, "_set_autocommit", lambda self, autocommit, begin: None)
    assert (
        refused() == "_set_autocommit(self, autocommit, begin) of its PostgreSQL backend is not called with 2 arguments"
    )
