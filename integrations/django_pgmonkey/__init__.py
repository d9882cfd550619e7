"""PostgreSQL for Django: ``"ENGINE": "django_pgmonkey", "OPTIONS": {"config": BASE_DIR / "config.yaml"}``."""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    import django  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "django_pgmonkey needs Django: pip install 'pgmonkey[django]'", name=error.name
    ) from error

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgmonkey import AsyncDatabase

__all__ = ["database"]


def database(alias: str = "default") -> AsyncDatabase[TupleRow]:
    """Return the asynchronous database of *alias*, for ``async`` views: its queries do not block the event loop.

    It connects with the current settings (in tests, to the test database), has its own pool (``async_pool_settings``),
    and takes no part in the transactions of the ORM.  Raises ImproperlyConfigured where the settings are wrong.
    """
    # Not above: Django imports this package before the settings are configured.
    from django.db import connections

    from ._pools import pools
    from ._wrapper import PooledWrapper

    wrapper = connections[alias]
    if not isinstance(wrapper, PooledWrapper):
        raise TypeError(f"the ENGINE of DATABASES[{alias!r}] is not django_pgmonkey")
    return pools.get_async(alias, wrapper.settings.config(wrapper.timezone_name))
