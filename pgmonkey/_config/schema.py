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
from .document import Document, describe_type, plain
from .keywords import KEYWORDS, PLAIN, Keyword
from .redaction import Unpicklable, is_sensitive, redact_text

logger = logging.getLogger("pgmonkey")

Kind = Literal["normal", "pool", "async", "async_pool"]
KINDS: tuple[Kind, ...] = get_args(Kind)

SECTIONS = (
    "connection_type",
    "connection_settings",
    "pool_settings",
    "sync_settings",
    "async_settings",
    "async_pool_settings",
)
# A dot separates the prefix of an extension's parameters, such as auto_explain.log_min_duration.
_PARAMETER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)*\Z")


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
    kwargs: Mapping[str, object] = field(default_factory=dict)


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
    sync_settings: Mapping[str, str]
    async_settings: Mapping[str, str]
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


# The arguments of psycopg.connect() beside libpq's keywords.  The last three cannot be written in YAML.
ARGUMENTS = ("autocommit", "prepare_threshold", "row_factory", "cursor_factory", "context")
# pgmonkey's own keys, which psycopg does not know.
OURS = ("command_timeout", "pgbouncer")
# Keywords that may change while a pool is open: each new connection is made with their current values.
CREDENTIALS = ("user", "password", "passfile", "sslcert", "sslkey", "sslpassword")
HOOKS = ("configure", "check", "reset", "reconnect_failed")
"""Functions that a pool calls; of async pools, coroutine functions."""
_MAY_BE_ZERO = ("reconnect_timeout", "open_timeout", "leak_detection_threshold")
_BOOLEANS = ("autocommit", "pgbouncer", "open", "close_returns", "check_on_checkout", "clean_on_return")
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
# How alike an unknown section and a known one are that is taken for a slip, so that app_settings is not.
_SLIP = 0.88


def normalised(values: Mapping[str, object]) -> dict[str, object]:
    """Return *values* with texts for what a program may give as objects, and booleans where words such as "on" stand.

    A resolved reference, or a parameter of a URL, is text always.
    """
    return {
        name: {key: _normal(name, str(key), value) for key, value in section.items()}
        if name in SECTIONS and isinstance(section, Mapping)
        else section
        for name, section in values.items()
    }


def _normal(section: str, key: str, value: object) -> object:
    if isinstance(value, (list, tuple)):
        return [_normal(section, key, item) for item in value]
    value = plain(value)
    keyword = KEYWORDS.get(key, PLAIN) if section == "connection_settings" else PLAIN
    if keyword.kind == "path" and isinstance(value, os.PathLike):
        return os.fspath(value)
    if section in ("sync_settings", "async_settings"):
        return value
    if key in _BOOLEANS or keyword.kind == "switch":
        return _WORDS.get(str(value).strip().lower(), value) if isinstance(value, (str, int)) else value
    if section == "connection_settings" and isinstance(value, bool) and key in libpq_keywords():
        return str(value).lower()  # "password: true" is a text like others
    if key == "kwargs" and isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return value


def _problem(keyword: Keyword, text: str) -> str | None:
    """Return what is wrong with the value *text*, which libpq would tell only when it connects."""
    if keyword.choices and text not in keyword.choices:
        return f"is not one of {', '.join(keyword.choices)}"
    parts = [part.strip() for part in text.split(",")] if keyword.plural else [text.strip()]
    numbers = all((part.isascii() and part.isdecimal()) or (not part and len(parts) > 1) for part in parts)
    if keyword.kind == "switch" and not numbers:
        return "is neither true nor false"
    if (
        keyword.kind == "number"
        and keyword.plural
        and not (numbers and all(0 < int(part or 1) < 65536 for part in parts))
    ):
        return "is not a port (1 to 65535)"
    if keyword.kind == "number" and not numbers:
        return "is not a whole number of at least 0"
    return None


class _Checker:
    def __init__(self, document: Document) -> None:
        self._document = document

    def config(self) -> Config:
        values = self._document.values
        # Only logged, unless it is a slip: the file may have sections for others, and a newer libpq may know a key.
        for name in map(str, values):
            if name not in SECTIONS:
                if get_close_matches(name.lower(), SECTIONS, n=1, cutoff=_SLIP):
                    raise self._error(name, f"unknown section{did_you_mean(name, SECTIONS)}")
                logger.warning(
                    "%s: unknown section ignored%s", self._document.where(name), did_you_mean(name, SECTIONS)
                )
        if values.get("connection_settings") is None:
            raise self._error("", "the section 'connection_settings' is missing; it says how to connect")
        kind = values.get("connection_type", "normal")
        if kind not in KINDS:
            raise self._error("connection_type", f"{kind!r} is not one of {', '.join(KINDS)}")
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

    def _section(self, name: str) -> Mapping[str, object]:
        section = self._document.values.get(name)
        if section is None:
            return {}
        if not isinstance(section, Mapping):
            raise self._error(name, f"expected keys and values, found {describe_type(section)}")
        for key in section:
            if not isinstance(key, str):
                raise self._error(name, f"a key must be text, not {key!r}")
        return section

    def _unknown(self, path: str, key: str, known: Iterable[str]) -> None:
        logger.warning("%s: unknown key ignored%s", self._document.where(path), did_you_mean(key, known))

    def _connection(self, section: Mapping[str, object]) -> tuple[dict[str, str], dict[str, object]]:
        known = libpq_keywords()
        connect: dict[str, str] = {}
        arguments: dict[str, object] = {}
        # First, so that the other keys replace parts of it, whatever their order in the file.
        if section.get("conninfo"):
            connect.update(self._conninfo("connection_settings.conninfo", section["conninfo"]))
        for key, value in section.items():
            path = f"connection_settings.{key}"
            if key == "prepare_threshold" and value is None:
                arguments[key] = None  # for psycopg: never prepare
            if value is None or value == "" or key == "conninfo":
                continue
            if key in ("user", "password") and callable(value):
                connect.pop(key, None)  # the one from conninfo
                arguments[key] = value
            elif key in known:
                connect[key] = self._keyword(path, key, value)
            elif key in ARGUMENTS or key in OURS:
                arguments[key] = self._argument(path, key, value)
            else:
                self._unknown(path, key, known | {*ARGUMENTS, *OURS})
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
        text = self._text(path, "conninfo", value)
        try:
            parts = {key: str(item) for key, item in conninfo_to_dict(text).items() if item is not None}
        except ProgrammingError:  # libpq's message quotes the string, and with it a password
            cure = "pass resolve_env=True (--resolve-env) to resolve the reference in it"
            shown = f"; {cure}" if self._is_literal(text) else ""
            raise self._error(path, f"not a valid connection string or URL{shown}") from None
        for key, part in parts.items():
            problem = _problem(KEYWORDS.get(key, PLAIN), part) if part else None
            if problem and "${" not in part:
                raise self._error(
                    path,
                    f"its {key} {problem}; in a URL, ':', '/' and '@' of a password are written as %3A, %2F and %40",
                )
        return parts

    def _keyword(self, path: str, key: str, value: object) -> str:
        keyword = KEYWORDS.get(key, PLAIN)
        if isinstance(value, list) and keyword.plural:
            return ",".join(self._keyword(f"{path}[{i}]", key, item) for i, item in enumerate(value))
        text = self._text(path, key, int(value) if isinstance(value, bool) else value)  # libpq's switches are 0 and 1
        if self._is_literal(text):
            return text
        problem = _problem(keyword, text)
        if problem:
            raise self._error(path, f"{'the value' if keyword.hidden else repr(text)} {problem}")
        return text.strip() if keyword.kind == "number" else text

    def _text(self, path: str, key: str, value: object) -> str:
        """Return *value* as text that libpq can be given."""
        if isinstance(value, Mapping) and ("from_env" in value or "from_file" in value):
            raise self._error(path, "a from_env or from_file reference needs resolve_env=True (--resolve-env)")
        if not isinstance(value, (str, int, float)):
            raise self._error(path, f"expected text or a number, found {describe_type(value)}")
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

    def _check_characters(self, path: str, key: str, text: str) -> None:
        shown = "the value" if is_sensitive(key) else repr(redact_text(text))
        if "\0" in text:
            raise self._error(path, f"{shown} holds a NUL character")
        try:
            text.encode()
        except UnicodeEncodeError:  # bytes in the environment that are not UTF-8, or half of a surrogate pair
            raise self._error(path, f"{shown} holds what is not a character in UTF-8; encode it as UTF-8") from None

    def _argument(self, path: str, key: str, value: object) -> object:
        if key == "command_timeout":
            return self._seconds(path, key, value)
        if key in ("autocommit", "pgbouncer"):
            return self._boolean(path, value)
        if key == "prepare_threshold":
            return self._whole_number(path, value, least=0)
        if isinstance(value, (str, int, float, list, dict)):
            raise self._only_python(path)
        return value

    def _settings(self, name: str) -> dict[str, str]:
        settings: dict[str, str] = {}
        for key, value in self._section(name).items():
            path = f"{name}.{key}"
            if not _PARAMETER_NAME.match(key):
                raise self._error(path, f"{key!r} is not the name of a server parameter, such as 'statement_timeout'")
            if value is None:
                continue
            items = value if isinstance(value, list) else [value]
            if any(not isinstance(item, (str, int, float)) for item in items):
                raise self._error(path, f"expected text, a number or a boolean, found {describe_type(value)}")
            # Booleans and lists as PostgreSQL takes them: true, false, and commas as in search_path.
            texts = [str(item).lower() if isinstance(item, bool) else str(item) for item in items]
            for text in texts:
                self._check_characters(path, key, text)
            # The server ignores the case of names: of two spellings the last replaces the other.
            settings[key.lower()] = ", ".join(texts)
        return settings

    def _pool(self, name: str) -> PoolSettings:
        values: dict[str, Any] = {}
        for key, value in self._section(name).items():
            path = f"{name}.{key}"
            if key not in PoolSettings.__dataclass_fields__:
                self._unknown(path, key, PoolSettings.__dataclass_fields__)
            elif value is not None:
                values[key] = self._pool_value(path, key, value)
        max_size = values.get("max_size")
        # A small max_size alone must not be refused because of the default min_size.
        if max_size is not None and "min_size" not in values:
            values["min_size"] = min(PoolSettings.min_size, max_size)
        settings = PoolSettings(**values)
        if max_size is not None and settings.min_size > max_size:
            raise self._error(
                f"{name}.min_size", f"min_size ({settings.min_size}) is larger than max_size ({max_size})"
            )
        if max_size is None and settings.min_size == 0:
            raise self._error(f"{name}.min_size", "a pool with min_size 0 needs a max_size of at least 1")
        return settings

    def _pool_value(self, path: str, key: str, value: object) -> object:
        if key in ("min_size", "max_size", "max_waiting", "num_workers"):
            return self._whole_number(path, value, least=1 if key in ("max_size", "num_workers") else 0)
        if key in ("timeout", "max_lifetime", "max_idle", *_MAY_BE_ZERO):
            return self._seconds(path, key, value)
        if key == "clean_on_return" and value == "always":
            return value
        if key in ("open", "close_returns", "check_on_checkout", "clean_on_return"):
            return self._boolean(path, value)
        if key == "name":
            if not isinstance(value, str):
                raise self._error(path, f"expected text, found {describe_type(value)}")
        elif key == "kwargs":
            if not isinstance(value, Mapping):
                raise self._error(path, f"expected keys and values, found {describe_type(value)}")
        elif not callable(value):
            raise self._only_python(path)
        return value

    def _boolean(self, path: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise self._error(path, f"{value!r} is neither true nor false")
        return value

    def _whole_number(self, path: str, value: object, *, least: int) -> int:
        if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
            value = int(value)  # a resolved ${VAR} is text
        if not isinstance(value, int) or isinstance(value, bool) or value < least:  # bool is a subclass of int
            raise self._error(path, f"{value!r} is not a whole number of at least {least}")
        return value

    def _seconds(self, path: str, key: str, value: object) -> float:
        try:
            seconds = math.nan if isinstance(value, bool) else float(cast("str | float", value))
        except (TypeError, ValueError):
            seconds = math.nan
        # Written so that it is true for NaN, which compares as false with everything.
        if not 0 < seconds < math.inf and not (key in _MAY_BE_ZERO and seconds == 0):
            raise self._error(path, f"{value!r} is not a number of seconds greater than 0")
        return seconds

    def _only_python(self, path: str) -> ConfigError:
        return self._error(path, "only Python code can give this; use get_database_connection_from_dict()")


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
