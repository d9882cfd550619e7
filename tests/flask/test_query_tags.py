"""`query_tags`: a statement of a request tells the framework and the route."""

from __future__ import annotations

from typing import Any

from flask import Flask

from flask_pgmonkey import PGMonkey

TEXT = "SELECT current_query()"


def test_a_request_tells_its_route(config: dict[str, Any]) -> None:
    app = Flask("shop")
    connect = {**config["connection_settings"], "query_tags": True, "application_name": "shop"}
    app.config["PGMONKEY_CONFIG"] = {"connection_settings": connect}
    db = PGMonkey(app)

    @app.get("/users/<int:number>")
    def user(number: int) -> list[str]:
        (seen,) = db.connection.execute(TEXT).fetchall()
        return [db.fetch_value(TEXT), seen[0]]

    tag = "/*application='shop',framework='flask',route='GET%20%2Fusers%2F%3Cint%3Anumber%3E'*/"
    for _ in range(3):
        assert app.test_client().get("/users/7").json == [f"{TEXT} {tag}"] * 2
    with app.app_context():
        assert db.fetch_value(TEXT) == f"{TEXT} /*application='shop',framework='flask'*/"
