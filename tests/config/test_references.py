"""References to the environment and to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgmonkey import load_config


def load(folder: Path, text: str, **options: bool) -> dict[str, Any]:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    settings: dict[str, Any] = load_config(path, resolve_env=True, **options)["connection_settings"]
    return settings


def test_variables_and_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGM_USER", "ann")
    monkeypatch.delenv("PGM_HOST", raising=False)
    text = "connection_settings: {user: 'x-${PGM_USER}-${PGM_USER}', host: '${PGM_HOST:-local:-host}'}"
    assert load(tmp_path, text) == {"user": "x-ann-ann", "host": "local:-host"}


def test_an_empty_variable_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGM_EMPTY", "")
    assert load(tmp_path, "connection_settings: {host: '${PGM_EMPTY:-default}'}") == {"host": ""}


def test_a_value_is_not_resolved_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGM_A", "${PGM_B}")
    assert load(tmp_path, "connection_settings: {password: '${PGM_A}'}") == {"password": "${PGM_B}"}


def test_references_inside_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGM_A", "one")
    assert load(tmp_path, "connection_settings: {host: ['${PGM_A}', two]}") == {"host": ["one", "two"]}


@pytest.mark.parametrize(
    ("content", "expected"), [("s\n", "s"), ("s\r\n", "s"), ("s", "s"), ("s\n\n", "s\n"), (" s \n", " s "), ("", "")]
)
def test_from_file_trims_the_newline_at_the_end(content: str, expected: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(content.encode())
    text = f"connection_settings: {{password: {{from_file: {secret}}}}}"
    assert load(tmp_path, text) == {"password": expected}


def test_sensitive_defaults_can_be_allowed(tmp_path: Path) -> None:
    text = "connection_settings: {password: '${PGM_UNSET:-dev}'}"
    assert load(tmp_path, text, allow_sensitive_defaults=True) == {"password": "dev"}
