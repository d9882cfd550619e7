"""A Flask application that has used its database, and has a transaction open, when uWSGI forks its workers."""

import os

import flask

from flask_pgmonkey import PGMonkey
from pgmonkey import Database

app = flask.Flask(__name__)
app.config["PGMONKEY_CONFIG"] = os.environ["CONFIG"]
db = PGMonkey(app)
database = Database(os.environ["CONFIG"])  # whose pool is that of the application
for _ in range(9):
    database.fetch_value("SELECT %s::text", ["warm"])
held = database.borrow()
held.connection.execute("SELECT 1")


@app.get("/")
@app.get("/<text>")
def echo(text=""):
    row = db.fetch_one("SELECT %s::text, pg_backend_pid()", [text])
    return {"text": row[0], "backend": row[1], "worker": os.getpid()}
