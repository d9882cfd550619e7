"""Check a configuration against the schema: which sections and keys there are, and what each may hold.

The keys of ``connection_settings`` are the keywords of the libpq in use and the arguments of psycopg's ``connect()``;
those of ``pool_settings`` and ``async_pool_settings`` are psycopg_pool's parameters and some of pgmonkey's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache, partial
from types import FunctionType, MethodType
from typing import Any, Literal, TypeAlias, cast, get_args
from weakref import WeakKeyDictionary

from psycopg import ProgrammingError, capabilities, pq
from psycopg.conninfo import conninfo_to_dict

from ..errors import ConfigError
from .document import Document, describe_type, is_url, plain
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
    is_written,
)
from .redaction import Unpicklable, is_sensitive, redact_text

logger = logging.getLogger("pgmonkey")

Kind = Literal["normal", "pool", "async", "async_pool"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# A longer value is not shown as a whole.
_MAX_SHOWN = 60
# The keywords of a connection string; a value in quotes may hold what looks like one.
_ASSIGNED = re.compile(r"(?:'(?:[^'\\]|\\.)*'|(?<!\S)(\w+)\s*=)", re.DOTALL)


Hook: TypeAlias = Callable[..., Any]
"""A function that is given a connection; of async pools, a coroutine function."""


@dataclass(frozen=True)
class PoolSettings:
    """The parameters of a pool, named and meant as in psycopg_pool: sizes in connections, times in seconds."""

    min_size: int = 4
    max_size: int | None = None
    open: bool | None = None
    name: str | None = None
    timeout: float = 30.0
    max_waiting: int = 0
    max_lifetime: float = 3600.0
    max_idle: float = 600.0
    reconnect_timeout: float = 300.0
    num_workers: int = 3
    close_returns: bool = False
    check_on_checkout: bool = False
    clean_on_return: bool | Literal["always"] = True
    open_timeout: float = 0.0
    leak_detection_threshold: float = 0.0
    # Untyped results, because both kinds of pool have them: an async pool takes coroutine functions.
    configure: Hook | None = None
    check: Hook | None = None
    reset: Hook | None = None
    reconnect_failed: Callable[..., object] | None = None
    connection_class: type[Any] | None = None
    kwargs: Mapping[str, object] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Config(Unpicklable):
    """A checked configuration, ready to connect with.

    ``connect`` holds libpq's keywords as text, ``arguments`` the other arguments of psycopg's ``connect()`` and
    pgmonkey's own.
    """

    source: str
    kind: Kind
    connect: Mapping[str, str] = field(repr=False)
    arguments: Mapping[str, Any] = field(repr=False)
    sync_settings: Mapping[str, str] = field(repr=False)
    async_settings: Mapping[str, str] = field(repr=False)
    pool_settings: PoolSettings = field(repr=False)
    async_pool_settings: PoolSettings = field(repr=False)
    digest: str = field(repr=False)
    # Reads the configuration with the present values of its references; None when it has none.
    reload: Callable[[], Config] | None = field(default=None, repr=False, compare=False)


def check(document: Document) -> Config:
    """Check and normalise a prepared document; raise `ConfigError` on the first thing that cannot be right."""
    return _Checker(document).config()


@cache
def libpq_keywords() -> frozenset[str]:
    """Return every connection keyword that the libpq in use knows."""
    return frozenset(option.keyword.decode() for option in pq.Conninfo.get_defaults())


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the words of a message that suggest the one of *known* that is closest to *word*; none without one."""
    close = get_close_matches(word.lower(), sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


# Keywords that may change while a pool is open: each new connection is made with their current values.
CREDENTIALS = ("user", "password", "passfile", "sslcert", "sslkey", "sslpassword")
HOOKS = ("configure", "check", "reset", "reconnect_failed")
"""Functions that a pool calls; of async pools, coroutine functions."""
# How alike an unknown section and a known one are that is taken for a slip, so that app_settings is not.
_SLIP = 0.88


def key_of(section: str, name: str) -> Key:
    """Return what the table says of the key *name* of *section*; plain text where it says nothing."""
    if section == "connection_settings":
        return KEYWORDS.get(name) or ARGUMENTS.get(name) or OURS.get(name, PLAIN)
    return POOL.get(name, PLAIN) if section in ("pool_settings", "async_pool_settings") else PLAIN


def normalised(values: Mapping[str, object]) -> dict[str, object]:
    """Return *values* with texts for what a program may give as objects, and booleans where words such as "on" stand.

    A resolved reference, or a parameter of a URL, is text always.
    """
    return {
        name: {key: _normal(name, str(key), value) for key, value in section.items()}
        if name in SECTIONS and isinstance(section, Mapping)
        else plain(section)
        for name, section in values.items()
    }


def _normal(section: str, name: str, value: object) -> object:
    if isinstance(value, (list, tuple)):
        return [_normal(section, name, item) for item in value]
    value = plain(value)
    key = key_of(section, name)
    if key.holds in ("host", "path"):
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if key.holds in ("boolean", "switch") and isinstance(value, (str, int)):
        return WORDS.get(str(value).strip().lower(), value)
    if section == "connection_settings" and isinstance(value, bool) and name in libpq_keywords():
        return str(value).lower()  # "password: true" is a text like others
    if name == "kwargs" and isinstance(value, Mapping):
        return {argument: plain(item) for argument, item in value.items()}
    return value


def _problem(name: str, key: Key, value: object) -> str | None:
    """Return what is wrong with *value*, which is no mapping or list, and the cure; None when nothing is."""
    text = str(value)
    if key.holds in ("text", "host", "path") and not key.hidden and is_url(text):
        return "is a URL; give it as 'conninfo'"  # as a name, the server would say it again, with its password
    if key.holds in ("boolean", "switch"):
        if isinstance(value, bool) or value in key.choices or (key.holds == "switch" and is_written(NUMBER, text)):
            return None
        more = "".join(f", nor {choice!r}" for choice in key.choices)
        return f"is neither true nor false{more}; write it as in '{name}: true'"
    if key.choices:
        if text in key.choices:
            return None
        cure = did_you_mean(text, key.choices) or "; write one of them"
        return f"is not one of {', '.join(key.choices)}{cure}"
    # A float that is whole is as good as an integer, as in JSON.
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key.holds in ("number", "port"):
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else text
    if key.holds == "number":
        if is_written(POSITIVE if key.least else NUMBER, text):
            return None
        return f"is not a whole number of at least {key.least}; write it as in '{name}: 10'"
    if key.holds == "port" and not is_written(PORTS, text):
        return f"is not a port (1 to 65535); write it as in '{name}: 5432'"
    if key.holds == "host" and not is_written(HOSTS, text):
        return "holds an '@'; give user and password by the keys of these names, or all of it in conninfo"
    if key.holds == "seconds":
        if number and 0 <= cast("float", value) < math.inf and (value or key.least == 0):
            return None
        if isinstance(value, str) and is_written(POSITIVE_SECONDS if key.least is None else SECONDS, text):
            return None
        least = "greater than 0" if key.least is None else "of at least 0"
        return f"is not a number of seconds {least}; write it as in '{name}: 30'"
    return None


def _misspelt(conninfo: str) -> str:
    """Return the words that name the keyword which was meant in a connection string; none where that is uncertain.

    What was written is not shown: it may be a part of a password.
    """
    known = libpq_keywords()
    slips = (did_you_mean(name, known) for name in _ASSIGNED.findall(conninfo) if name and name not in known)
    return next(filter(None, slips), "")


class _Checker:
    def __init__(self, document: Document) -> None:
        self._document = document

    def config(self) -> Config:
        values = self._document.values
        # Only logged, unless it is a slip: the file may have sections for others, and a newer libpq may know a key.
        for name in map(str, values):
            if name not in SECTIONS:
                known = (*SECTIONS, PROFILES)
                if get_close_matches(name.lower(), known, n=1, cutoff=_SLIP):
                    raise self._error(name, f"unknown section{did_you_mean(name, known)}")
                logger.warning("%s: unknown section ignored%s", self._document.where(name), did_you_mean(name, known))
        if values.get("connection_settings") is None:
            outside = next((name for name in values if name in KEYWORDS), None)
            if outside is not None:
                cure = "write 'connection_settings:' above it and indent it"
                raise self._error(
                    outside, f"this belongs to the section 'connection_settings', which is missing; {cure}"
                )
            raise self._error(
                "connection_settings", "the section is missing or empty; write 'host:', 'dbname:' and so on in it"
            )
        kind = values.get("connection_type")
        if kind is None or kind == "":
            kind = "normal"
        if kind not in KINDS:
            shown = self._shown("connection_type", PLAIN, kind)
            cure = did_you_mean(str(kind), KINDS) or "; write one of them"
            raise self._error("connection_type", f"{shown} is not one of {', '.join(KINDS)}{cure}")
        connect, arguments = self._connection(self._section("connection_settings"))
        sync_settings, async_settings = self._settings("sync_settings"), self._settings("async_settings")
        pool, async_pool = self._pool("pool_settings"), self._pool("async_pool_settings")
        if arguments.get("pgbouncer"):
            self._check_pgbouncer(connect, arguments, [*sync_settings, *async_settings])
        identity = [connect, arguments, sync_settings, async_settings, vars(pool), vars(async_pool)]
        # The key of the cache: equal configurations share one pool, whatever their files.
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=_identity).encode()).hexdigest()
        return Config(
            self._document.source, kind, connect, arguments, sync_settings, async_settings, pool, async_pool, digest
        )

    def _error(self, path: str, problem: str) -> ConfigError:
        return ConfigError(f"{self._document.where(path)}: {problem}")

    def _shown(self, path: str, key: Key, value: object) -> str:
        """Return how a message names *value*: never a secret, nor what a variable or file gave."""
        written = self._document.references.get(path)
        if written is not None:
            return f"what {written} stands for"
        if key.hidden or is_sensitive(path.rpartition(".")[2]):
            return "the value"
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, (str, int, float)):
            text = repr(redact_text(value) if isinstance(value, str) else value)
            return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
        return describe_type(value)

    def _section(self, name: str) -> Mapping[str, object]:
        section = self._document.values.get(name)
        if section is None:
            return {}
        if not isinstance(section, Mapping):
            raise self._error(
                name,
                f"expected keys and values, found {describe_type(section)}; "
                "write them on lines of their own, indented, with a blank after each ':'",
            )
        for key in section:
            if not isinstance(key, str):
                raise self._error(name, f"a key must be text, found {describe_type(key)}; write its name")
        return section

    def _unknown(self, path: str, key: str, known: Iterable[str]) -> None:
        logger.warning("%s: unknown key ignored%s", self._document.where(path), did_you_mean(key, known))

    def _connection(self, section: Mapping[str, object]) -> tuple[dict[str, str], dict[str, object]]:
        known = libpq_keywords()
        connect: dict[str, str] = {}
        arguments: dict[str, object] = {}
        # First, so that the other keys replace parts of it, whatever their order in the file.
        if section.get("conninfo") not in (None, ""):
            connect.update(self._conninfo("connection_settings.conninfo", section["conninfo"]))
        for key, value in section.items():
            path = f"connection_settings.{key}"
            if key == "prepare_threshold" and value is None:
                arguments[key] = None  # for psycopg: never prepare
            if key not in known and key not in (*ARGUMENTS, *OURS, "conninfo"):
                self._unknown(path, key, {*known, *ARGUMENTS, *OURS})
            if value is None or value == "" or key == "conninfo":
                continue
            if key in ("user", "password") and callable(value):
                connect.pop(key, None)  # the one from conninfo
                arguments[key] = value
            elif key in known:
                connect[key] = self._keyword(path, key, value)
            elif key in ARGUMENTS or key in OURS:
                arguments[key] = self._value(path, key, key_of("connection_settings", key), value)
        return connect, arguments

    def _check_pgbouncer(
        self, connect: Mapping[str, str], arguments: Mapping[str, object], parameters: Sequence[str]
    ) -> None:
        """Refuse what needs a session: PgBouncer in transaction mode may give each transaction another one."""
        if "options" in connect:
            raise self._error(
                "connection_settings.options",
                "PgBouncer refuses startup options; move them to sync_settings and async_settings",
            )
        if arguments.get("autocommit") and parameters:
            raise self._error(
                "connection_settings.autocommit",
                f"with pgbouncer and autocommit there is no transaction for {parameters[0]!r} to be set in; "
                "remove autocommit, or ALTER ROLE ... SET it on the server",
            )
        # PgBouncer follows prepared statements that are closed by a protocol message, but not by DEALLOCATE.
        if arguments.get("prepare_threshold") is not None and not capabilities.has_send_close_prepared():
            raise self._error(
                "connection_settings.prepare_threshold",
                f"prepared statements through PgBouncer need libpq 17 (psycopg[binary] has it), "
                f"and this is {pq.version() // 10000}; remove the key",
            )

    def _conninfo(self, path: str, value: object) -> dict[str, str]:
        text = self._text(path, CONNINFO, value)
        try:
            parts = {key: str(item) for key, item in conninfo_to_dict(text).items() if item is not None}
        except (ProgrammingError, UnicodeDecodeError):  # libpq's message quotes the string, and with it a password
            cure = "pass resolve_env=True (--resolve-env) to resolve the reference in it"
            if not self._is_literal(text):
                cure = "write postgresql://user@host/dbname, or host=... dbname=..., with quotes around blanks"
            slip = _misspelt(text)
            rest = f", as a keyword is unknown{slip}" if slip else f"; {cure}"
            raise self._error(path, f"not a valid connection string or URL (not shown){rest}") from None
        for key, part in parts.items():
            problem = _problem(key, KEYWORDS.get(key, PLAIN), part) if part else None
            if problem and "${" not in part:
                cause, _, cure = problem.partition("; ")
                if key == "port" and is_url(text):
                    cure = (
                        "a URL has it as in 'host:5432/dbname', and ':', '/' and '@' of a password as %3A, %2F and %40"
                    )
                raise self._error(path, f"its {key} {cause}; {cure}")
        return parts

    def _keyword(self, path: str, name: str, value: object) -> str:
        key = KEYWORDS.get(name, PLAIN)
        if isinstance(value, list) and key.plural:
            return ",".join(self._keyword(f"{path}[{i}]", name, item) for i, item in enumerate(value))
        text = self._text(path, key, int(value) if isinstance(value, bool) else value)  # libpq's switches are 0 and 1
        if self._is_literal(text):
            return text
        self._value(path, name, key, text)
        return text.strip() if key.holds in ("number", "port") else text

    def _value(self, path: str, name: str, key: Key, value: object) -> Any:
        """Return *value* as what the table says that *key* holds."""
        if key.holds == "code":
            if isinstance(value, (str, int, float, list, Mapping)):
                raise self._error(
                    path,
                    "only Python code can give this; remove it here and use get_database_connection_from_dict()",
                )
            return value
        self._check_resolved(path, key, value)
        if key.holds == "keys":
            if not isinstance(value, Mapping):
                found = describe_type(value)
                raise self._error(path, f"expected keys and values, found {found}; indent them on lines of their own")
            return value
        if key.holds == "text" or isinstance(value, (list, Mapping)):
            value = self._text(path, key, value)
        problem = _problem(name, key, value)
        if problem:
            # A host is wrong where it may hold a password.
            shown = "the value" if key.holds == "host" else self._shown(path, key, value)
            raise self._error(path, f"{shown} {problem}")
        if key.holds == "number":
            return int(cast("str | float", value))
        return float(cast("str | float", value)) if key.holds == "seconds" else value

    def _check_resolved(self, path: str, key: Key, value: object) -> None:
        if self._document.resolved:
            return
        cure = "pass resolve_env=True (--resolve-env)"
        if isinstance(value, Mapping) and ("from_env" in value or "from_file" in value):
            raise self._error(path, f"a from_env or from_file reference is not resolved; {cure}")
        if isinstance(value, str) and "${" in value and key.holds in ("number", "seconds", "boolean"):
            raise self._error(path, f"a reference is not resolved; {cure}")

    def _text(self, path: str, key: Key, value: object) -> str:
        """Return *value* as text that libpq can be given."""
        self._check_resolved(path, PLAIN, value)
        if not isinstance(value, (str, int, float)):
            more = ", or a list of values" if key.plural else ""
            raise self._error(
                path, f"expected text or a number, found {describe_type(value)}; write one value, in quotes{more}"
            )
        text = str(value)
        self._check_characters(path, key, text)
        if self._is_literal(text):
            logger.warning(
                "%s: '${' is taken literally; pass resolve_env=True (--resolve-env) to resolve references",
                self._document.where(path),
            )
        return text

    def _is_literal(self, text: str) -> bool:
        """Tell whether *text* holds a reference that nobody has asked to resolve."""
        return "${" in text and not self._document.resolved

    def _check_characters(self, path: str, key: Key, text: str) -> None:
        if "\0" in text:
            raise self._error(path, f"{self._shown(path, key, text)} holds a NUL character; remove it")
        try:
            text.encode()
        except UnicodeEncodeError:  # bytes in the environment that are not UTF-8, or half of a surrogate pair
            shown = self._shown(path, key, text)
            raise self._error(path, f"{shown} holds bytes that are not UTF-8; encode it as UTF-8") from None

    def _settings(self, name: str) -> dict[str, str]:
        settings: dict[str, str] = {}
        for key, value in self._section(name).items():
            path = f"{name}.{key}"
            if not is_written(PARAMETER, key):
                raise self._error(
                    path,
                    "this is not the name of a server parameter; write one such as 'statement_timeout' or 'app.tenant'",
                )
            if value is None:
                continue
            self._check_resolved(path, PLAIN, value)
            items = value if isinstance(value, list) else [value]
            for item in items:
                if not isinstance(item, (str, int, float)):
                    raise self._error(
                        path,
                        f"expected text, a number or a boolean, found {describe_type(item)}; "
                        "write one value, in quotes, or a list of them",
                    )
            # Booleans and lists as PostgreSQL takes them: true, false, and commas as in search_path.
            texts = [str(item).lower() if isinstance(item, bool) else str(item) for item in items]
            for text in texts:
                self._check_characters(path, PLAIN, text)
            # The server ignores the case of names: of two spellings the last replaces the other.
            settings[key.lower()] = ", ".join(texts)
        return settings

    def _pool(self, name: str) -> PoolSettings:
        values: dict[str, Any] = {}
        for key, value in self._section(name).items():
            path = f"{name}.{key}"
            if key not in POOL:
                self._unknown(path, key, POOL)
            elif value is not None and value != "":
                values[key] = self._value(path, key, POOL[key], value)
        max_size = values.get("max_size")
        # A small max_size alone must not be refused because of the default min_size.
        if max_size is not None and "min_size" not in values:
            values["min_size"] = min(PoolSettings.min_size, max_size)
        settings = PoolSettings(**values)
        if max_size is not None and settings.min_size > max_size:
            raise self._error(
                f"{name}.min_size",
                f"min_size ({settings.min_size}) is larger than max_size ({max_size}); lower it, or raise max_size",
            )
        if max_size is None and settings.min_size == 0:
            raise self._error(f"{name}.min_size", "a pool with min_size 0 needs a max_size of at least 1; add max_size")
        return settings


# A function keeps the identity that it had first: what it has captured may change, as a token that is renewed does.
_known: WeakKeyDictionary[FunctionType, str] = WeakKeyDictionary()


def _identity(value: object) -> str:
    """Return what tells *value* from what would make another pool.

    A function that is made anew at each call, such as a lambda, is the same when its code and what it has captured are.
    """
    if isinstance(value, FunctionType):
        return _known.get(value) or _known.setdefault(value, _identity_of(value))
    if isinstance(value, MethodType):
        return f"{_identity(value.__func__)} of {id(value.__self__)}"
    if isinstance(value, partial):
        items = sorted(value.keywords.items())
        return f"partial {[_identity(part) for part in (value.func, *value.args, *items)]}"
    if isinstance(value, tuple):
        return str([_identity(part) for part in value])
    if value is None or isinstance(value, (str, bytes, int, float)):
        return repr(value)
    # By address: the open pool keeps it alive, so no other object gets that.
    return f"{type(value).__module__}.{type(value).__qualname__}@{id(value)}"


def _identity_of(function: FunctionType) -> str:
    captured: list[object] = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # nothing is in it yet
            captured.append(cell.cell_contents)
    parts = (*captured, *(function.__defaults__ or ()), *sorted((function.__kwdefaults__ or {}).items()))
    # Other functions by address: one may have captured itself.
    shown = [f"@{id(part)}" if isinstance(part, FunctionType) else _identity(part) for part in parts]
    # The code is one object, however often a function is made of it.
    return f"{id(function.__code__)} {id(function.__globals__)} {shown}"
