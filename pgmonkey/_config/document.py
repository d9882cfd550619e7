"""Read a YAML file into plain values and note the line of each key.

Only the types of YAML's core schema are built: no tag makes Python construct an object.  Duplicate keys are refused,
and aliases may not grow the document without bound.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import yaml

from ..errors import ConfigError
from .redaction import redact_text

# libyaml parses faster, but not every build of PyYAML contains it.
_Loader: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_MERGE = "tag:yaml.org,2002:merge"
# Counted after aliases are expanded: nine lines of aliases to aliases make a billion values ("billion laughs"), and an
# alias inside its own anchor never ends.
_MAX_NODES = 10_000
_MAX_DEPTH = 20


@dataclass
class Document:
    """The sections of one configuration and the line of each key, by dotted path."""

    source: str
    values: dict[str, object]
    lines: dict[str, int] = field(default_factory=dict)

    def where(self, path: str) -> str:
        """Return ``file:line: path`` for a dotted *path*, with the line of the nearest key above it that has one."""
        nearest = path
        while nearest and nearest not in self.lines:
            nearest = nearest.rpartition(".")[0]
        location = f"{self.source}:{self.lines[nearest]}" if nearest else self.source
        return f"{location}: {path}" if path else location


def read_document(path: str | os.PathLike[str] | Mapping[str, object]) -> Document:
    """Read the YAML file at *path*, or take a mapping for its contents.

    Raises `ConfigError` when the file cannot be read, is not plain YAML, or holds no sections.
    """
    if isinstance(path, Mapping):
        return Document("configuration", dict(path))
    source = os.fspath(path)
    text = _read(source)
    try:
        loader = _Loader(text)
        builder = _Builder(loader, source)
        try:
            node = loader.get_single_node()
            values = None if node is None else builder.build(node, "", 0)
        finally:
            loader.dispose()  # breaks the reference cycle of the parser that is written in Python
    except yaml.YAMLError as error:
        raise ConfigError(_explain(source, text, error)) from None
    if values is None:
        raise ConfigError(f"{source}: empty; 'pgmonkey pgconfig create' writes a template")
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected sections such as 'connection_settings:', found {describe_type(values)}")
    return Document(source, values, builder.lines)


def describe_type(value: object) -> str:
    """Return what *value* is, in the words of a YAML file."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "nothing" if value is None else type(value).__name__)


def _read(source: str) -> str:
    if "://" in source:
        # Nothing of it is shown: a password that is not percent-encoded has no certain end.
        raise ConfigError(
            "a URL was given where the path of a YAML file is expected; write it into that file, as "
            "connection_settings: {conninfo: '${DATABASE_URL}'}, and pass resolve_env=True"
        )
    shown = redact_text(source)
    try:
        with open(source, "rb") as stream:
            # Not PyYAML's detection, which takes UTF-16 too.  Editors on Windows put a byte order mark in front.
            return stream.read().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{shown}: cannot read the configuration file: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except ValueError as error:  # a NUL character in the path
        raise ConfigError(f"{shown!r} is not a valid path: {error}") from None


def _explain(source: str, text: str, error: yaml.YAMLError) -> str:
    # Not str(error): it may quote the line, and with it a password.
    mark = getattr(error, "problem_mark", None)
    location = f"{source}:{mark.line + 1}" if mark else source
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
    line = text.splitlines()[mark.line : mark.line + 1] if mark else []
    cure = "; indent with spaces, not tabs" if line and line[0].lstrip(" ").startswith("\t") else ""
    return f"{location}: not valid YAML: {problem}{cure}"


class _Builder:
    """Builds values from nodes.  PyYAML's own constructor forgets the lines and lets the last of equal keys win."""

    def __init__(self, loader: yaml.constructor.SafeConstructor, source: str) -> None:
        self._loader = loader
        self._source = source
        self._nodes = 0
        self.lines: dict[str, int] = {}

    def build(self, node: yaml.Node, path: str, depth: int) -> object:
        self._nodes += 1
        if self._nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise self._error(
                node,
                "the document is too large or too deep once its aliases are expanded "
                f"(at most {_MAX_NODES} values, {_MAX_DEPTH} levels)",
            )
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if node.tag not in _COLLECTIONS:
            raise self._not_allowed(node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        return [self.build(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, object]:
        merged: dict[str, object] = {}
        own: dict[str, object] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for base in self._bases(value_node, depth):
                    merged = {**base, **merged}  # the first of several wins: https://yaml.org/type/merge.html
                continue
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise self._error(key_node, "a key must be text, as in 'host: localhost'")
            child = f"{path}.{key}" if path else key
            if key in own:
                first = self.lines.get(child)
                raise self._error(key_node, f"{child}: duplicate key, first given on line {first}; remove one")
            self.lines[child] = key_node.start_mark.line + 1
            own[key] = self.build(value_node, child, depth + 1)
        # Own keys win over merged ones wherever the '<<' stands.
        return {**merged, **own}

    def _bases(self, node: yaml.Node, depth: int) -> Iterator[dict[str, object]]:
        for base in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            built = self.build(base, "", depth + 1)
            if not isinstance(built, dict):
                raise self._error(base, "'<<' merges mappings only")
            yield built

    def _scalar(self, node: yaml.ScalarNode) -> object:
        try:
            return self._loader.construct_object(node)
        except yaml.constructor.ConstructorError:
            raise self._not_allowed(node) from None
        except ValueError as error:  # looks like a number or a date and is none, such as 2026-02-30
            raise self._error(node, str(error)) from None

    def _not_allowed(self, node: yaml.Node) -> ConfigError:
        return self._error(node, f"the tag {node.tag!r} is not allowed; use plain values")

    def _error(self, node: yaml.Node, problem: str) -> ConfigError:
        return ConfigError(f"{self._source}:{node.start_mark.line + 1}: {problem}")
