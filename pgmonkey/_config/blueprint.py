"""Decide, without I/O, how to connect and how to pool for one kind of connection."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import iscoroutinefunction
from typing import Any

from psycopg import pq
from psycopg.conninfo import make_conninfo

from ..errors import ConfigError
from .redaction import Unpicklable
from .schema import CREDENTIALS, HOOKS, Config, Kind, PoolSettings, libpq_keywords
from .telemetry import KEYS, TelemetrySettings

# Used when neither the configuration, nor the environment, nor a service file sets them, in seconds; tcp_user_timeout
# is in milliseconds.  By default psycopg gives up a connection attempt after 130 seconds, and Linux notices a dead peer
# after a quarter of an hour when data is unacknowledged, and after more than two hours when the connection is idle.
_TIMEOUTS = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}

_OPTION_SPECIAL = re.compile(r"([\\\s])")


@dataclass(frozen=True)
class Blueprint(Unpicklable):
    """How to connect, and how to pool the connections.

    ``connect`` holds the arguments of psycopg's ``connect()``, ``max_size`` is in connections, ``command_timeout`` in
    seconds.  With ``single``, all borrowers share one connection.  ``refresh`` returns the credentials with the present
    values of their references, and is None without references.
    """

    name: str
    connect: Mapping[str, Any] = field(repr=False)
    autocommit: bool
    settings: PoolSettings
    max_size: int
    single: bool
    credentials: Mapping[str, object] = field(repr=False)
    refresh: Callable[[], Mapping[str, object]] | None
    command_timeout: float | None
    pgbouncer: bool
    # Whether the configuration does not tell, so that a pooler is to be noticed.
    notice_pooler: bool
    # SQL for the beginning of each transaction: behind PgBouncer a SET would reach other clients.
    transaction_settings: bytes = field(repr=False)
    telemetry: TelemetrySettings


def blueprint(config: Config, kind: Kind) -> Blueprint:
    """Return the blueprint of a connection or pool of *kind*."""
    is_async = kind in ("async", "async_pool")
    single = kind in ("normal", "async")
    settings = config.async_pool_settings if is_async else config.pool_settings
    if not is_async:
        _refuse_coroutine_functions(config, settings)
    if single:
        settings = replace(settings, min_size=1, max_size=1, max_lifetime=math.inf, max_idle=math.inf)
    arguments = dict(config.arguments)
    behind_pgbouncer = arguments.pop("pgbouncer", None)
    command_timeout = arguments.pop("command_timeout", None)
    told = {key: arguments.pop(key) for key in KEYS if key in arguments}
    # What is in kwargs comes before the same in connection_settings, as in psycopg_pool.
    connect: dict[str, object] = {**config.connect, **arguments, **settings.kwargs}
    elsewhere = said_elsewhere(config.connect)
    application = connect.get("application_name") or elsewhere.get("application_name", "")
    telemetry = TelemetrySettings(**told, application=str(application))
    # An older libpq, or one for another system, refuses keywords that it does not know.
    for keyword in libpq_keywords().intersection(_TIMEOUTS):
        # Given also where it is libpq's to find: psycopg waits for a connection itself, and asks no service file.
        connect.setdefault(keyword, elsewhere.get(keyword) or _TIMEOUTS[keyword])
    parameters = config.async_settings if is_async else config.sync_settings
    transaction_settings = b""
    if behind_pgbouncer:
        transaction_settings = _set_locally(parameters)
        # Unless the file asks for it, no statement is prepared: PgBouncer before 1.21 does not follow them.
        connect.setdefault("prepare_threshold", None)
    elif parameters:
        # Given to libpq, they replace those that it would find.
        options = connect.get("options") or elsewhere.get("options", "")
        connect["options"] = startup_options(str(options), parameters)
    # Not for connect(): the pool keeps its connections in autocommit, and lends them in the mode that is asked for.
    autocommit = bool(connect.pop("autocommit", False))
    reload = config.reload
    return Blueprint(
        name=settings.name or f"pgmonkey-{config.digest[:8]}-{kind}",
        connect=connect,
        autocommit=autocommit,
        settings=settings,
        max_size=settings.min_size if settings.max_size is None else settings.max_size,
        single=single,
        credentials=_credentials(config, settings),
        refresh=None if reload is None else lambda: _credentials(reload(), settings),
        command_timeout=command_timeout,
        pgbouncer=bool(behind_pgbouncer),
        notice_pooler=behind_pgbouncer is None,
        transaction_settings=transaction_settings,
        telemetry=telemetry,
    )


def _refuse_coroutine_functions(config: Config, settings: PoolSettings) -> None:
    """Raise `ConfigError` for what nobody would await in threads: as a `check`, it would let everything pass."""
    for name in HOOKS:
        function = getattr(settings, name)
        while isinstance(function, partial):
            function = function.func
        if iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
            raise ConfigError(
                f"{config.source}: pool_settings.{name}: a coroutine function is never awaited in a pool for threads; "
                "move it to async_pool_settings"
            )


def said_elsewhere(connect: Mapping[str, str]) -> dict[str, str]:
    """Return the keywords and values that libpq takes from the environment and from a service file."""
    service = {key: connect[key] for key in ("service", "servicefile") if key in connect}
    options = pq.Conninfo.get_defaults()
    if service:
        # libpq looks the service up, and then refuses to connect before it has looked at a host.
        text = make_conninfo(**service, sslmode="pgmonkey only asks")
        options = pq.PGconn.connect_start(text.encode()).info
    return {option.keyword.decode(): option.val.decode() for option in options if option.val and not option.compiled}


def _credentials(config: Config, settings: PoolSettings) -> dict[str, object]:
    everything = {**config.connect, **config.arguments, **settings.kwargs}
    return {key: everything[key] for key in CREDENTIALS if key in everything}


def _set_locally(parameters: Mapping[str, str]) -> bytes:
    """Return a statement that sets *parameters* until the end of the transaction; empty when there are none."""
    # set_config() rather than SET LOCAL: one statement for all, and every value is a string literal.
    calls = ("set_config(E'{}', E'{}', true)".format(*map(_literal, item)) for item in parameters.items())
    return b"SELECT " + ", ".join(calls).encode() if parameters else b""


def _literal(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


def startup_options(options: str, parameters: Mapping[str, str]) -> str:
    """Return libpq's ``options`` keyword with *parameters* added: they cost no round trip and survive RESET.

    White space separates arguments, a backslash escapes (``options`` under "Parameter Key Words" in libpq's manual).
    """
    added = ("-c {}={}".format(name, _OPTION_SPECIAL.sub(r"\\\1", value)) for name, value in parameters.items())
    return " ".join(filter(None, [options, *added]))
