"""``manage.py dbshell``: psql with the settings of the YAML file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import psycopg.pq
from django.db.backends.postgresql.client import DatabaseClient as PostgresClient

from ._settings import for_libpq

if TYPE_CHECKING:
    from ._settings import DatabaseSettings
    from ._wrapper import PooledWrapper


class DatabaseClient(PostgresClient):
    """Runs psql with all settings in its environment: other users can see the command line of a process."""

    def settings_to_cmd_args_env(  # type: ignore[override]  # Django calls it on the instance
        self, settings_dict: DatabaseSettings, parameters: Iterable[str]
    ) -> tuple[list[str], dict[str, str]]:
        """Return psql's arguments and environment."""
        own = cast("PooledWrapper", self.connection).settings
        own.require()
        settings = for_libpq(own.connection_settings())
        if "dbname" not in settings and "service" not in settings:
            # As Django does; psql alone would take the user's name.
            settings["dbname"] = "postgres"
        names = {option.keyword.decode(): option.envvar for option in psycopg.pq.Conninfo.get_defaults()}
        variables = {key: names[key] for key in settings if names.get(key)}
        env = {
            variable.decode(): str(settings[key]() if callable(settings[key]) else settings[key])
            for key, variable in variables.items()
            if variable is not None and settings[key] is not None
        }
        return [self.executable_name, *parameters], env
