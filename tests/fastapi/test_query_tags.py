"""`query_tags`: a statement of a request tells the framework and the route."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from fastapi_pgmonkey import PGMonkey, RequestConnection, RequestDatabase, RequestSyncConnection

from .applications import client

TEXT = "SELECT current_query()"


def test_a_request_tells_its_route(config: dict[str, Any]) -> None:
    connect = {**config["connection_settings"], "query_tags": True, "application_name": "shop"}
    db = PGMonkey({"connection_settings": connect})
    app = FastAPI(lifespan=db.lifespan)

    @app.get("/users/{number}")
    async def user(number: int, connection: RequestConnection, database: RequestDatabase) -> list[str]:
        cursor = await connection.execute(TEXT)
        ((seen,),) = await cursor.fetchall()
        return [seen, await database.fetch_value(TEXT)]

    @app.get("/plain/{number}")
    def plain(number: int, connection: RequestSyncConnection) -> list[str]:
        ((seen,),) = connection.execute(TEXT).fetchall()
        return [seen, db.sync_database.fetch_value(TEXT)]

    with client(app) as http:
        for path in ("users", "plain"):
            tag = f"/*application='shop',framework='fastapi',route='GET%20%2F{path}%2F%7Bnumber%7D'*/"
            for _ in range(3):
                assert http.get(f"/{path}/7").json() == [f"{TEXT} {tag}"] * 2
