"""PostgreSQL for FastAPI: ``FastAPI(lifespan=db.lifespan)``, ``Depends(db.connection)``."""

try:
    import fastapi  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "fastapi_pgmonkey needs FastAPI: pip install 'pgmonkey[fastapi]'", name=error.name
    ) from error

from pgmonkey import Database  # noqa: F401  # before psycopg: where that lacks libpq, one line says so

from ._app import PGMonkey
from ._dependencies import RequestConnection, RequestDatabase, RequestSyncConnection, RequestSyncDatabase

__all__ = ["PGMonkey", "RequestConnection", "RequestDatabase", "RequestSyncConnection", "RequestSyncDatabase"]
