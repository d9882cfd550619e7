"""What the tests of altered frameworks share: sources that read otherwise, and the error that must follow."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader

import pytest


def remove_from_source(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    """Let the source of the module *name* lack *text*, which it contains."""
    get_source = SourceFileLoader.get_source

    def altered(loader: SourceFileLoader, module: str) -> str:
        source = get_source(loader, module)
        assert source is not None
        assert module != name or text in source
        return source.replace(text, "") if module == name else source

    monkeypatch.setattr(SourceFileLoader, "get_source", altered)


def hide_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no source be readable."""

    def unreadable(loader: SourceFileLoader, module: str) -> str:
        raise ImportError("source not available through get_data()")

    monkeypatch.setattr(SourceFileLoader, "get_source", unreadable)


def difference(error: BaseException, installed: str, tested: str) -> str:
    """Return the difference that *error* names between the *installed* releases and the cure."""
    text = str(error)
    cure = "install one of these, or a release of pgmonkey that knows yours"
    assert text.startswith(f"{installed}: ")
    assert text.endswith(f": {cure}")
    named, found, releases = text.removeprefix(f"{installed}: ").partition("; this release of pgmonkey works with ")
    assert found
    assert releases.startswith(tested)
    return named
