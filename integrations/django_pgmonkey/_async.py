"""The asynchronous database of an alias, for `django_pgmonkey.database`."""

from __future__ import annotations

from django.db import connections
from psycopg.rows import TupleRow

from pgmonkey import AsyncDatabase

from ._pools import pools
from ._wrapper import PooledWrapper


def async_database(alias: str) -> AsyncDatabase[TupleRow]:
    """Return the asynchronous database of *alias*, for the settings that it has now."""
    wrapper = connections[alias]
    if not isinstance(wrapper, PooledWrapper):
        raise TypeError(f"the ENGINE of DATABASES[{alias!r}] is not django_pgmonkey")
    return pools.get_async(alias, wrapper.settings.config(wrapper.timezone_name))
