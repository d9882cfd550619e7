"""Load a configuration from a file or a mapping, and read it again only when it has changed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any, NamedTuple

from ..errors import ConfigError
from .document import Document, Origin, Path, anchored, is_url, read_document
from .keywords import PROFILES, SECTIONS
from .profiles import with_profile
from .redaction import Unpicklable
from .references import Dependencies, file_signature, resolve_references
from .schema import Config, check, normalised
from .urls import with_url_apart

__all__ = ["Origin", "Path", "Source", "Sources", "anchored", "load_config", "prepare", "written"]

_LEGACY_WRAPPER = "postgresql"
_CONNINFO = "connection_settings.conninfo"


def load_config(
    path: Origin, *, resolve_env: bool = False, allow_sensitive_defaults: bool = False, profile: str | None = None
) -> dict[str, Any]:
    """Return the checked configuration at *path*: a file, a URL or a mapping; *resolve_env* resolves its references.

    *profile* chooses one of its ``profiles``.  The result holds secrets: log ``redact_config(...)`` of it instead.
    Raises `ConfigError` and, where a reference cannot be resolved, `EnvInterpolationError`.
    """
    document = prepare(written(path, profile), resolve_env, allow_sensitive_defaults)
    check(document)
    return document.values


def written(
    origin: Origin, profile: str | None = None, name: str = "configuration", path: str | None = None
) -> Document:
    """Return the sections of *origin* as they are written, with those of *profile* in their places.

    Unwraps the old top-level ``postgresql:``.  *name* and *path* are as for `read_document`.
    """
    document = read_document(origin, name, path)
    values: Mapping[str, object] = document.values
    lines = document.lines
    if _LEGACY_WRAPPER in values:
        inner = values[_LEGACY_WRAPPER]
        if not isinstance(inner, Mapping) or not values.keys().isdisjoint((*SECTIONS, PROFILES)):
            raise ConfigError(
                f"{document.where(_LEGACY_WRAPPER)}: the deprecated wrapper has to hold all sections, or be absent; "
                "remove it and move its sections to the top level"
            )
        warnings.warn(
            f"{document.source}: the top-level 'postgresql:' is deprecated; move its sections one level up",
            DeprecationWarning,
            stacklevel=2,
        )
        values = {**inner, **{name: value for name, value in values.items() if name != _LEGACY_WRAPPER}}
        prefix = f"{_LEGACY_WRAPPER}."
        lines = {path.removeprefix(prefix): line for path, line in lines.items()}
    return with_profile(replace(document, values=dict(values), lines=lines), profile)


def prepare(
    document: Document, resolve_env: bool, allow_sensitive_defaults: bool, dependencies: Dependencies | None = None
) -> Document:
    """Return *document* with references resolved and the parameters of a URL in their places.

    *dependencies* collects what was read.
    """
    prepared = replace(document, resolved=resolve_env)
    if resolve_env:
        prepared.values = resolve_references(
            prepared,
            allow_sensitive_defaults=allow_sensitive_defaults,
            dependencies=Dependencies() if dependencies is None else dependencies,
        )
    told: dict[str, str] = {}
    try:
        prepared.values = normalised(with_url_apart(normalised(prepared.values), told))
    except ValueError as error:
        raise ConfigError(f"{prepared.where(_CONNINFO)}: {error}") from None
    for path, parameter in told.items():
        if path not in prepared.lines:  # what stands in the file comes first
            prepared.names[path] = f"{prepared.names.get(_CONNINFO, _CONNINFO)}?{parameter}"
            if _CONNINFO in prepared.references:
                prepared.references[path] = parameter
            if _CONNINFO in prepared.lines:
                prepared.lines[path] = prepared.lines[_CONNINFO]
    return prepared


class _Loaded(NamedTuple):
    config: Config
    signature: tuple[int, int, int] | None  # None for a mapping
    dependencies: Dependencies | None  # None without references, which spares each cached call a check


class Source(Unpicklable):
    """One configuration, read again only when its file, or what it refers to, has changed."""

    def __init__(
        self,
        origin: Origin,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        profile: str | None = None,
        name: str = "configuration",
        path: str | None = None,
    ) -> None:
        self._origin = origin, profile, name, path
        self._file = None if path is None or is_url(path) else path
        self._options = (resolve_env, allow_sensitive_defaults)
        self._loaded: _Loaded | None = None

    def config(self) -> Config:
        """Return the checked configuration; raise `ConfigError` when it cannot be used."""
        loaded = self._loaded
        # Taken before the file is read: a change in between is then noticed at the next call.
        signature = None if self._file is None else file_signature(self._file)
        if (
            loaded is not None
            and loaded.signature == signature
            and (loaded.dependencies is None or loaded.dependencies.unchanged())
        ):
            return loaded.config
        dependencies = Dependencies()
        config = check(prepare(written(*self._origin), *self._options, dependencies))
        has_references = bool(dependencies.environ or dependencies.files)
        if has_references:
            config = replace(config, reload=self.config)
        # One assignment: other threads see all of it or nothing.
        self._loaded = _Loaded(config, signature, dependencies if has_references else None)
        return config


class Sources(Unpicklable):
    """The configurations that one manager was asked for; files are remembered by path."""

    def __init__(self) -> None:
        self._sources: dict[tuple[str, bool, bool, str | None], Source] = {}

    def config(
        self,
        origin: Origin,
        resolve_env: bool,
        allow_sensitive_defaults: bool,
        profile: str | None = None,
        name: str = "configuration",
        path: str | None = None,
    ) -> Config:
        """Return the checked configuration of *origin* as it is now.

        *name* and *path* are as for `read_document`; without *path*, a relative one is looked up from where the program
        is now.
        """
        # An isinstance() with the abstract classes takes longer than the rest of a cached call.
        place = str(origin) if isinstance(origin, (str, PurePath)) else ""
        if not place and isinstance(origin, Mapping):
            # Not remembered: the program may change a mapping at any time, and that leaves no trace.
            return Source(origin, resolve_env, allow_sensitive_defaults, profile, name).config()
        path = path or (place if place.startswith("/") else anchored(origin))
        options = resolve_env, allow_sensitive_defaults, profile
        source = self._sources.get((path, *options))
        if source is None:
            # setdefault() is atomic: of two threads that come at once, both get the same source.
            source = self._sources.setdefault((path, *options), Source(origin, *options, name, path))
        return source.config()

    def clear(self) -> None:
        """Forget what was read."""
        self._sources.clear()
