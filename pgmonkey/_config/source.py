"""Where a configuration comes from: a file or a mapping, read again only when it has changed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from ..errors import ConfigError
from .document import Document, read_document
from .references import Dependencies, file_signature, resolve_references
from .schema import Config, check, describe_type

Path = str | os.PathLike[str]
Origin = Path | Mapping[str, Any]
"""What users give: the path of a YAML file, or a mapping with its contents."""

_LEGACY_WRAPPER = "postgresql"


def load_config(
    path: Origin,
    *,
    resolve_env: bool = False,
    allow_sensitive_defaults: bool = False,
) -> dict[str, Any]:
    """Return the configuration in the file, or mapping, *path*, checked, with its references resolved if asked.

    The result holds secrets: log ``redact_config(...)`` of it instead.  Raises `ConfigError` and, where a reference
    cannot be resolved, `EnvInterpolationError`.
    """
    options = {"resolve_env": resolve_env, "allow_sensitive_defaults": allow_sensitive_defaults}
    document = _prepare(read_document(path), dependencies=Dependencies(), **options)
    check(document)
    return document.values  # type: ignore[no-any-return]


def _prepare(
    document: Document, *, resolve_env: bool, allow_sensitive_defaults: bool, dependencies: Dependencies
) -> Document:
    """Unwrap the old top-level ``postgresql:`` and resolve references; *dependencies* collects what was read."""
    values = document.values
    if values is None:
        raise ConfigError(f"{document.source}: empty; 'pgmonkey pgconfig create' writes a template")
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{document.source}: expected sections such as 'connection_settings:', found {describe_type(values)}"
        )
    lines = document.lines
    if _LEGACY_WRAPPER in values:
        inner = values[_LEGACY_WRAPPER]
        if len(values) > 1 or not isinstance(inner, Mapping):
            raise ConfigError(
                f"{document.where(_LEGACY_WRAPPER)}: the old wrapper holds all sections or is absent; "
                "remove it and move its sections to the top level"
            )
        warnings.warn(
            f"{document.source}: the top-level 'postgresql:' is deprecated; move its sections one level up",
            DeprecationWarning,
            stacklevel=2,
        )
        values = inner
        prefix = f"{_LEGACY_WRAPPER}."
        lines = {path.removeprefix(prefix): line for path, line in lines.items()}
    if resolve_env:
        values = resolve_references(
            values,
            source=document.source,
            allow_sensitive_defaults=allow_sensitive_defaults,
            dependencies=dependencies,
        )
    return Document(document.source, dict(values), lines)


class Source:
    """One configuration as it is now: read again only when its file, or what it refers to, has changed."""

    def __init__(self, origin: Origin, *, resolve_env: bool = False, allow_sensitive_defaults: bool = False) -> None:
        self._origin = origin
        self._file = None if isinstance(origin, Mapping) else origin
        self._options = {"resolve_env": resolve_env, "allow_sensitive_defaults": allow_sensitive_defaults}
        self._loaded: tuple[Config, tuple[int, int, int] | None, Dependencies | None] | None = None

    def config(self) -> Config:
        """Return the checked configuration; raise `ConfigError` when it cannot be used."""
        loaded = self._loaded
        # Taken before the file is read: a change in between is then noticed at the next call.
        signature = None if self._file is None else file_signature(self._file)
        if loaded is not None and loaded[1] == signature and (loaded[2] is None or loaded[2].unchanged()):
            return loaded[0]
        dependencies = Dependencies()
        config = check(_prepare(read_document(self._origin), dependencies=dependencies, **self._options))
        has_references = bool(dependencies.environ or dependencies.files)
        if has_references:
            config = replace(config, reload=self.config)
        self._loaded = config, signature, dependencies if has_references else None
        return config


class Sources:
    """The configurations that one manager was asked for; files are remembered by path."""

    def __init__(self) -> None:
        self._sources: dict[tuple[str, bool, bool], Source] = {}

    def config(self, origin: Origin, resolve_env: bool, allow_sensitive_defaults: bool) -> Config:
        """Return the checked configuration of *origin* as it is now."""
        # An isinstance() with the abstract classes takes longer than the rest of a cached call.
        if not isinstance(origin, (str, PurePath)):
            if isinstance(origin, Mapping):
                source = Source(origin, resolve_env=resolve_env, allow_sensitive_defaults=allow_sensitive_defaults)
                return source.config()
            if not isinstance(origin, os.PathLike):
                raise ConfigError(f"expected the path of a file or a mapping, not {type(origin).__name__}")
        key = (os.fspath(origin), resolve_env, allow_sensitive_defaults)
        source = self._sources.get(key) or self._sources.setdefault(key, _source(*key))
        return source.config()

    def clear(self) -> None:
        """Forget what was read."""
        self._sources.clear()


def _source(path: str, resolve_env: bool, allow_sensitive_defaults: bool) -> Source:
    return Source(path, resolve_env=resolve_env, allow_sensitive_defaults=allow_sensitive_defaults)
