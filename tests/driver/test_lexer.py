"""Random SQL, split by us and by the server: both must find the same names, values and calls."""

from __future__ import annotations

import random
import re
from itertools import pairwise
from typing import Any

import psycopg
import pytest

from pgmonkey._driver.lexer import tokens
from pgmonkey._driver.sql import Effect, effect_of

PIECES = [
    *("'", "''", '"', '""', "$$", "$a$", "$ab$", "--", "/*", "*/", "\\", "\\'", "\n", "\r", " ", "\t", ";", ",", "."),
    *(
        "E'",
        "e'",
        "U&'",
        'U&"',
        "B'",
        "x'",
        "N'",
        "a",
        "ab$",
        "é",
        "\u00a0",
        "_1",
        "1",
        "1.",
        "1e",
        "$1",
        "+",
        "-",
        "*",
        "/",
    ),
    *(
        "::",
        "(",
        ")",
        "%s",
        "x",
        "'x'",
        "'it''s'",
        "E'\\''",
        '"n"',
        '"n""m"',
        "$$it's$$",
        "/* ' */",
        "-- '\n",
        "'a'\n'b'",
    ),
]
SPACES = [" ", "\n", "\t ", " -- it's\n", "/* ' */", '/* /* " */ $$ */', "\r\n", "--\n", "/**/"]
# Tells on the server that it was executed, and may be hidden by whatever is around it.
CALL = "set_config('fuzz.hit', 'yes', false)"


def noise(draw: random.Random, most: int) -> str:
    return "".join(draw.choice(PIECES) for _ in range(draw.randint(0, most)))


def constant(draw: random.Random) -> str:
    inside = noise(draw, 4)
    kind = draw.randrange(5)
    if kind == 0:
        return "'" + inside.replace("'", "''") + "'"
    if kind == 1:
        return "E'" + inside.replace("\\", "\\\\").replace("'", draw.choice(["''", "\\'"])) + "'"
    if kind == 2:
        tag = draw.choice(["$$", "$a$", "$Z_9$"])
        return tag + inside.replace("$", "") + tag
    if kind == 3:
        return f"E'{draw.choice(['a', ''])}'{draw.choice([chr(10), ' -- c' + chr(10), ' ' + chr(13) + ' '])}'b\\'c'"
    return "'" + inside + "'"  # whatever that is


def name(draw: random.Random) -> str:
    if draw.random() < 0.5:
        return '"' + (noise(draw, 4).replace('"', '""') or "n") + '"'
    return draw.choice(["a", "B_1", "a$1", "Été", "x\u00a0y", "e", "n", "u"])


def statement(draw: random.Random) -> str:
    """Return the text of a statement that the server often accepts: constants with names, and calls among them."""
    items = []
    for _ in range(draw.randint(1, 4)):
        what = CALL if draw.random() < 0.15 else constant(draw)
        items.append(f"{what}{draw.choice(SPACES)}AS{draw.choice(SPACES)}{name(draw)}")
        if draw.random() < 0.1:
            items.append(noise(draw, 3))
    text = f"SELECT{draw.choice(SPACES)}" + f",{draw.choice(SPACES)}".join(items)
    if draw.random() < 0.3:  # anything, anywhere
        place = draw.randrange(len(text))
        text = text[:place] + draw.choice(PIECES) + text[place:]
    return text


_ESCAPES = re.compile(r"\\(.)|''|'\s*(?:--[^\n\r]*)?[\n\r]\s*'", re.DOTALL)


def value(constant: str, escapes: bool) -> str:
    """Return what a constant, as `tokens` gives it, stands for; with *escapes* also in a plain string."""
    if constant.startswith("$"):
        return constant[constant.index("$", 1) + 1 : constant.rindex("$", 0, -1)]
    if constant[0] in "eE" or escapes:
        inside = constant[constant.index("'") + 1 : -1]
        return _ESCAPES.sub(lambda found: found[1] or ("'" if found[0] == "''" else ""), inside)
    return constant[constant.index("'") + 1 : -1].replace("''", "'")


@pytest.fixture
def server_says(observer: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    observer.execute("SET fuzz.hit = ''")
    observer.execute("SET client_min_messages = 'error'")
    return observer


@pytest.mark.parametrize("standard_strings", ["on", "off"])
def test_nothing_is_hidden(server_says: psycopg.Connection[Any], standard_strings: str) -> None:
    """Whatever surrounds a call that the server executes, the text counts as one that is cleaned up after."""
    server_says.execute(f"SET standard_conforming_strings = {standard_strings}".encode())
    draw = random.Random(standard_strings)
    hits = accepted = 0
    for _ in range(2_500):
        text = statement(draw)
        cursor = psycopg.ClientCursor(server_says)
        try:
            cursor.execute(text.encode())
        except psycopg.Error:
            continue
        accepted += 1
        if "set_config" not in text:
            continue
        cursor.execute("SELECT current_setting('fuzz.hit')")
        if cursor.fetchone() == ("yes",):
            hits += 1
            assert effect_of(text.encode()) is Effect.LASTING, text
            cursor.execute("SET fuzz.hit = ''")
    assert accepted > 500, "the statements are too wild to test anything"
    assert hits > 50


@pytest.mark.parametrize("escapes", [None, False, True])
def test_names_and_values(server_says: psycopg.Connection[Any], escapes: bool | None) -> None:
    server_says.execute(f"SET standard_conforming_strings = {'off' if escapes else 'on'}".encode())
    draw = random.Random("names")
    compared = 0
    for _ in range(2_500):
        text = statement(draw)
        found = tokens(text, escapes)
        try:
            cursor = psycopg.ClientCursor(server_says).execute(text.encode())
        except psycopg.Error:
            continue
        if found is None or cursor.description is None or "set_config" in found or ";" in found:
            continue
        found = [part for part in found if not part.startswith(("--", "/*"))]
        if any(part[0] in "0123456789+-*/%$" or part[:2] in ("'b", "'B", "'x", "'U", "u&") for part in found):
            continue  # an expression, a constant that is not text, or a name with escapes
        names = [after for before, after in pairwise(found) if before == "as"]
        names = [part[1:-1].replace('""', '"') if part.startswith('"') else part for part in names]
        if len(cursor.description) != len(names) or (escapes and re.search(r"\\[0-7bfnrtuUx]", text)):
            continue  # not each has a name, or a backslash makes a letter of another kind
        assert [column.name for column in cursor.description] == names, text
        row = cursor.fetchone()
        assert row is not None
        values = [value(part[1:], bool(escapes)) for part in found if part.startswith("'")]
        assert "".join(map(str, row)) == "".join(values), text
        compared += 1
    assert compared > 300
