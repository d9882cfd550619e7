"""Read a YAML file into plain values, remembering on which line each key stands.

Only YAML's own safe types are built, duplicate keys are refused, and aliases may not grow the document without bound.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from ..errors import ConfigError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_MERGE = "tag:yaml.org,2002:merge"
_MAX_NODES = 10_000
_MAX_DEPTH = 20


@dataclass
class Document:
    """The values of one configuration, with what is needed to say where each came from."""

    source: str
    values: Any
    lines: dict[str, int] = field(default_factory=dict)

    def where(self, path: str) -> str:
        """Return ``file:line: path`` for a dotted *path*, or for the nearest key above it that has a line."""
        nearest = path
        while nearest and nearest not in self.lines:
            nearest = nearest.rpartition(".")[0]
        location = f"{self.source}:{self.lines[nearest]}" if nearest else self.source
        return f"{location}: {path}" if path else location


def read_document(path: str | os.PathLike[str] | Mapping[str, Any]) -> Document:
    """Read the YAML file at *path*, or take a mapping for its contents.

    Raises `ConfigError` when the file cannot be read or is not plain YAML.
    """
    if isinstance(path, Mapping):
        return Document("configuration", dict(path))
    source = os.fspath(path)
    try:
        with open(path, "rb") as stream:
            text = stream.read().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{source}: cannot read the configuration file: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except ValueError as error:
        raise ConfigError(f"{source!r} is not a valid path: {error}") from None
    document = Document(source, None)
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                document.values = _Builder(loader, document).build(node, "", 0)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(_explain(source, text, error)) from None
    return document


def _explain(source: str, text: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    location = f"{source}:{mark.line + 1}" if mark else source
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
    line = text.splitlines()[mark.line : mark.line + 1] if mark else []
    cure = "; indent with spaces, not tabs" if line and line[0].lstrip(" ").startswith("\t") else ""
    return f"{location}: not valid YAML: {problem}{cure}"


class _Builder:
    def __init__(self, loader: Any, document: Document) -> None:
        self._loader = loader
        self._document = document
        self._nodes = 0

    def build(self, node: Any, path: str, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise ConfigError(
                f"{self._document.source}:{node.start_mark.line + 1}: the document is too large or too deep once its "
                f"aliases are expanded (at most {_MAX_NODES} values, {_MAX_DEPTH} levels)"
            )
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _COLLECTIONS:
            raise self._not_allowed(node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: Any, path: str, depth: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for base in self._bases(value_node, depth):
                    merged = {**base, **merged}
                continue
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(f"{self._document.source}:{line}: a key must be text, as in 'host: localhost'")
            child = f"{path}.{key}" if path else key
            if key in own:
                first = self._document.lines.get(child)
                raise ConfigError(
                    f"{self._document.source}:{line}: {child}: duplicate key, first given on line {first}; remove one"
                )
            self._document.lines[child] = line
            own[key] = self.build(value_node, child, depth + 1)
        return {**merged, **own}

    def _bases(self, node: Any, depth: int) -> Iterator[dict[str, Any]]:
        for base in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            built = self.build(base, "", depth + 1)
            if not isinstance(built, dict):
                line = base.start_mark.line + 1
                raise ConfigError(f"{self._document.source}:{line}: '<<' merges mappings only")
            yield built

    def _not_allowed(self, node: Any) -> ConfigError:
        line = node.start_mark.line + 1
        return ConfigError(f"{self._document.source}:{line}: the tag {node.tag!r} is not allowed; use plain values")

    def _scalar(self, node: Any) -> Any:
        try:
            return self._loader.construct_object(node)
        except yaml.constructor.ConstructorError:
            raise self._not_allowed(node) from None
        except ValueError as error:
            raise ConfigError(f"{self._document.source}:{node.start_mark.line + 1}: {error}") from None
