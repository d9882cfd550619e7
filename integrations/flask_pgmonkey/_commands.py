"""``flask pgmonkey ping``, ``stats`` and ``check``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
import psycopg
from flask import current_app
from flask.cli import AppGroup
from psycopg.rows import tuple_row

from pgmonkey import Database, PgmonkeyError, telemetry

from ._database import EXTENSION

# Allowed are the connections that the server does not keep for superusers.
_SERVER = (
    "SELECT current_setting('server_version'), current_database(), current_user,"
    " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,"
    " (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')"
)


Server = tuple[str, str, str, int, int]
"""What a server says of itself: version, database, user, connections that it allows, and that are in use."""

commands = AppGroup("pgmonkey", help="The databases of this application.")


@commands.command()
def ping() -> None:
    """Connect to each database and show how long it takes to answer."""
    for name, database in _databases():
        with _reported(name):
            version, dbname, user, *_ = _ask(database)
            milliseconds = database.ping() * 1000
            click.echo(f"{name}: PostgreSQL {version}, {dbname} as {user}, answers in {milliseconds:.1f} ms")


@commands.command()
def stats() -> None:
    """Show the counters of each pool of the running application, and how many connections its server has."""
    for name, database in _databases():
        with _reported(name):
            *_, allowed, used = _ask(database)
            click.echo(f"{name}: {used} of {allowed} connections of the server are in use")
            running = telemetry.counters(database.pool_name)
            if running:
                click.echo(f"  the processes that run ({', '.join(map(str, sorted(running)))}) together:")
            for counter, value in database.stats().items():
                total = sum(own[counter] for own in running.values()) if running else value
                click.echo(f"  {counter:<20} {total}")


@commands.command()
def check() -> None:
    """Check each database's configuration against its server; exit with status 1 where something is wrong."""
    for name, database in _databases():
        with _reported(name):
            *_, allowed, _ = _ask(database)
            largest = database.stats()["pool_max"]
            if largest > allowed:
                raise PgmonkeyError(f"max_size is {largest}, but the server allows {allowed} connections")
            click.echo(f"{name}: OK; at most {largest} connections per process, the server allows {allowed}")


def _databases() -> Iterator[tuple[str, Database[object]]]:
    for key, database in current_app.extensions[EXTENSION].items():
        yield key or "default", database


def _ask(database: Database[object]) -> Server:
    with database.connection() as connection:
        # Not the application's own rows, which may be of any kind.
        (server,) = connection.cursor(row_factory=tuple_row).execute(_SERVER)
    return server


@contextmanager
def _reported(name: str) -> Iterator[None]:
    try:
        yield
    except (PgmonkeyError, psycopg.Error) as error:
        raise click.ClickException(f"{name}: {' '.join(str(error).split())}") from None
