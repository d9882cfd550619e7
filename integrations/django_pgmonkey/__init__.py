"""PostgreSQL for Django: ``"ENGINE": "django_pgmonkey", "OPTIONS": {"config": BASE_DIR / "config.yaml"}``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    import django  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "django_pgmonkey needs Django: pip install 'pgmonkey[django]'", name=error.name
    ) from error

if TYPE_CHECKING:
    from pgmonkey import AsyncDatabase

__all__ = ["database"]


def database(alias: str = "default") -> AsyncDatabase[Any]:
    """Return the asynchronous database of *alias*, for ``async`` views: its verbs await a real driver.

    It connects as the settings say now, also to a test database, by a pool of its own (``async_pool_settings``), and
    knows nothing of the transactions of the ORM.  Raises ImproperlyConfigured as the backend does.
    """
    from ._pools import async_database  # settings may not be configured when this module is imported

    return async_database(alias)
