"""Execute the statements of requests of Flask and FastAPI under a tracer; see `ways`."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from .ways import ROUNDS


def run(tracer: Any, when: str) -> dict[str, list[int]]:
    """Return spans and statements by way."""
    if when == "before":
        tracer.install()
    from fastapi import FastAPI
    from flask import Flask

    import fastapi_pgmonkey
    import flask_pgmonkey

    config = json.loads(os.environ["CONFIG"])
    flask_app = Flask("traced")
    flask_app.config["PGMONKEY_CONFIG"] = config
    flask_db = flask_pgmonkey.PGMonkey(flask_app)

    @flask_app.get("/")
    def view() -> dict[str, int]:
        flask_db.connection.execute("SELECT 1")
        return {"a": flask_db.fetch_value("SELECT %s::int", (1,))}

    db = fastapi_pgmonkey.PGMonkey(config)
    app = FastAPI(lifespan=db.lifespan)

    async def in_loop(connection: Any, database: Any) -> dict[str, int]:
        await connection.execute("SELECT 1")
        return {"a": await database.fetch_value("SELECT %s::int", (1,))}

    def in_thread(connection: Any) -> dict[str, int]:
        connection.execute("SELECT 1")
        return {"a": db.sync_database.fetch_value("SELECT %s::int", (1,))}

    in_loop.__annotations__ = {
        "connection": fastapi_pgmonkey.RequestConnection,
        "database": fastapi_pgmonkey.RequestDatabase,
    }
    in_thread.__annotations__ = {"connection": fastapi_pgmonkey.RequestSyncConnection}
    app.add_api_route("/loop", in_loop, response_model=None)
    app.add_api_route("/thread", in_thread, response_model=None)
    loop = asyncio.new_event_loop()
    lifespan = app.router.lifespan_context(app)
    loop.run_until_complete(lifespan.__aenter__())

    async def get(path: str) -> None:
        # Without a client, which tracers look at, too.
        requests, sent = [{"type": "http.request", "body": b"", "more_body": False}], []

        async def receive() -> Any:
            if not requests:
                await asyncio.Event().wait()  # the client stays
            return requests.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
        await app(scope, receive, send)
        assert json.loads(sent[-1].get("body") or sent[-2]["body"]) == {"a": 1}

    def flask_request() -> None:
        assert flask_app.test_client().get("/").json == {"a": 1}

    ways: dict[str, Callable[[], object]] = {
        "Flask: request": flask_request,
        "FastAPI: async def": lambda: loop.run_until_complete(get("/loop")),
        "FastAPI: def": lambda: loop.run_until_complete(get("/thread")),
    }
    if when == "after":
        for work in ways.values():
            for _ in range(ROUNDS):
                work()
        tracer.install()
    found = {}
    for name, work in ways.items():
        found[name] = [sum(len(tracer.seen(work)) for _ in range(ROUNDS)), 2 * ROUNDS]
    loop.run_until_complete(lifespan.__aexit__(None, None, None))
    loop.close()
    return found


if __name__ == "__main__":
    name, when = sys.argv[1:3]
    print(json.dumps(run(importlib.import_module(f"tests.telemetry.tracers.{name}"), when)))
