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

__all__ = ["database", "keep_request", "rollback_request"]


def database(alias: str = "default") -> AsyncDatabase[TupleRow]:
    """Return the asynchronous database of *alias*, for ``async`` views: its queries do not block the event loop.

    It connects with the current settings (in tests, to the test database), has its own pool (``async_pool_settings``),
    and does not join the ORM's transactions.  Raises ImproperlyConfigured if the settings are wrong.
    """
    # Not above: Django imports this package before the settings are configured.
    from django.db import connections

    from ._pools import pools
    from ._wrapper import PooledWrapper

    wrapper = connections[alias]
    if not isinstance(wrapper, PooledWrapper):
        raise TypeError(f"the ENGINE of DATABASES[{alias!r}] is not django_pgmonkey")
    return pools.get_async(alias, wrapper.settings.config(wrapper.timezone_name))


def rollback_request(using: str | None = None) -> None:
    """Roll back the request even if its status is a success, on the database *using* or on all.

    The last call of this and `keep_request` wins.  Raises RuntimeError outside a request of the middleware.
    """
    from ._requests import current

    current().decide(False, using)


def keep_request(using: str | None = None) -> None:
    """Commit the request even if its status is an error, on the database *using* or on all.

    A transaction that failed is not committed.  The last call of this and `rollback_request` wins.  Raises RuntimeError
    outside a request of the middleware.
    """
    from ._requests import current

    current().decide(True, using)
