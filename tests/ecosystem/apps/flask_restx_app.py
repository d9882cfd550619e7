"""Flask-RESTX: resources, and handlers of its own for what these raise."""

import os

import flask
import flask_restx
from psycopg.errors import CheckViolation, UniqueViolation

from flask_pgmonkey import PGMonkey

INSERT = "INSERT INTO todos VALUES (%s)"
db = PGMonkey()
app = flask.Flask(__name__)
app.config["PGMONKEY_CONFIG"] = os.environ["CONFIG"]
db.init_app(app)
app.get("/stats")(lambda: db.stats())
api = flask_restx.Api(app)
space = api.namespace("todos")
model = api.model("Todo", {"task": flask_restx.fields.String(required=True)})


@space.route("/")
class Todos(flask_restx.Resource):
    @space.marshal_list_with(model)
    def get(self):
        return [{"task": task} for (task,) in db.fetch_all("SELECT task FROM todos ORDER BY task")]

    @space.expect(model, validate=True)
    @space.marshal_with(model, code=201)
    def post(self):
        task = api.payload["task"]
        db.execute(INSERT, [task])
        if task == "gone":
            space.abort(410, "gone")
        if task == "locked":
            flask.abort(423)
        return {"task": task}, 201


@space.errorhandler(UniqueViolation)
def twice(error):
    db.execute(INSERT, ["a note of what was refused"])
    return {"message": "twice"}, 409


@space.errorhandler(CheckViolation)
def swallowed(error):
    db.execute(INSERT, ["what the handler did"])
    return {"message": "swallowed"}, 200
