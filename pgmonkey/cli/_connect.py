"""``pgmonkey pgconfig test``: connect as a configuration says, and report."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from contextlib import AsyncExitStack, ExitStack
from itertools import pairwise
from time import monotonic, perf_counter, sleep
from typing import NamedTuple

import psycopg

from .._config.redaction import redact_text
from .._config.schema import KINDS, Config, Kind
from ..errors import ConfigError, PgmonkeyError, ServerUnavailableError
from ..manager import AsyncKind, PGConnectionManager, SyncKind
from ._check import examine
from ._given import existing, flags
from ._terminal import documentation, paint

_TLS = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
_ROUND_TRIPS = 5
# What to do next, by the words of libpq or of the server.  With True, waiting does not help.
_NEXT = (
    (r"\$\{", True, "resolve the references in the file with --resolve-env"),
    (
        r"failed to resolve host|could not translate host name|was not resolved",
        False,
        "check the spelling of host, and that this machine can resolve it",
    ),
    (
        r"Connection refused|closed the connection unexpectedly",
        False,
        "no server listens there; in a container, 127.0.0.1 is the container itself; "
        "'pgmonkey pgconfig show' shows where the address comes from",
    ),
    (r"Is the server running locally", False, "no server listens on that socket; to use TCP, set host"),
    (
        r"timeout expired|timed out|did not answer",
        False,
        "no answer: check the address, and whether a firewall blocks this machine",
    ),
    (r"starting up|shutting down|recovery", False, "the server is not ready; --wait 60 waits for it"),
    (
        r"too many clients|connection slots are reserved",
        False,
        "the server is out of connections: run fewer processes, lower max_size, or raise its max_connections",
    ),
    (
        r"password authentication failed|no password supplied",
        True,
        "check user and password; 'pgmonkey pgconfig show' shows where they come from",
    ),
    (r"pg_hba\.conf", True, "the server does not allow this connection: add an entry to its pg_hba.conf, or use TLS"),
    (r"database .* does not exist", True, "create it with createdb, or use another dbname"),
    (r"role .* does not exist", True, "create it with createuser, or use another user"),
    (r"does not support SSL", True, "enable TLS on the server, or use sslmode 'prefer', which also works without"),
    (
        r"certificate verify failed|root certificate file|server certificate for",
        True,
        "set sslrootcert to the CA's certificate, and host to the name in the server's certificate",
    ),
    (
        r"configuration parameter|invalid value for parameter",
        True,
        "check the name in sync_settings and async_settings; not every server has every parameter",
    ),
)


class Result(NamedTuple):
    """What one kind of connection was seen to be; times in milliseconds."""

    kind: Kind
    dbname: str
    host: str
    port: int
    user: str
    server_version: str
    tls: str | None
    connect_ms: float
    round_trip_ms: float
    pool_min: int
    pool_max: int
    held: int


def run(options: argparse.Namespace) -> int:
    """Connect with one kind, or all; print a line for each, or JSON."""
    unknown = examine(existing(options), options.resolve_env, options.allow_sensitive_defaults, options.profile).unknown
    if unknown:
        more = f" (and {len(unknown) - 1} more: pgmonkey pgconfig check)" if len(unknown) > 1 else ""
        raise ConfigError(unknown[0] + more)
    manager = PGConnectionManager()  # one, so that the file is read once, and what it logs is said once
    config = manager.load(existing(options), **flags(options))
    asked: str | None = options.connection_type
    kinds: list[Kind] = [kind for kind in KINDS if asked == "all" or kind == (asked or config.kind)]
    results: list[Result] = []
    try:
        for kind in kinds:
            results.append(_patiently(manager, options, kind))
            if not options.json:
                _print(config, results[-1])
    except (psycopg.Error, PgmonkeyError, OSError) as error:
        text = " ".join(redact_text(str(error)).split())
        step = _next_step(text)[1]
        if not options.json:
            where = "" if text.startswith(config.source) else f"{config.source}: "
            known = ServerUnavailableError if isinstance(error, ServerUnavailableError) else PgmonkeyError
            raise known(f"{where}{text}; {step}" if step else where + text) from None
        print(json.dumps({**_report(config, results), "error": text, "next_step": step or documentation("cli.md")}))
        return 1
    if options.json:
        print(json.dumps(_report(config, results)))
    return 0


def _report(config: Config, results: list[Result]) -> dict[str, object]:
    return {"configuration": config.source, "connections": [result._asdict() for result in results]}


def _print(config: Config, result: Result) -> None:
    held = f", {result.held} connections held at once" if result.held > 1 else ""
    pool = f" (of {result.pool_min} to {result.pool_max})" if result.held > 1 else ""
    print(
        f"{paint('green', config.source, sys.stdout)}: {result.kind}: connected to {result.dbname} at "
        f"{result.host}:{result.port} as {result.user} (PostgreSQL {result.server_version}, {result.tls or 'no TLS'}) "
        f"in {result.connect_ms:.0f} ms, round trip {result.round_trip_ms:.1f} ms{held}{pool}"
    )


def _next_step(text: str) -> tuple[bool, str]:
    """Return whether it is of no use to wait, and what to do next; empty where nobody knows."""
    return next(((final, step) for pattern, final, step in _NEXT if re.search(pattern, text)), (False, ""))


def _patiently(manager: PGConnectionManager, options: argparse.Namespace, kind: Kind) -> Result:
    """Connect; where the server is not there, try for as long as ``--wait`` says."""
    give_up = monotonic() + options.wait
    waiting = False
    while True:
        try:
            if kind == "async" or kind == "async_pool":
                return asyncio.run(_connect_async(manager, options, kind))
            return _connect(manager, options, kind)
        except psycopg.OperationalError as error:
            text = " ".join(redact_text(str(error)).split())
            if monotonic() >= give_up or _next_step(text)[0]:
                raise
            if not waiting:
                print(f"waiting for at most {options.wait:g} s: {text}", file=sys.stderr)
            waiting = True
            manager.clear_cache()
            sleep(min(0.5, max(give_up - monotonic(), 0)))


def _result(
    connection: psycopg.Connection[object] | psycopg.AsyncConnection[object],
    kind: Kind,
    tls: object,
    times: list[float],
    stats: dict[str, int],
    held: int,
) -> Result:
    info = connection.info
    version = (info.parameter_status("server_version") or "").partition(" ")[0]  # without the name of its package
    connecting = (times[1] - times[0]) * 1000
    # The shortest: what is above is other work of this machine.
    trip = min(later - earlier for earlier, later in pairwise(times[1:])) * 1000
    return Result(
        *(kind, info.dbname, info.host, info.port, info.user, version, tls if isinstance(tls, str) else None),
        *(round(connecting, 3), round(trip, 3), stats["pool_min"], stats["pool_max"], held),
    )


def _connect(manager: PGConnectionManager, options: argparse.Namespace, kind: SyncKind) -> Result:
    times = [perf_counter()]
    handle = manager.get_database_connection(existing(options), kind, **flags(options))
    with ExitStack() as stack:
        # Two at once, to see that the pool really makes more than one.
        held = min(handle.stats()["pool_max"], 2)
        connections = [stack.enter_context(handle.connection()) for _ in range(held)]
        # PgBouncer takes a connection to the server only when a query needs it.
        for connection in connections:
            connection.execute("SELECT 1")
        for _ in range(1 + _ROUND_TRIPS):
            times.append(perf_counter())
            connections[0].execute("SELECT 1")
        tls = connections[0].execute(_TLS).fetchone() if connections[0].pgconn.ssl_in_use else None
        result = _result(connections[0], kind, tls and next(iter(tls)), times, handle.stats(), held)
    manager.clear_cache()
    return result


async def _connect_async(manager: PGConnectionManager, options: argparse.Namespace, kind: AsyncKind) -> Result:
    times = [perf_counter()]
    handle = await manager.get_database_connection(existing(options), kind, **flags(options))
    async with AsyncExitStack() as stack:
        held = min(handle.stats()["pool_max"], 2)
        connections = [await stack.enter_async_context(handle.connection()) for _ in range(held)]
        for connection in connections:
            await connection.execute("SELECT 1")
        for _ in range(1 + _ROUND_TRIPS):
            times.append(perf_counter())
            await connections[0].execute("SELECT 1")
        cursor = await connections[0].execute(_TLS) if connections[0].pgconn.ssl_in_use else None
        tls = await cursor.fetchone() if cursor else None
        result = _result(connections[0], kind, tls and next(iter(tls)), times, handle.stats(), held)
    # Inside the event loop, because the pool cannot close its connections properly after it.
    await manager.clear_cache_async()
    return result
