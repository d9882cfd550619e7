"""The contract's endpoints on Flask."""

import contextlib
import os
import time
from typing import Any

import psycopg
from flask import Flask, Response, abort, redirect, request
from ways import way

from flask_pgmonkey import PGMonkey

db = PGMonkey()
app = Flask(__name__)
app.config.update(
    PGMONKEY_CONFIG=os.environ["CONTRACT_CONFIG"], PGMONKEY_DEADLINE_HEADER=os.environ.get("CONTRACT_DEADLINE_HEADER")
)
db.init_app(app)
app.register_blueprint(db.health_blueprint())


def insert() -> None:
    db.execute("INSERT INTO t VALUES (%s)", [int(request.args["a"])])


@app.errorhandler(psycopg.errors.UniqueViolation)
def handled(error: Exception) -> tuple[dict[str, bool], int]:
    return {"handled": True}, 409


@app.get("/nothing")
def nothing() -> dict[str, Any]:
    return {}


@app.get("/stats")
def stats() -> dict[str, int]:
    return db.stats()


@app.post("/write")
def write() -> tuple[dict[str, Any], int]:
    insert()
    return {}, int(request.args["status"])


@app.post("/redirect")
def redirected() -> Any:
    insert()
    return redirect("/nothing")


@app.post("/refuse")
def refuse() -> Any:
    insert()
    abort(int(request.args["status"]))


@app.post("/crash")
def crash() -> Any:
    insert()
    raise RuntimeError("crashed")


@app.post("/deferred")
def deferred() -> tuple[dict[str, Any], int]:
    insert()
    insert()
    return {}, 201


@app.post("/late")
def late() -> tuple[dict[str, Any], int]:
    db.execute("INSERT INTO late VALUES (%s)", [int(request.args["a"])])
    return {}, 201


@app.post("/doomed")
def doomed() -> tuple[dict[str, Any], int]:
    db.execute("INSERT INTO doomed VALUES (%s)", [int(request.args["a"])])
    return {}, 201


@app.post("/block")
def block() -> tuple[dict[str, Any], int]:
    with db.transaction():
        insert()
    return {}, int(request.args["status"])


@app.get("/slow")
def slow() -> dict[str, Any]:
    insert()
    db.execute("SELECT pg_sleep(%s)", [float(request.args["sleep"])])
    return {}


@app.get("/stream")
def stream() -> Response:
    rows, sleep = int(request.args["rows"]), float(request.args.get("sleep", 0))
    stream = db.stream("SELECT repeat('x', 1023), pg_sleep(%s) FROM generate_series(1, %s)", [sleep, rows])
    return Response(f"{text}\n" for text, _ in stream)


@app.post("/way")
def by_way() -> tuple[dict[str, Any], int]:
    way(db, request.args["name"])(int(request.args["a"]), float(request.args["sleep"]))
    return {}, int(request.args["status"])


@app.post("/refused")
def refused() -> tuple[dict[str, Any], int]:
    insert()
    try:
        way(db, request.args["name"])()
    except psycopg.Error:
        if request.args["caught"] == "no":
            raise
    return {}, 201


@app.post("/ignored")
def ignored() -> tuple[dict[str, Any], int]:
    insert()
    with contextlib.suppress(psycopg.Error):
        db.execute("SELECT * FROM missing")
    return {}, 201


@app.get("/own")
def own() -> dict[str, Any]:
    db.execute("SELECT set_config('contract.who', %s, true)", [request.args["who"]])
    before = db.fetch_value("SELECT pg_backend_pid()")
    time.sleep(float(request.args["sleep"]))
    who = db.fetch_value("SELECT current_setting('contract.who', true)")
    return {"who": who, "pids": [before, db.fetch_value("SELECT pg_backend_pid()")]}


@app.post("/dirty")
def dirty() -> dict[str, Any]:
    for statement in request.get_json():
        db.execute(statement)
    return {}


@app.post("/value")
def value() -> dict[str, Any]:
    return {"value": db.fetch_value(request.get_json())}
