"""SQLAlchemy builds statements, pgmonkey runs them: ``DATABASE_URL=... flask --app sqlalchemy_app run``."""

import os
from typing import Any

from flask import Flask
from sqlalchemy import ClauseElement, Column, MetaData, Table, Text, func, insert, select
from sqlalchemy.dialects.postgresql.psycopg import dialect

from flask_pgmonkey import PGMonkey

app = Flask(__name__)
app.config["PGMONKEY_CONFIG"] = os.environ["DATABASE_URL"]
db = PGMonkey(app)
visitor = Table("visitor", MetaData(), Column("name", Text))
with app.app_context():
    db.execute("CREATE TABLE IF NOT EXISTS visitor (name text)")


def sql(statement: ClauseElement) -> tuple[str, dict[str, Any]]:
    """Return the text and the parameters of a statement, for any query method."""
    compiled = statement.compile(dialect=dialect(), compile_kwargs={"render_postcompile": True})
    return str(compiled), compiled.params


@app.post("/<name>")
def greet(name: str) -> str:
    db.execute(*sql(insert(visitor).values(name=name)))
    number = db.fetch_value(*sql(select(func.count()).select_from(visitor)))
    return f"Hello {name}, you are number {number}"
