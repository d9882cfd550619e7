"""``pgmonkey pgconfig``: create, test and use configuration files."""

from __future__ import annotations

import argparse
import asyncio
import os
from contextlib import AsyncExitStack, ExitStack
from importlib import resources
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, cast

import psycopg

from .._config.document import is_url
from .._config.schema import KINDS, Config, Kind
from ..errors import ConfigError
from ..manager import AsyncKind, PGConnectionManager, Reading, SyncKind
from . import _codegen

if TYPE_CHECKING:
    from argparse import _SubParsersAction  # argparse has no public name for it


def add_commands(groups: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the group ``pgconfig`` to the command line."""
    group = groups.add_parser("pgconfig", help="create, test and use configuration files")
    commands = group.add_subparsers(title="commands", dest="pgconfig_command", required=True, metavar="COMMAND")

    create = commands.add_parser("create", help="write a configuration file to start from")
    create.add_argument("--type", choices=["pg"], default="pg", help="kind of database (default: pg)")
    _add_file(create)
    create.set_defaults(run=_create)

    test = commands.add_parser("test", help="connect as a configuration file says, and report")
    _add_file(test)
    _add_options(test)
    test.set_defaults(run=_test)

    code = commands.add_parser("generate-code", help="print Python code that connects with a configuration file")
    _add_file(code)
    _add_options(code)
    code.add_argument(
        "--library",
        choices=["pgmonkey", "psycopg"],
        default="pgmonkey",
        help="what the code uses (default: pgmonkey); psycopg stands for psycopg and psycopg_pool alone",
    )
    code.set_defaults(run=_generate_code)


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--connconfig", "--filepath", dest="path", required=True, help="path of the configuration file, or a URL"
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connection-type", choices=KINDS, help="override the file's connection_type")
    parser.add_argument("--profile", help="the one of the file's profiles to use (default: the one called default)")
    parser.add_argument(
        "--resolve-env", action="store_true", help="resolve ${VAR}, from_env and from_file references in the file"
    )
    parser.add_argument(
        "--allow-sensitive-defaults",
        action="store_true",
        help="allow ${VAR:-default} for passwords and the like (with --resolve-env)",
    )


def _create(options: argparse.Namespace) -> int:
    if is_url(options.path):
        raise ConfigError("a URL was given as the file to write; give a path")
    path = Path(options.path)
    template = resources.files("pgmonkey").joinpath("cli/template.yaml").read_text(encoding="utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Private, because the user will write a password into it; "x" leaves an existing file alone.
        with open(path, "x", encoding="utf-8", opener=_open_private) as stream:
            stream.write(template)
    except FileExistsError:
        raise ConfigError(f"{path}: the file exists already and was left as it is") from None
    print(f"{path}: written; edit it, then: pgmonkey pgconfig test --connconfig {path}")
    return 0


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _flags(options: argparse.Namespace) -> Reading:
    names = ("resolve_env", "allow_sensitive_defaults", "profile")
    return cast("Reading", {name: getattr(options, name) for name in names if getattr(options, name)})


def _load(options: argparse.Namespace, manager: PGConnectionManager) -> Config:
    return manager.load(options.path, **_flags(options))


def _test(options: argparse.Namespace) -> int:
    manager = PGConnectionManager()
    # Before the clock starts: the time in the report is that of connecting.
    config = _load(options, manager)
    kind: Kind = options.connection_type or config.kind
    started = perf_counter()
    if kind == "async" or kind == "async_pool":
        info, held = asyncio.run(_connect_async(options, manager, kind))
    else:
        info, held = _connect(options, manager, kind)
    elapsed = (perf_counter() - started) * 1000
    held_text = f", {held} connections held at once" if held > 1 else ""
    print(f"{config.source}: {kind}: connected to {info} in {elapsed:.0f} ms{held_text}")
    return 0


def _describe(connection: psycopg.Connection[object] | psycopg.AsyncConnection[object]) -> str:
    info = connection.info
    version = info.parameter_status("server_version")
    return f"{info.dbname} at {info.host}:{info.port} as {info.user} (PostgreSQL {version})"


def _connect(options: argparse.Namespace, manager: PGConnectionManager, kind: SyncKind) -> tuple[str, int]:
    handle = manager.get_database_connection(options.path, kind, **_flags(options))
    with ExitStack() as stack:
        # Two at once, to see that the pool really makes more than one.
        held = min(handle.stats()["pool_max"], 2)
        connections = [stack.enter_context(handle.connection()) for _ in range(held)]
        # PgBouncer takes a connection to the server only when a query needs it.
        for connection in connections:
            connection.execute("SELECT 1")
        description = _describe(connections[0])
    manager.clear_cache()
    return description, held


async def _connect_async(options: argparse.Namespace, manager: PGConnectionManager, kind: AsyncKind) -> tuple[str, int]:
    handle = await manager.get_database_connection(options.path, kind, **_flags(options))
    async with AsyncExitStack() as stack:
        held = min(handle.stats()["pool_max"], 2)
        connections = [await stack.enter_async_context(handle.connection()) for _ in range(held)]
        for connection in connections:
            await connection.execute("SELECT 1")
        description = _describe(connections[0])
    # Inside the event loop, because the pool cannot close its connections properly after it.
    await manager.clear_cache_async()
    return description, held


def _generate_code(options: argparse.Namespace) -> int:
    config = _load(options, PGConnectionManager())
    kind: Kind = options.connection_type or config.kind
    path: str = options.path
    if options.library == "pgmonkey":
        code = _codegen.pgmonkey_code(path, kind, _flags(options))
    else:
        code = _codegen.psycopg_code(path, kind, config, resolve_env=options.resolve_env)
    print(code, end="")
    return 0
