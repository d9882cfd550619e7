"""What mypy and pyright see in a Flask application: never run, only checked."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flask import Flask
from psycopg import Connection
from psycopg.rows import DictRow, TupleRow, dict_row
from typing_extensions import assert_type

from flask_pgmonkey import BoundDatabase, PGMonkey
from pgmonkey import Database

db = PGMonkey()
dicts = PGMonkey(Flask(__name__), row_factory=dict_row)
app = Flask(__name__)


def create_app() -> Flask:
    db.init_app(app)
    return app


@app.get("/<int:id>")
@db.transaction_per("request", isolation="serializable")
def view(id: int) -> dict[str, Any]:
    assert_type(db, PGMonkey[TupleRow])
    assert_type(db.fetch_one("SELECT 1"), TupleRow | None)
    assert_type(db.fetch_all("SELECT 1", {"id": id}), list[TupleRow])
    assert_type(db.connection, Connection[TupleRow])
    assert_type(db.database, Database[TupleRow])
    assert_type(db.stream("SELECT 1"), Iterator[TupleRow])
    assert_type(dicts.fetch_one("SELECT 1"), DictRow | None)
    assert_type(db.fetch_one("SELECT 1", row_factory=dict_row, timeout=2), DictRow | None)
    assert_type(db.fetch_exactly_one("SELECT 1", row_factory=dict_row), DictRow)
    assert_type(db.fetch_all("SELECT 1", row_factory=dict_row), list[DictRow])
    assert_type(db.fetch_values("SELECT 1"), list[Any])
    assert_type(db.stream("SELECT 1", row_factory=dict_row), Iterator[DictRow])
    with db.batch() as batch, db.lock("import", wait=False), db.transaction(timeout=3):
        answer = batch.fetch_one("SELECT 1")
    assert_type(answer.result, TupleRow | None)
    assert_type(dicts["reports"], BoundDatabase[DictRow])
    assert_type(dicts["reports"].fetch_all("SELECT 1"), list[DictRow])
    with dicts.transaction(read_only=True) as connection:
        assert_type(connection, Connection[DictRow])
    assert_type(db.retry(lambda: id, timeout=1), int)
    db.execute(f"SELECT {id}")  # pyright: ignore[reportArgumentType]  (mypy knows no LiteralString)
    return {}


assert_type(view(1), dict[str, Any])  # the decorators leave the view as it is


@db.session_values
def values() -> dict[str, str]:
    return {"app.tenant": "1"}


@db.transaction_per("sometimes")  # type: ignore[arg-type]
def wrong() -> str:
    return ""
