"""``manage.py pgmonkey ping``, ``stats`` and ``config``."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from time import perf_counter

import yaml
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import connections
from django.db.utils import Error

from django_pgmonkey._wrapper import PooledWrapper
from pgmonkey import redact_config, telemetry

_SERVER = (
    "SELECT current_setting('server_version'), current_database(), current_user,"
    " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,"
    " (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')"
)


Server = tuple[str, str, str, int, int]
"""What a server says of itself: version, database, user, connections that it allows, and that are in use."""


class Command(BaseCommand):
    """Show the databases of this project."""

    help = "Show the databases of this project: ping them, count their connections, print their configuration."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the subcommand and the option ``--database``."""
        parser.add_argument("what", choices=["ping", "stats", "config"])
        parser.add_argument("--database", help="the alias of one database; all by default")

    def handle(self, *args: object, what: str, database: str | None, **options: object) -> None:
        """Run the command."""
        if database is not None and database not in connections:
            raise CommandError(f"{database!r} is not in DATABASES, which has {', '.join(connections)}")
        for alias in [database] if database else connections:
            try:
                wrapper = connections[alias]
                if isinstance(wrapper, PooledWrapper):
                    getattr(self, f"_{what}")(wrapper)
                elif database:
                    raise CommandError(f"the ENGINE of {database} is not django_pgmonkey")
            except (Error, ImproperlyConfigured) as error:
                raise CommandError(f"{alias}: {' '.join(str(error).split())}") from None

    def _ping(self, wrapper: PooledWrapper) -> None:
        version, dbname, user, *_ = self._ask(wrapper)
        # The second query is measured, because the first may have to connect.
        started = perf_counter()
        self._ask(wrapper)
        milliseconds = (perf_counter() - started) * 1000
        self.stdout.write(
            f"{wrapper.alias}: PostgreSQL {version}, {dbname} as {user}, answers in {milliseconds:.1f} ms"
        )

    def _stats(self, wrapper: PooledWrapper) -> None:
        *_, allowed, used = self._ask(wrapper)
        self.stdout.write(f"{wrapper.alias}: {used} of {allowed} connections of the server are in use")
        running = telemetry.counters(wrapper.pool_name)
        if running:
            self.stdout.write(f"  the processes that run ({', '.join(map(str, sorted(running)))}) together:")
        else:
            self.stdout.write(
                "  the pool of this command, which it has opened just now; each process of the server has its own:"
            )
        for counter, value in (wrapper.pool.stats() if wrapper.pool is not None else {}).items():
            total = sum(own[counter] for own in running.values()) if running else value
            self.stdout.write(f"  {counter:<20} {total}")

    def _config(self, wrapper: PooledWrapper) -> None:
        self.stdout.write(f"# {wrapper.alias}")
        config = dict(wrapper.settings.config(wrapper.timezone_name))
        user = config["connection_settings"].get("user")
        if callable(user):  # it reads the user anew for each connection
            config["connection_settings"] = {**config["connection_settings"], "user": user()}
        config = redact_config(config)
        self.stdout.write(yaml.safe_dump(_writable(config), sort_keys=False))

    def _ask(self, wrapper: PooledWrapper) -> Server:
        with wrapper.cursor() as cursor:
            cursor.execute(_SERVER)
            server: Server = cursor.fetchone()
            return server


def _writable(value: object) -> object:
    """Return *value* as YAML can have it: settings and functions that only Python can give are named."""
    if isinstance(value, Mapping):
        return {str(key): _writable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_writable(item) for item in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    return f"<{getattr(value, '__qualname__', type(value).__qualname__)}>"
