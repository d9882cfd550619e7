"""The way Python web applications talk to PostgreSQL: one configuration, one cache, three frameworks.

Importing it does not import psycopg; the first use of a public name does, so that ``pgmonkey --version`` is quick.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from ._api import *  # noqa: F403
    from ._api import __all__ as __all__

__version__ = "5.0.0.dev0"
_NO_LIBPQ = "psycopg needs libpq, which is not here: pip install 'psycopg[binary]'"


def __getattr__(name: str) -> object:
    if name == "__all__" or not name.startswith("__"):
        try:
            api = importlib.import_module("._api", __name__)
        except ImportError as error:
            # psycopg tells it in five lines, under the thirty of what it tried.
            if "libpq" in str(error):
                raise ImportError(_NO_LIBPQ) from None
            raise
        globals().update({public: getattr(api, public) for public in ("__all__", *api.__all__)})
    try:
        return globals()[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return [*globals(), *typing.cast("list[str]", __getattr__("__all__"))]
