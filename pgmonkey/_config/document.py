"""Read a YAML file into plain values and note the line of each key.

No tag makes Python construct an object.  Duplicate keys are refused, and aliases may not grow the document without
bound.  A scalar without quotes is a number or a boolean only when it is written as this program writes that value;
anything else stays the text that it is, because YAML 1.1 reads 0123456 as 42798, 12:30:45 as 45045, and "no" as false.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeAlias

import yaml

from ..errors import ConfigError
from .keywords import ARGUMENTS, KEYWORDS, OURS, POOL, PROFILES, SECTIONS


class Secret(Protocol):
    """What keeps its value out of its repr, as pydantic's SecretStr does."""

    def get_secret_value(self) -> str:
        """Return the value."""
        ...


class Url(Protocol):
    """A URL that is an object, such as pydantic's PostgresDsn."""

    def unicode_string(self) -> str:
        """Return the URL."""
        ...


Path: TypeAlias = str | os.PathLike[str] | Secret | Url
"""The path of a YAML file, or a URL."""
Origin: TypeAlias = Path | Mapping[str, object]
"""What a configuration is made from: a YAML file, a URL, or a mapping with the contents of a file."""

_URL = re.compile(r"\s*postgres(?:ql)?(?:\+[a-z0-9_]+)?://", re.IGNORECASE)
# What is no path, although the '//' of a URL, or a quote, is missing: it may hold a password.
_LIKE_URL = re.compile(r":.*@|(?:passw|pwd|secret|token|credential|_key)\w*\s*=", re.IGNORECASE)
_MORE = re.compile(r"(?<=[:=;\s]).+", re.DOTALL)
_NAMES = frozenset({*SECTIONS, PROFILES, *KEYWORDS, *ARGUMENTS, *OURS, *POOL, "conninfo"})
_MAX_BYTES = 64 * 1024
# libyaml parses faster, but not every build of PyYAML contains it.
_Loader: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_MERGE = "tag:yaml.org,2002:merge"
_NULL = "tag:yaml.org,2002:null"
_STRING = "tag:yaml.org,2002:str"
_SCALARS = (
    *(_STRING, _MERGE, "tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:bool"),
    *("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"),
)
# Of what YAML takes for a number, only this can be as Python writes it.
_PLAIN_INTEGER = re.compile(r"(?:0|-?[1-9][0-9]{0,15})\Z")
_DECIMAL = re.compile(r"-?[0-9]{1,8}\.[0-9]{1,8}\Z")
_BOOLEANS = {"true": True, "false": False}
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
    names: dict[str, str] = field(default_factory=dict)
    """Under which path a key is written, where that is another one: in a profile, or in a URL's query."""
    references: dict[str, str] = field(default_factory=dict, repr=False)
    """What a value was resolved from, by the path of its key."""
    folder: str = ""
    """The folder of the file, which relative paths in it start from."""
    resolved: bool = False
    """Whether references were replaced, so that a ``${`` that is left is meant."""

    def where(self, path: str) -> str:
        """Return ``file:line: path`` for a dotted *path*, with the line of the nearest key above it that has one."""
        nearest, written = _nearest(path, self.lines), _nearest(path, self.names)
        location = f"{self.source}:{self.lines[nearest]}" if nearest else self.source
        shown = f"{self.names[written]}{path[len(written) :]}" if written else path
        # A key that was to be more, such as password=..., may hold a secret.
        shown = _MORE.sub("...", shown)
        return f"{location}: {shown if shown.isprintable() else repr(shown)}" if path else location


def _nearest(path: str, known: Mapping[str, object]) -> str:
    while path and path not in known:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return path


def is_url(text: str) -> bool:
    """Tell whether *text* is the URL of a database rather than a path."""
    return _URL.match(text) is not None


def is_like_url(text: str) -> bool:
    """Tell whether *text* is a URL, or a connection string, of whatever kind, and so may hold a password."""
    return "://" in text or _LIKE_URL.search(text) is not None


def shown(source: str) -> str:
    """Return how messages name the configuration at *source*, and nothing of what may hold a password."""
    if is_url(source):
        return "URL"
    if is_like_url(source):
        return "the given path (not shown, as it looks like a connection string)"
    return source if source.strip() and source.isprintable() else repr(source)


def location(origin: object) -> str:
    """Return the path or URL that *origin* is; raise `ConfigError` for what is neither."""
    text = plain(origin)
    if not isinstance(text, (str, os.PathLike)):
        raise ConfigError(f"expected the path of a file, a URL or a mapping, not {type(origin).__name__}")
    return os.fspath(text)


def anchored(origin: object) -> str:
    """Do as `location`, with an absolute path, because the working directory may change, or be removed."""
    text = location(origin)
    if not text or os.path.isabs(text) or is_like_url(text):
        return text
    try:
        return os.path.abspath(text)
    except OSError:  # it is gone already
        return text


def read_document(origin: Origin, name: str = "configuration", path: str | None = None) -> Document:
    """Read the YAML file at *origin*, or take a mapping for its contents, or a URL for all of it.

    Messages about a mapping begin with *name*; *path* is where the file was when it was given.  Raises `ConfigError`
    when the file cannot be read, is not plain YAML, or holds no sections.
    """
    if isinstance(origin, Mapping):
        return Document(name, dict(origin))
    source = location(origin)
    if is_url(source):
        return Document("URL", {"connection_settings": {"conninfo": source}})
    path = path or source
    text = _read(source, path)
    try:
        loader = _Loader(text)
        builder = _Builder(source, text)
        try:
            node = loader.get_single_node()
            values = None if node is None else builder.build(node, "", 0)
            begins = 1 if node is None else node.start_mark.line + 1
        finally:
            loader.dispose()  # breaks the reference cycle of the parser that is written in Python
    except yaml.YAMLError as error:
        raise ConfigError(_explain(source, text, error)) from None
    if values is None:
        raise ConfigError(f"{source}: the file is empty; 'pgmonkey pgconfig create' writes a template to another path")
    if not isinstance(values, dict):
        raise ConfigError(
            f"{source}:{begins}: expected sections, found {describe_type(values)}; "
            "write 'connection_settings:' and below it, indented, 'host:' and so on, or 'conninfo:' with a URL"
        )
    return Document(source, values, builder.lines, folder=os.path.dirname(path))


def plain(value: object) -> object:
    """Return the text of a secret, URL or address that is an object, and the value of a member of an enumeration.

    Other values are returned as they are.
    """
    if isinstance(value, type):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    for method in ("get_secret_value", "unicode_string"):
        if hasattr(value, method):
            return getattr(value, method)()
    return str(value) if type(value).__module__ == "ipaddress" else value


def read_regular(path: str) -> bytes:
    """Return the content of the file at *path*; raise OSError for what is no regular file of at most 64 KiB."""
    # Without waiting, because opening a FIFO may never end, and looked at first, because opening a device may act.
    _check_regular(os.stat(path))
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as stream:
        _check_regular(os.fstat(descriptor))
        content = stream.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise OSError(errno.EFBIG, f"larger than {_MAX_BYTES // 1024} KiB")
    return content


def _check_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")


def describe_type(value: object) -> str:
    """Return what *value* is, in the words of a YAML file."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "nothing" if value is None else type(value).__name__)


def _read(source: str, path: str) -> str:
    if "://" in source:
        # Nothing of it is shown: a password that is not percent-encoded has no certain end.
        raise ConfigError(
            "a URL of another kind was given as the configuration; it begins with postgresql://, without quotes"
        )
    if not source:
        raise ConfigError("the path of the configuration file is empty; is a variable not set?")
    content = b""
    try:
        # Not PyYAML's detection, which takes UTF-16 too.  Editors on Windows put a byte order mark in front.
        content = read_regular(path)
        return content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{shown(source)}: cannot read the configuration file: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{shown(source)}:{line}: not UTF-8 text (byte {error.start}); save the file as UTF-8"
        ) from None
    except ValueError as error:  # a NUL character in the path
        raise ConfigError(f"{shown(source)} is not a valid path: {error}") from None


# What PyYAML says, with libyaml or without, in its context or problem, and the cure; the first that fits.
_CURES = (
    ("expected ':'", "put a blank behind the ':' of a key"),
    ("escape character", "put the text in single quotes"),
    ("quoted scalar", "close the quotes, and write a ' inside of single ones twice"),
    ("flow", "close the bracket, or put a text that begins with one in quotes"),
    ("token", "put a text that begins with a special character in quotes"),
    ("anchor", "give each a name of its own, and put a text that begins with '&' in quotes"),
    ("alias", "put a text that begins with '*' in quotes"),
    ("tag", "put a text that begins with '!' in quotes"),
    ("block scalar", "put a text that begins with '|' or '>' in quotes"),
    ("directive", "put a text that begins with '%' in quotes"),
    ("document", "write one document, without '---' and '%' at the beginning of a line"),
    ("character", "remove the character"),
    ("", "indent the keys of a section alike, and put a text with quotes, ': ' or ' #' in quotes"),
)
_NO_CHARACTER = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_KEY = re.compile(r"[\s{,-]*(\w+)\s*:(?:\s|\Z)")
# Of the file's own text, but for a single special character.
_QUOTED = re.compile(r",? (?:but (?:got|found) )?'[^']*\w[^']*'")


def _explain(source: str, text: str, error: yaml.YAMLError) -> str:
    # Not str(error): it may quote the line, and with it a password.
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
    said = f"{getattr(error, 'context', None) or ''} {problem}"
    if problem == "second occurrence":
        problem = "an anchor is given twice"
    cure = next(cure for words, cure in _CURES if words in said)
    lines = text.splitlines()
    mark, begun = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    # What is not closed is noticed at the end, and a missing colon on the next line.
    if begun is not None and (mark is None or mark.line >= len(lines) or "expected ':'" in said):
        mark = begun
    if mark is None:  # libyaml does not tell where the character is
        found = _NO_CHARACTER.search(text)
        number = text.count("\n", 0, found.start() if found else 0) + 1
        return f"{source}:{number}: not valid YAML: {problem}; {cure}"
    line = lines[mark.line] if mark.line < len(lines) else ""
    if line.lstrip(" ").startswith("\t"):
        cure = "indent with spaces, not tabs"
    key = _KEY.match(line)
    shown = f"{key[1]}: " if key and key[1] in _NAMES else ""
    return f"{source}:{mark.line + 1}: {shown}not valid YAML: {_QUOTED.sub('', problem)}; {cure}"


class _Builder:
    """Builds values from nodes.  PyYAML's own constructor forgets the lines and lets the last of equal keys win."""

    def __init__(self, source: str, text: str) -> None:
        self._source = source
        self._text = [*text.splitlines(), ""]
        self._nodes = 0
        self.lines: dict[str, int] = {}

    def build(self, node: yaml.Node, path: str, depth: int) -> object:
        self._nodes += 1
        if self._nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise self._error(
                node,
                path,
                "the document is too large or too deep once its aliases are expanded "
                f"(at most {_MAX_NODES} values, {_MAX_DEPTH} levels); write it with fewer aliases",
            )
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag not in _COLLECTIONS:
            raise self._not_allowed(node, path)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        return [self.build(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, object]:
        merged: dict[str, object] = {}
        own: dict[str, object] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for base in self._bases(value_node, path, depth):
                    merged = {**base, **merged}  # the first of several wins: https://yaml.org/type/merge.html
                continue
            key = self._scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise self._error(key_node, path, "a key must be text; write it as in 'host: localhost'")
            if _follows_at_once(value_node, key_node):
                raise self._error(
                    key_node,
                    path,
                    "a key without a ':' (not shown); "
                    "put a blank behind the ':', and quotes around a text with a ',' or a ':' in it",
                )
            child = f"{path}.{key}" if path else key
            if key in own:
                first = self.lines.get(child)
                raise self._error(key_node, child, f"duplicate key, first given on line {first}; remove one")
            self.lines[child] = key_node.start_mark.line + 1
            own[key] = self.build(value_node, child, depth + 1)
        # Own keys win over merged ones wherever the '<<' stands.
        return {**merged, **own}

    def _bases(self, node: yaml.Node, path: str, depth: int) -> Iterator[dict[str, object]]:
        for base in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            built = self.build(base, "", depth + 1)
            if not isinstance(built, dict):
                raise self._error(base, path, "'<<' merges mappings only; write an alias of one behind it")
            yield built

    def _scalar(self, node: yaml.ScalarNode, path: str) -> object:
        text: str = node.value
        begins = self._text[node.start_mark.line][node.start_mark.column :]
        if re.match(r"!(\s|\Z)", begins):  # a tag, too, which says that what follows is text
            raise self._not_allowed(node, path)
        if node.tag == _NULL:
            if begins.startswith("&"):
                raise self._error(node, path, "an anchor without a value; put a text that begins with '&' in quotes")
            return None
        if node.tag not in _SCALARS:
            raise self._not_allowed(node, path)
        if node.tag == _STRING:
            return text
        if _PLAIN_INTEGER.match(text):
            return int(text)
        if _DECIMAL.match(text) and str(float(text)) == text:
            return float(text)
        return _BOOLEANS.get(text, text)

    def _not_allowed(self, node: yaml.Node, path: str) -> ConfigError:
        # Not shown: it is a password that begins with '!'.
        return self._error(node, path, "a tag is not allowed; put a text that begins with '!' in quotes")

    def _error(self, node: yaml.Node, path: str, problem: str) -> ConfigError:
        line = node.start_mark.line + 1
        where = Document(self._source, {}, {path: line}).where(path) if path else f"{self._source}:{line}"
        return ConfigError(f"{where}: {problem}")


def _follows_at_once(value: yaml.Node, key: yaml.Node) -> bool:
    """Tell whether *value* is none and begins where *key* ends, so that no colon is between them."""
    begins, ends = value.start_mark, key.end_mark
    return value.tag == _NULL and value.value == "" and (begins.line, begins.column) == (ends.line, ends.column)
