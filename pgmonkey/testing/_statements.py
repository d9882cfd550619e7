"""Split what a client sends into statements, and tell those apart that a sandbox answers itself.

This is the one place where SQL is read to decide what happens: a sandbox must see each COMMIT before the server does.
The server's status after every message is checked, so that what slips through ends the sandbox and not its promise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["plain", "begin", "commit", "rollback", "set transaction", "discard all", "deallocate all", "refused"]

_TOKEN = re.compile(
    rb"""
      (?P<space> [ \t\n\r\f\v]+ | --[^\n\r]* )
    | (?P<comment> /\* )
    | (?P<string> (?: [bBnNxX] | [uU]& )? '[^']*(?:''[^']*)*' )
    | (?P<escaped> [eE]'(?: [^'\\] | \\. | '' )*' )
    | (?P<name> (?: [uU]& )? "[^"]*(?:""[^"]*)*" )
    | (?P<dollar> \$ (?: [A-Za-z_\x80-\xff][A-Za-z_0-9\x80-\xff]* )? \$ )
    | (?P<word> [A-Za-z_\x80-\xff][A-Za-z_0-9$\x80-\xff]* )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(rb"/\*|\*/")
# How many words of a statement are kept: as many as CREATE OR REPLACE GLOBAL TEMPORARY TABLE IF NOT EXISTS name has.
_WORDS = 9
_SET_CONFIG = re.compile(
    rb"""set_config\s*\(\s*E?'(?P<name>[^']+)'(?:::\w+)?\s*,
         \s*(?: E?'(?:[^'\\]|\\.|'')*' | \$\d+ | [^,()']+ )(?:::\w+)?\s*,\s*(?P<local>\w+)""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
# What `SET` calls differently from the parameter that it sets.
_OTHER_NAMES = {"time": "timezone", "names": "client_encoding", "schema": "search_path"}
# Statements of which a test that counts its queries does not think.
_UPKEEP = {"begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release", "set", "reset", "discard"}
_UPKEEP |= {"deallocate", "unlisten", "close"}
_UPKEEP_CALL = re.compile(rb"\s*SELECT\s+(?:set_config|pg_advisory_unlock_all)\s*\(", re.IGNORECASE)


@dataclass
class Part:
    """One statement: where it is in the message, what kind it is, and what it changes in the session."""

    text: bytes
    start: int
    """Its first byte in the message."""
    words: list[str]
    """What it begins with, in small letters; names in quotes with these."""
    spans: list[tuple[int, int]]
    """Where each of the words is in `text`."""
    kind: Kind = "plain"
    why: str = ""
    """What it is that a sandbox refuses."""
    block: str = ""
    """What it is called where it is outside of a transaction block and does not belong there."""
    lasting: list[str] = field(default_factory=list)
    """The parameters that it sets for the session."""
    local: list[str] = field(default_factory=list)
    """The parameters that it sets until the end of the transaction."""
    resets: bool = False
    """Whether it sets parameters back to what the session began with."""

    @property
    def special(self) -> bool:
        """Whether a sandbox answers it itself."""
        return self.kind != "plain"

    @property
    def counts(self) -> bool:
        """Whether a test that counts its statements means this one too."""
        return not (self.words and self.words[0] in _UPKEEP) and _UPKEEP_CALL.match(self.text) is None

    @property
    def read_only(self) -> bool | None:
        """What a BEGIN, or SET TRANSACTION, says of it; None where it says nothing."""
        text = b" ".join(self.text.upper().split())
        if b"READ ONLY" in text:
            return True
        return False if b"READ WRITE" in text else None

    def renamed(self, number: int, prefix: str) -> bytes:
        """Return the text with *prefix* before the name that is its word *number*."""
        start, end = self.spans[number]
        name = self.words[number]
        bare = name[1:-1] if name.startswith('"') else name
        return self.text[:start] + f'"{prefix}{bare}"'.encode("latin-1") + self.text[end:]


def split(sql: bytes) -> list[Part]:
    """Return the statements of *sql*; what is empty is none."""
    parts: list[Part] = []
    words: list[str] = []
    spans: list[tuple[int, int]] = []
    begun: int | None = None
    depth = blocks = position = 0
    while position <= len(sql):
        match = _TOKEN.match(sql, position)
        if match is None or (match["other"] == b";" and depth == 0 and blocks == 0):
            if begun is not None:
                spans = [(start - begun, end - begun) for start, end in spans]
                parts.append(_classified(Part(sql[begun:position], begun, words, spans)))
            words, spans, begun, depth, blocks = [], [], None, 0, 0
            if match is None:
                break
            position = match.end()
            continue
        kind, end = match.lastgroup, match.end()
        if kind == "comment":
            end = _end_of_comment(sql, end)
        elif kind == "dollar":
            found = sql.find(match[0], end)
            end = len(sql) if found < 0 else found + len(match[0])
        if kind not in ("space", "comment"):
            begun = position if begun is None else begun
            text = match[0].decode("latin-1")
            if kind == "word":
                text = text.lower()
                blocks += _nesting(words, text)
            depth += {"(": 1, ")": -1}.get(text, 0)
            if len(words) < _WORDS:
                words.append(text)
                spans.append((position, end))
        position = end
    return parts


def _nesting(words: list[str], word: str) -> int:
    """Return by how much *word* changes the depth of the blocks in the body of a function, as psql tells it."""
    if words[:1] != ["create"] or not {"function", "procedure"} & set(words[1:4]):
        return 0
    return {"begin": 1, "case": 1, "end": -1}.get(word, 0)


def _end_of_comment(sql: bytes, end: int) -> int:
    depth = 1
    for edge in _COMMENT_EDGE.finditer(sql, end):
        depth += 1 if edge[0] == b"/*" else -1
        if depth == 0:
            return edge.end()
    return len(sql)


def _classified(part: Part) -> Part:
    first, second = (*part.words, "", "")[:2]
    if first == "begin" or (first == "start" and second == "transaction"):
        part.kind = "begin"
    elif first in ("commit", "end", "rollback", "abort"):
        if second == "prepared":
            part.kind, part.why = "refused", "two-phase commit"
        elif first in ("commit", "end"):
            part.kind = "commit"
        elif "to" not in part.words[1:3]:
            part.kind = "rollback"
        else:
            part.block = "ROLLBACK TO SAVEPOINT"
    elif first in ("savepoint", "release", "lock"):
        part.block = {"release": "RELEASE SAVEPOINT", "lock": "LOCK TABLE"}.get(first, first.upper())
    elif first == "prepare" and second == "transaction":
        part.kind, part.why = "refused", "two-phase commit"
    elif first == "listen":
        part.kind, part.why = "refused", "LISTEN, as notifications come with a COMMIT and a sandbox never commits"
    elif first == "discard" and second == "all":
        part.kind = "discard all"
    elif first == "deallocate" and "all" in part.words[1:3]:
        part.kind = "deallocate all"
    elif first == "set":
        _read_set(part)
    elif first == "reset":
        part.resets = True
    for match in _SET_CONFIG.finditer(part.text) if b"set_config" in part.text.lower() else ():
        names = part.local if match["local"].lower() in (b"true", b"t", b"on", b"yes", b"1") else part.lasting
        names.append(match["name"].decode("latin-1").lower())
    return part


def _read_set(part: Part) -> None:
    words = part.words[1:]
    names = part.local if words[:1] == ["local"] else part.lasting
    if words[:1] in (["local"], ["constraints"]):
        part.block = f"SET {words[0].upper()}"
    if words[:1] in (["local"], ["session"]) and words[1:2] not in (["authorization"], ["characteristics"]):
        words = words[1:]
    first, second = (*words, "", "")[:2]
    if first == "transaction":
        part.kind, part.why, part.block = "set transaction", "SET TRANSACTION SNAPSHOT", "SET TRANSACTION"
        if second == "snapshot":
            part.kind = "refused"
    elif first == "session":
        part.lasting.append("session_authorization" if second == "authorization" else "default_transaction_read_only")
    elif first not in ("constraints", "seed", ""):
        name = _OTHER_NAMES.get(first, first) if second not in ("=", "to", ".") or first == "schema" else first
        names.append("".join(words[:3]) if second == "." else name)
