"""Split SQL into tokens as the server does (src/backend/parser/scan.l), to find what is quoted and what is not."""

from __future__ import annotations

import re

_START = r"A-Za-z_\x80-\U0010ffff"  # what a name may begin with
_SPACE = r" \t\n\r\f\v"
_OTHER = rf"(?: \$[0-9]+ | -(?!-) | /(?!\*) | :(?!:) | [^{_START}'\"$();.:/-] )"
_TOKEN = re.compile(
    rf"""
    [{_SPACE}]* (?:
        # Quotes in the name of a placeholder, if it is one: too rare to be worth reading.
        (?P<unclear> %\([^()]*['"][^()]*\))
      | (?P<unicode> [uU]&"[^"]*(?:""[^"]*)*")
      | (?P<escaped> [eE]')
      | (?P<string> (?: [bBnNxX] | [uU]& )? '[^']*(?:''[^']*)*')
      | (?P<word> [{_START}][{_START}0-9$]*)
      | (?P<comment> --[^\n\r]* | /\*)
      | (?P<dollar> \$ (?: [{_START}][{_START}0-9]* )? \$)
      | (?P<plain> [();.] | :: | "[^"]*(?:""[^"]*)*" | {_OTHER}+)
    )
    """,
    re.VERBOSE,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_IN_ESCAPED = r"[^'\\]*(?:(?:\\.|'')[^'\\]*)*'"
# Strings with only white space between them, and a line end in it, are one: the escapes go on in the next line.
_LINE_END = rf"[ \t\f\v]*(?:--[^\n\r]*)?[\n\r](?:[{_SPACE}]|--[^\n\r]*[\n\r])*'"
_ESCAPED = re.compile(rf"{_IN_ESCAPED}(?:{_LINE_END}{_IN_ESCAPED})*", re.DOTALL)


def tokens(text: str, escapes: bool | None = None) -> list[str] | None:
    """Split *text* as the server does; None where it cannot be told how, or the server would refuse it.

    *escapes* tells whether a backslash hides a quote in a plain string, as it does where standard_conforming_strings is
    off; None where that is not known.

    How a token begins tells what it is: a letter, a word in small letters as the server folds it; ``"``, a name in
    double quotes; ``u&"``, such a name with escapes in it; ``'``, a constant, which follows; ``--`` or ``/*``, a
    comment; ``( ) ; . ::`` are tokens of their own; anything else is a run of numbers, operators, commas and
    parameters.
    """
    found: list[str] = []
    end, length, match_token = 0, len(text.rstrip(" \t\n\r\f\v")), _TOKEN.match
    while end < length:
        match = match_token(text, end)
        kind = match and match.lastgroup
        if match is None or kind is None:
            return None
        part, end = match[kind], match.end()
        if kind == "plain":
            found.append(part)
        elif kind == "unicode":
            found.append("u" + part[1:])
        elif kind == "word":
            # The server folds ASCII only: with all of Unicode, another name might turn into one that is known.
            found.append(part.lower() if part.isascii() else part)
        else:
            end = _end_of(kind, part, text, end, escapes)
            if end < 0:
                return None
            part = text[match.start(kind) : end]
            found.append(part if kind == "comment" else f"'{part}")
    return found


def _end_of(kind: str, part: str, text: str, end: int, escapes: bool | None) -> int:
    """Return where the string or comment ends whose beginning is *part*, up to *end*; -1 where that is not certain."""
    if kind == "string" and escapes is None:
        # Such a backslash may hide the quote, unless it is the last one.
        last = text.find("'", end) < 0
        return -1 if "\\'" in (part[:-1] if last else part) else end
    if kind == "string" and (not escapes or part[0] in "bBxX"):
        return end
    if kind in ("string", "escaped"):
        closing = _ESCAPED.match(text, end - len(part) + part.index("'") + 1)
        return -1 if closing is None else closing.end()
    if kind == "dollar":
        found = text.find(part, end)
        return -1 if found < 0 else found + len(part)
    if kind == "unclear":
        return -1
    if part != "/*":
        return end
    depth = 1
    for edge in _COMMENT_EDGE.finditer(text, end):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    return -1
