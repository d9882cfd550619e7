"""Flask-RESTful: resources, and its table of errors, by their names."""

import os

import flask
from flask_restful import Api, Resource, abort, fields, marshal_with, reqparse

from flask_pgmonkey import PGMonkey

db = PGMonkey()
app = flask.Flask(__name__)
app.config["PGMONKEY_CONFIG"] = os.environ["CONFIG"]
app.get("/stats")(lambda: db.stats())
errors = {
    "UniqueViolation": {"message": "twice", "status": 409},
    "CheckViolation": {"message": "swallowed", "status": 200},
}
api = Api(app, errors=errors)
db.init_app(app)  # after the extension: either order will do
todo = {"task": fields.String}


class Todos(Resource):
    @marshal_with(todo)
    def get(self):
        return [{"task": task} for (task,) in db.fetch_all("SELECT task FROM todos ORDER BY task")]

    @marshal_with(todo)
    def post(self):
        parser = reqparse.RequestParser()
        parser.add_argument("task", required=True)
        task = parser.parse_args()["task"]
        db.execute("INSERT INTO todos VALUES (%s)", [task])
        if task == "gone":
            abort(410)
        if task == "locked":
            flask.abort(423)
        return {"task": task}, 201


api.add_resource(Todos, "/todos/")
