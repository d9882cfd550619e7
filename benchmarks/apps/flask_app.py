"""``gunicorn benchmarks.apps.flask_app:app``, with the library named by the environment."""

import os
from typing import Any

from flask import Flask

DSN, LIBRARY, SIZE = os.environ["BENCHMARK_DSN"], os.environ["BENCHMARK_LIBRARY"], 8
QUERY = "SELECT id, name FROM things WHERE id = %s"

app = Flask(__name__)


def thing(row: Any) -> dict[str, Any]:
    return {"id": row[0], "name": row[1]}


if LIBRARY == "none":

    @app.get("/things/<int:number>")
    def without(number: int) -> dict[str, Any]:
        return thing((number, f"thing {number}"))

elif LIBRARY == "libpq alone":
    from .bound import InThreads

    bound = InThreads(DSN)

    @app.get("/things/<int:number>")
    def by_libpq(number: int) -> dict[str, Any]:
        return thing(bound.fetch(number))

elif LIBRARY == "pgmonkey":
    from flask_pgmonkey import PGMonkey

    pool = {"min_size": SIZE, "max_size": SIZE}
    app.config["PGMONKEY_CONFIG"] = {"connection_settings": {"conninfo": DSN}, "pool_settings": pool}
    db = PGMonkey(app)

    @app.get("/things/<int:number>")
    def by_pgmonkey(number: int) -> dict[str, Any]:
        return thing(db.fetch_one(QUERY, (number,)))

elif LIBRARY == "psycopg_pool":
    from psycopg_pool import ConnectionPool

    connections = ConnectionPool(DSN, min_size=SIZE, max_size=SIZE, open=True)

    @app.get("/things/<int:number>")
    def by_psycopg_pool(number: int) -> dict[str, Any]:
        with connections.connection() as connection:
            return thing(connection.execute(QUERY, (number,)).fetchone())

elif LIBRARY == "Flask-SQLAlchemy":
    from flask_sqlalchemy import SQLAlchemy
    from sqlalchemy import text

    app.config["SQLALCHEMY_DATABASE_URI"] = DSN.replace("postgresql://", "postgresql+psycopg://")
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": SIZE, "max_overflow": 0}
    alchemy = SQLAlchemy(app)
    STATEMENT = text(QUERY.replace("%s", ":id"))

    @app.get("/things/<int:number>")
    def by_sqlalchemy(number: int) -> dict[str, Any]:
        return thing(alchemy.session.execute(STATEMENT, {"id": number}).first())
