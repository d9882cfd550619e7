"""PostgreSQL for Flask: ``db = PGMonkey()``, ``db.init_app(app)``, ``db.fetch_all(...)``."""

try:
    import flask  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("flask_pgmonkey needs Flask: pip install 'pgmonkey[flask]'", name=error.name) from error

from pgmonkey import Database  # noqa: F401  # before psycopg: where that lacks libpq, one line says so

from ._database import BoundDatabase
from ._extension import PGMonkey

__all__ = ["BoundDatabase", "PGMonkey"]
