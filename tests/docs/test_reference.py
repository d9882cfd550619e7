"""The reference: whatever is public has a place in it, and a text there."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

import pgmonkey
from pgmonkey import embedded, errors
from pgmonkey._config import keywords

from .conftest import ROOT

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def reference() -> Any:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


def test_nothing_in_the_reference_is_without_a_text(reference: Any) -> None:
    assert reference.silent() == []


@pytest.mark.parametrize("package", ["pgmonkey", "flask_pgmonkey", "fastapi_pgmonkey", "django_pgmonkey"])
def test_every_public_name_has_a_place(reference: Any, package: str) -> None:
    module = importlib.import_module(package)
    found = set(headings(reference.pages()[package]))
    assert set(module.__all__) <= found
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, type) and not issubclass(value, BaseException):
            public = {
                member for member in vars(value) if not member.startswith("_") and callable(getattr(value, member))
            }
            assert {f"{name}.{member}" for member in public} <= found


def test_every_key_has_a_place(reference: Any) -> None:
    page = reference.pages()["configuration-keys"]
    tables = (keywords.KEYWORDS, keywords.ARGUMENTS, keywords.OURS, keywords.POOL, keywords.SECTIONS)
    for name in [*(name for table in tables for name in table), "conninfo", keywords.PROFILES]:
        assert re.search(rf"^\| `{name}` \| .", page, re.MULTILINE), name


def test_every_command_has_a_place(reference: Any) -> None:
    from pgmonkey.cli._parser import build

    found = headings(reference.pages()["commands"])
    for name in build().commands["pgconfig"].commands:
        assert f"pgmonkey pgconfig {name}" in found
    assert "pgmonkey completion" in found


def test_every_error_has_its_cause_and_its_cure() -> None:
    sections = re.split(r"^## ", (DOCS / "errors.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    texts = {section.partition("\n")[0]: section for section in sections}
    assert {*errors.__all__, "EmbeddedError"} <= set(texts)
    for name in {*errors.__all__, "EmbeddedError"} - {"PgmonkeyError"}:
        cls = getattr(errors, name, None) or getattr(embedded, name)
        assert "**Cause.**" in texts[name], name
        assert "**Cure.**" in texts[name], name
        base = next(base for base in cls.__mro__[1:] if base is not pgmonkey.PgmonkeyError)
        assert re.search(rf"a `(psycopg(_pool|\.errors)?\.)?{base.__name__}`", texts[name]), name


def test_every_check_of_django_is_explained() -> None:
    source = Path(importlib.import_module("django_pgmonkey").__path__[0], "validation.py").read_text(encoding="utf-8")
    ids = {
        f"pgmonkey.{kind[0].upper()}{int(number):03}" for kind, number in re.findall(r"_(error|warning)\((\d)", source)
    }
    assert len(ids) >= 7
    assert set(re.findall(r"^\| `(pgmonkey\.\w+)`", (DOCS / "checks.md").read_text(), re.MULTILINE)) == ids
