"""Template strings as statements: ``t"SELECT {value}"``, where Python has them."""

from __future__ import annotations

import sys
from itertools import zip_longest
from typing import Any

from psycopg import abc
from psycopg.sql import SQL, Composable, Composed, Identifier

if sys.version_info >= (3, 14):
    from string import templatelib

    Template: type[Any] = templatelib.Template
    """What a template string is; nothing where Python has none."""
else:
    Template = type("_NoTemplate", (), {"__module__": "builtins"})

# The formats of a value that psycopg sends as a parameter, and its placeholders for them.
_PLACEHOLDERS = {"": "%s", "s": "%s", "t": "%t", "b": "%b"}


def spelled(template: Any, params: abc.Params | None) -> tuple[abc.Query, abc.Params | None]:
    """Return *template* as a text with placeholders, and its values; as it is where it holds more than plain values.

    psycopg makes the same statement of both.
    """
    if params is not None:
        return template, params
    text = [string.replace("%", "%%") for string in template.strings]
    for number, item in enumerate(template.interpolations):
        placeholder = _PLACEHOLDERS.get(item.format_spec)
        if placeholder is None or item.conversion or isinstance(item.value, (Composable, Template)):
            return template, params
        text[number] += placeholder
    spelling: Any = "".join(text)
    return spelling, [item.value for item in template.interpolations]


def composed(template: Any, value: Composable) -> Composed:
    """Return *template* with *value* in the place of each of its values: to be looked at or shown, not executed."""
    parts: list[Composable] = []
    for string, item in zip_longest(template.strings, template.interpolations):
        parts.append(SQL(string))
        if item is None:
            break
        if isinstance(item.value, Template):
            parts.append(composed(item.value, value))
        elif isinstance(item.value, Composable):
            parts.append(item.value)
        else:
            named = item.format_spec == "i" and isinstance(item.value, str)
            parts.append(Identifier(item.value) if named else value)
    return Composed(parts)
