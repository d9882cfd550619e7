"""Check a configuration against the schema: which sections and keys there are, and what each may hold.

The keys of ``connection_settings`` are the keywords of the libpq in use and the arguments of psycopg's ``connect()``;
those of ``pool_settings`` and ``async_pool_settings`` are psycopg_pool's parameters and some of pgmonkey's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, TypeAlias, cast, get_args

from psycopg import ProgrammingError, capabilities, pq
from psycopg.conninfo import conninfo_to_dict

from ..errors import ConfigError
from .document import Document, describe_type
from .redaction import is_sensitive, redact_text

logger = logging.getLogger("pgmonkey")

Kind = Literal["normal", "pool", "async", "async_pool"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_SECTIONS = (
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
class Config:
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


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word.lower(), sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


# The arguments of psycopg.connect() beside libpq's keywords.  The last three cannot be written in YAML.
_ARGUMENTS = ("autocommit", "prepare_threshold", "row_factory", "cursor_factory", "context")
# pgmonkey's own keys, which psycopg does not know.
OURS = ("command_timeout", "pgbouncer")
# Keywords that may change while a pool is open: each new connection is made with their current values.
CREDENTIALS = ("user", "password", "passfile", "sslcert", "sslkey", "sslpassword")
# libpq checks these only when it connects, where the error could not name the line of the file.
_CHOICES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "load_balance_hosts": ("disable", "random"),
    "channel_binding": ("disable", "prefer", "require"),
    "gssencmode": ("disable", "prefer", "require"),
}
_WHOLE_NUMBERS = (
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
)
HOOKS = ("configure", "check", "reset", "reconnect_failed")
"""Functions that a pool calls; of async pools, coroutine functions."""
_MAY_BE_ZERO = ("reconnect_timeout", "open_timeout", "leak_detection_threshold")
# libpq tries several hosts in turn, written with commas ("Specifying Multiple Hosts" in its manual).
_LISTS = ("host", "hostaddr", "port")


class _Checker:
    def __init__(self, document: Document) -> None:
        self._document = document

    def config(self) -> Config:
        values = self._document.values
        # Unknown sections are refused, unknown keys only logged: a newer libpq may know the key.
        for name in values:
            if name not in _SECTIONS:
                raise self._error(str(name), f"unknown section{_did_you_mean(str(name), _SECTIONS)}")
        if values.get("connection_settings") is None:
            raise self._error("", "the section 'connection_settings' is missing")
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
        logger.warning("%s: unknown key ignored%s", self._document.where(path), _did_you_mean(key, known))

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
            elif key in _ARGUMENTS or key in OURS:
                arguments[key] = self._argument(path, key, value)
            else:
                self._unknown(path, key, known | {*_ARGUMENTS, *OURS})
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
        if not isinstance(value, str):
            raise self._error(path, f"expected a connection string or URL, found {describe_type(value)}")
        try:
            return {key: str(item) for key, item in conninfo_to_dict(value).items() if item is not None}
        except ProgrammingError:  # libpq's message quotes the string, and with it a password
            raise self._error(path, "not a valid connection string or URL") from None

    def _keyword(self, path: str, key: str, value: object) -> str:
        if isinstance(value, list) and key in _LISTS:
            return ",".join(self._keyword(f"{path}[{i}]", key, item) for i, item in enumerate(value))
        if isinstance(value, Mapping) and ("from_env" in value or "from_file" in value):
            raise self._error(path, "a from_env or from_file reference needs resolve_env=True (--resolve-env)")
        if isinstance(value, bool):
            value = int(value)  # libpq's switches, such as keepalives, are 0 and 1
        if not isinstance(value, (str, int, float)):
            raise self._error(path, f"expected text or a number, found {describe_type(value)}")
        text = str(value)
        if "\0" in text:
            shown = "the value" if is_sensitive(key) else repr(redact_text(text))
            raise self._error(path, f"{shown} holds a NUL character")
        if "${" in text:
            logger.warning(
                "%s: '${' is taken literally; pass resolve_env=True (--resolve-env) to resolve references",
                self._document.where(path),
            )
            return text
        if key in _CHOICES and text not in _CHOICES[key]:
            raise self._error(path, f"{text!r} is not one of {', '.join(_CHOICES[key])}")
        if key in _WHOLE_NUMBERS and not text.strip().isdecimal():
            raise self._error(path, f"{text!r} is not a whole number of at least 0")
        if key == "port" and not all(part.isdecimal() and 0 < int(part) < 65536 for part in text.split(",")):
            raise self._error(path, f"{text!r} is not a port (1 to 65535)")
        return text

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
            # Booleans and lists as PostgreSQL writes them: on, off, and commas as in search_path.
            texts = ["on" if item is True else "off" if item is False else str(item) for item in items]
            if any("\0" in text for text in texts):
                raise self._error(path, "the value holds a NUL character")
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
            if isinstance(value, str) and value.strip().isdecimal():
                value = int(value)  # a resolved ${VAR} is text
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
            raise self._error(path, f"{value!r} is not true or false")
        return value

    def _whole_number(self, path: str, value: object, *, least: int) -> int:
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


def _identity(value: object) -> str:
    # The address too: two functions of one name may be different closures.
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', '')}.{name}@{id(value)}"
