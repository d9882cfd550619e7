"""``manage.py dbshell``: psql with the settings of the YAML file, in its environment, not on its command line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psycopg.pq
from django.db.backends.postgresql.client import DatabaseClient as PostgresClient


class DatabaseClient(PostgresClient):
    """Runs psql.  Other users of the machine see the command line of a process, but not its environment."""

    connection: Any

    def settings_to_cmd_args_env(  # type: ignore[override]  # Django calls it on the instance
        self, settings_dict: dict[str, Any], parameters: Iterable[str]
    ) -> tuple[list[str], dict[str, str]]:
        """Return psql's arguments and environment."""
        self.connection.settings.require()
        settings = self.connection.settings.connection_settings()
        if "dbname" not in settings and "service" not in settings:
            settings["dbname"] = "postgres"
        names = {option.keyword.decode(): option.envvar for option in psycopg.pq.Conninfo.get_defaults()}
        variables = {key: names[key] for key in settings if names.get(key)}
        env = {variable.decode(): str(settings[key]) for key, variable in variables.items() if variable is not None}
        return [self.executable_name, *parameters], env
