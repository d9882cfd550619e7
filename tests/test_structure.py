"""The shape of the project: public names, docstrings, sizes, floors."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
from pathlib import Path

import pytest

import pgmonkey

PACKAGES = ("pgmonkey", "flask_pgmonkey", "fastapi_pgmonkey", "django_pgmonkey")


def modules(package: str) -> list[str]:
    found = importlib.import_module(package)
    names = [info.name for info in pkgutil.walk_packages(found.__path__, f"{package}.")]
    return [package, *(name for name in names if not name.endswith("__main__") and "django_pgmonkey." not in name)]


def test_the_public_names_are_exactly_all() -> None:
    public = {
        name
        for name, value in vars(pgmonkey).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(pgmonkey.__all__)
    assert pgmonkey.__all__ == sorted(pgmonkey.__all__)


def test_the_errors_are_all_public_and_have_one_home() -> None:
    from pgmonkey import errors

    assert set(errors.__all__) < set(pgmonkey.__all__)
    for name in errors.__all__:
        assert getattr(pgmonkey, name) is getattr(errors, name)
        assert issubclass(getattr(errors, name), errors.PgmonkeyError)


@pytest.mark.parametrize("name", [name for package in PACKAGES for name in modules(package)])
def test_every_public_thing_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    for attribute, value in vars(module).items():
        if attribute.startswith("_") or getattr(value, "__module__", None) != name:
            continue
        assert inspect.getdoc(value), f"{name}.{attribute}"
        if inspect.isclass(value):
            for member, function in vars(value).items():
                if inspect.isfunction(function) and not member.startswith("_"):
                    assert inspect.getdoc(getattr(value, member)), f"{name}.{attribute}.{member}"


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_stay_small_and_packages_are_typed(package: str) -> None:
    folder = Path(importlib.import_module(package).__path__[0])
    assert (folder / "py.typed").exists()
    for path in folder.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
