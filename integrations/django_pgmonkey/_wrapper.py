"""A connection of Django that knows the YAML file of its alias, and the pool that is open for it."""

from __future__ import annotations

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import NO_DB_ALIAS
from psycopg import IsolationLevel

from pgmonkey import ConfigError, ConnectionHandle, Database

from ._pools import Pool, pools
from ._settings import Config, ConnectionParams, DatabaseSettings, Settings, literal
from ._transaction import TransactionalWrapper


class PooledWrapper(TransactionalWrapper):
    """Django's wrapper with the settings of the YAML file; `base.DatabaseWrapper` borrows and gives back."""

    def __init__(self, settings_dict: DatabaseSettings, alias: str = "default") -> None:
        super().__init__(settings_dict, alias)
        self._params: tuple[Config, object, ConnectionParams] | None = None
        self._settings = Settings(alias, settings_dict)

    @property
    def settings(self) -> Settings:
        """The settings of this alias as they are now; tests replace them."""
        own = self._hidden if self._hidden is not None and self.settings_dict is self._shown else self.settings_dict
        if self._settings.settings is not own:
            self._settings = Settings(self.alias, own)
        return self._settings

    @property
    def pool(self) -> Pool | None:
        """The pool for the settings of this alias; None for the connection without one, which makes test databases."""
        if self.alias == NO_DB_ALIAS:
            return None
        self._check_max_age()
        config = self.settings.config(self.timezone_name)
        return pools.show(self.alias, config, self._pool_for(config))

    @property
    def pool_name(self) -> str:
        """What logs, metrics and ``pgmonkey top`` call the pool."""
        return Database(literal(self.settings.config(self.timezone_name)), resolve_env=True).pool_name

    def close_pool(self) -> None:
        """Close the pool of this alias; it stays open for others in the process with the same configuration."""
        pools.close(self.alias)

    def get_connection_params(self) -> ConnectionParams:
        """Return the arguments of psycopg's ``connect()``: the YAML file's settings, overridden by Django's."""
        current = self.settings
        config, zone, known = current.config(self.timezone_name), (self.timezone, settings.USE_TZ), self._params
        # Made once for each state of the settings: Django asks for them at every borrow.
        if known is None or known[0] is not config or known[1] != zone:
            current.require()
            self._set_isolation_level()
            if self.alias != NO_DB_ALIAS:
                self._check_max_age()
            known = self._params = config, zone, current.for_psycopg(super().get_connection_params())
        return known[2].copy()

    def _check_max_age(self) -> None:
        if self.settings_dict["OPTIONS"].get("pool") and self.settings_dict.get("CONN_MAX_AGE", 0) != 0:
            raise ImproperlyConfigured("Pooling doesn't support persistent connections.")

    def _pool_for(self, config: Config) -> ConnectionHandle:
        handle = pools.known(self.alias, config)
        if handle is None:
            try:
                with self.wrap_database_errors:
                    handle = pools.get(self.alias, config, self.deadline)
            except ConfigError as error:
                raise ImproperlyConfigured(f"DATABASES[{self.alias!r}]: {error}") from error
        return handle

    def _set_isolation_level(self) -> None:
        level = self.settings_dict["OPTIONS"].get("isolation_level", IsolationLevel.READ_COMMITTED)
        try:
            self.isolation_level = level if isinstance(level, IsolationLevel) else IsolationLevel(level)
        except ValueError:
            raise ImproperlyConfigured(
                f"Invalid transaction isolation level {level} specified. Use one of the psycopg.IsolationLevel values."
            ) from None
