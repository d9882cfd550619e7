"""Flask-Login: users in a table, loaded by a query method in each request."""

import os

import flask
from flask_login import (
    LoginManager,
    UserMixin,
    current_user,
    fresh_login_required,
    login_required,
    login_user,
    logout_user,
    user_logged_in,
)
from psycopg.rows import dict_row

from flask_pgmonkey import PGMonkey

db = PGMonkey(row_factory=dict_row)
app = flask.Flask(__name__)
app.config.update(PGMONKEY_CONFIG=os.environ["CONFIG"], SECRET_KEY="x")
db.init_app(app)
manager = LoginManager(app)


class User(UserMixin):
    def __init__(self, row):
        self.id = str(row["id"])
        self.name = row["name"]


@manager.user_loader
def load(user_id):
    row = db.fetch_one("SELECT id, name FROM users WHERE id = %s::int", [user_id])
    return row and User(row)


@user_logged_in.connect_via(app)
def count(sender, user):
    db.execute("UPDATE users SET logins = logins + 1 WHERE id = %s::int", [user.id])


@app.before_request
def hit():
    if flask.request.method == "POST":
        db.execute("INSERT INTO hits VALUES (%s)", [flask.request.path])


@app.post("/login")
def login():
    form = flask.request.form
    row = db.fetch_one("SELECT id, name, password FROM users WHERE name = %s FOR UPDATE", [form["name"]])
    if row is None or row["password"] != form["password"]:
        db.execute("UPDATE users SET failed = failed + 1 WHERE name = %s", [form["name"]])
        db.keep_request()  # the count of attempts, although the answer is an error
        flask.abort(401)
    login_user(User(row), remember="remember" in form)
    return "", 204


@app.post("/logout")
@login_required
def logout():
    logout_user()
    return flask.redirect("/")


def write(text):
    db.execute("INSERT INTO notes VALUES (%s::int, %s)", [current_user.id, text])
    return {"by": current_user.name}


app.post("/notes/<text>")(login_required(write))
app.post("/fresh/<text>", endpoint="fresh")(fresh_login_required(write))
app.get("/stats")(lambda: db.stats())
