"""Make the JSON Schema of a configuration file from the table that validates, for editors.

It describes the file as it is written, before references are resolved, and refuses what `schema.check` refuses or warns
of because of a key, a type or a range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from .keywords import (
    ARGUMENTS,
    CONNINFO,
    HOSTS,
    KEYWORDS,
    NUMBER,
    OURS,
    PARAMETER,
    PLAIN,
    POOL,
    PORTS,
    POSITIVE,
    POSITIVE_SECONDS,
    PROFILES,
    SECONDS,
    SECTIONS,
    WORDS,
    Key,
)
from .schema import KINDS, libpq_keywords

Schema: TypeAlias = dict[str, object]

_REFERENCE: Schema = {"$ref": "#/$defs/reference"}
_EMPTY: Schema = {"enum": [None, ""]}
_SCALAR = ["string", "number", "boolean"]


def json_schema() -> Schema:
    """Return the JSON Schema of a configuration file (draft 2020-12)."""
    sections = {name: {"description": about, "$ref": f"#/$defs/{name}"} for name, about in SECTIONS.items()}
    profile = _object("What comes before the sections beside profiles, key by key; null is a key's default.", sections)
    about = "Variants by name, such as reports or test; the one called default is used when none is chosen."
    profiles = {"type": ["object", "null"], "description": about, "additionalProperties": profile}
    newer = dict.fromkeys(sorted(libpq_keywords() - KEYWORDS.keys()), PLAIN)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pgmonkey configuration",
        **_object("How to connect to PostgreSQL, and how to pool the connections.", {**sections, PROFILES: profiles}),
        "type": "object",
        "anyOf": [
            {"required": ["connection_settings"], "properties": {"connection_settings": {"type": "object"}}},
            {"required": [PROFILES], "properties": {PROFILES: {"type": "object", "minProperties": 1}}},
        ],
        "$defs": {
            "reference": {
                "description": "A reference, which resolve_env=True (--resolve-env) resolves.",
                "anyOf": [{"type": "string", "pattern": r"\$\{"}, *map(_from, ("from_env", "from_file"))],
            },
            "connection_type": _any({"enum": list(KINDS)}, _REFERENCE, _EMPTY),
            "connection_settings": _keys({**newer, **KEYWORDS, **ARGUMENTS, **OURS, "conninfo": CONNINFO}),
            **dict.fromkeys(("pool_settings", "async_pool_settings"), _keys(POOL)),
            **dict.fromkeys(("sync_settings", "async_settings"), _parameters()),
        },
    }


def _object(about: str, properties: Mapping[str, object]) -> Schema:
    return {
        "type": ["object", "null"],
        "description": about,
        "properties": dict(properties),
        "additionalProperties": False,
    }


def _from(kind: str) -> Schema:
    name = {"type": "string", "minLength": 1}
    return {"type": "object", "properties": {kind: name}, "required": [kind], "additionalProperties": False}


def _keys(table: Mapping[str, Key]) -> Schema:
    known = {name: {"description": key.about, **_value(key)} for name, key in table.items()}
    return {"type": ["object", "null"], "properties": known, "additionalProperties": False}


def _parameters() -> Schema:
    one = _any({"type": _SCALAR}, _REFERENCE)
    value = _any(one, {"type": "array", "items": one}, {"type": "null"})
    return {
        "type": ["object", "null"],
        "patternProperties": {_whole(PARAMETER): value},
        "additionalProperties": False,
    }


def _value(key: Key) -> Schema:
    if key.holds == "code":
        return _EMPTY  # nothing else that can be written in a file
    if key.holds == "keys":
        return _any({"type": "object"}, _EMPTY)
    one = list(_one(key))
    several: list[Schema] = [{"type": "array", "items": _any(*one, _REFERENCE)}] if key.plural else []
    return _any(*one, *several, _REFERENCE, _EMPTY)


def _one(key: Key) -> Iterable[Schema]:
    """Return what one value of *key* may be, each way in which it may be written."""
    if key.holds in ("boolean", "switch"):
        words = "|".join("".join(f"[{letter.upper()}{letter}]" for letter in word) for word in WORDS)
        yield {"type": "boolean"}
        yield {"enum": [0, 1, *key.choices]}
        yield {"type": "string", "pattern": _whole(rf"\s*({words})\s*")}
        if key.holds == "switch":
            yield from _one(PLAIN._replace(holds="number"))
    elif key.choices:
        yield {"enum": list(key.choices)}
    elif key.holds == "number":
        yield {"type": "integer", "minimum": key.least, "maximum": 10**18 - 1}
        yield {"type": "string", "pattern": _whole(POSITIVE if key.least else NUMBER)}
    elif key.holds == "port":
        yield {"type": "integer", "minimum": 1, "maximum": 65535}
        yield {"type": "string", "pattern": _whole(PORTS)}
    elif key.holds == "seconds":
        yield {"type": "number", "exclusiveMinimum" if key.least is None else "minimum": 0}
        yield {"type": "string", "pattern": _whole(POSITIVE_SECONDS if key.least is None else SECONDS)}
    elif key.holds == "host":
        yield {"type": _SCALAR, "pattern": _whole(HOSTS)}
    else:
        yield {"type": _SCALAR}


def _any(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _whole(pattern: str) -> str:
    return f"^({pattern})$"
