"""The shape of the project: public names, docstrings, and the one door to what is private of psycopg."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import pgmonkey
from pgmonkey._driver.compat import GENERATORS, PRIVATE_NAMES

PACKAGES = ("pgmonkey", "flask_pgmonkey", "fastapi_pgmonkey", "django_pgmonkey")


def modules(package: str) -> list[str]:
    found = importlib.import_module(package)
    names = [info.name for info in pkgutil.walk_packages(found.__path__, f"{package}.")]
    return [package, *(name for name in names if not name.endswith("__main__") and "django_pgmonkey." not in name)]


def test_the_public_names_are_exactly_all() -> None:
    assert set(pgmonkey.__all__) <= set(dir(pgmonkey))
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
def test_packages_are_typed(package: str) -> None:
    assert (Path(importlib.import_module(package).__path__[0]) / "py.typed").exists()


# -- the one door to psycopg's insides --------------------------------------------------------------------------------

PRIVATE_OF_PSYCOPG = {name for name in PRIVATE_NAMES if name.startswith("_")}


def files(package: str) -> list[Path]:
    return sorted(Path(importlib.import_module(package).__path__[0]).rglob("*.py"))


def names_in(path: Path) -> Iterator[str]:
    """Yield the attributes, the texts and the modules that a file names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (node.module or "").split(".")


@pytest.mark.parametrize("package", PACKAGES)
def test_only_the_driver_uses_what_is_private_of_psycopg(package: str) -> None:
    names = PRIVATE_OF_PSYCOPG - {"_pool"}  # handles have a pool of that name
    for path in files(package):
        if path.parent.name != "_driver":
            assert names.isdisjoint(names_in(path)), path


def test_the_driver_uses_the_private_names_that_compat_lists_and_no_others() -> None:
    used: set[str] = set()
    own: set[str] = set()
    text = ""
    for path in files("pgmonkey._driver"):
        if path.name == "compat.py":
            continue
        text += path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
                used.add(node.attr)
                if isinstance(node.ctx, ast.Store):
                    own.add(node.attr)
            elif isinstance(node, ast.FunctionDef):
                own.add(node.name)
    assert used - own <= PRIVATE_OF_PSYCOPG
    listed = PRIVATE_OF_PSYCOPG - set(GENERATORS) - {"_preparing", "_queries"}
    assert {name for name in listed if not re.search(rf"\b{name}\b", text)} == set()
