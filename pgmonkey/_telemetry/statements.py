"""Statements as they are shown: their text without values, the operation, and a summary of few different values."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from .._driver.failure import written
from .._driver.lexer import tokens

# In characters: longer texts are cut, and longer ones than the second are not read.
_LONGEST_SUMMARY, _LONGEST = 255, 100_000
_WORD = re.compile(r"[A-Za-z_\x80-\U0010ffff]")
# After these key words comes the name of a table.
_BEFORE_TABLES = frozenset(("from", "into", "join", "update", "table", "call"))
_BETWEEN = frozenset(("only", "if", "not", "exists", "lateral"))
_OPERATIONS = frozenset(("select", "insert", "update", "delete", "merge"))
_NUMBER = re.compile(r"(?<![\w$%.])\d[\d_]*(?:\.\d*)?(?:[eE][-+]?\d+)?(?!\w)")


class Shown(NamedTuple):
    """What is told of a statement's text."""

    text: str
    """The text, with ? in the place of constants."""
    operation: str
    """The command, in capitals; empty where that cannot be told."""
    summary: str
    """The commands and the tables in it, in their order."""


def shown(query: object) -> Shown:
    """Return what is told of *query*."""
    text = written(query)
    return _read_now(text) if len(text) > _LONGEST else _read(text)


def _read_now(text: str) -> Shown:
    found = tokens(text) if len(text) <= _LONGEST else None
    if found is None:
        words = text.split(None, 1)
        operation = words[0].upper() if words and words[0].isalpha() else ""
        return Shown("?", operation, operation)
    return Shown(_without_constants(text, found), *_summary(found))


_read = lru_cache(maxsize=1024)(_read_now)


def _without_constants(text: str, found: list[str]) -> str:
    """Return *text* with ? in the place of the constants among its tokens, and without its comments' contents."""
    parts: list[str] = []
    end = 0
    for token in found:
        if token[0] == "'":
            constant = token[1:]
            start = text.index(constant, end)
            parts.append(_NUMBER.sub("?", text[end:start]))
            parts.append("?")
            end = start + len(constant)
        elif token.startswith(("--", "/*")):
            start = text.index(token, end)
            parts.append(_NUMBER.sub("?", text[end:start]))
            end = start + len(token)
        elif token[0] == '"' or _WORD.match(token):
            # Names may have digits in them.
            start = _find(text, token, end)
            parts.append(_NUMBER.sub("?", text[end:start]))
            parts.append(text[start : start + len(token)])
            end = start + len(token)
    parts.append(_NUMBER.sub("?", text[end:]))
    return "".join(parts).strip()


def _find(text: str, token: str, start: int) -> int:
    """Return where *token*, which the lexer has folded, stands in *text* from *start* on."""
    if text.startswith(token, start):
        return start
    match = re.compile(re.escape(token), re.IGNORECASE).search(text, start)
    return start if match is None else match.start()


def _summary(found: list[str]) -> tuple[str, str]:
    words = [token for token in found if not token.startswith(("--", "/*"))]
    operation = next((word for word in words if _WORD.match(word)), "")
    parts = [operation.upper()] if operation else []
    previous = ""
    for number, word in enumerate(words):
        if word in _OPERATIONS and number and previous not in ("for", "do", "on", "key", "then") and len(parts) > 1:
            parts.append(word.upper())
        elif previous in _BEFORE_TABLES and word[0] not in "('$%" and (word[0] == '"' or _WORD.match(word)):
            if word in _BETWEEN or word == "select":
                continue  # the name comes behind it
            name = word
            if words[number + 1 : number + 2] == ["."] and number + 2 < len(words):
                name = f"{word}.{words[number + 2]}"
            parts.append(name)
        previous = word
    return operation.upper(), " ".join(parts)[:_LONGEST_SUMMARY]
