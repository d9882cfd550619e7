"""The smallest application on Flask: ``DATABASE_URL=postgresql://... flask --app flask_app run``."""

import os

from flask import Flask

from flask_pgmonkey import PGMonkey

app = Flask(__name__)
app.config["PGMONKEY_CONFIG"] = os.environ["DATABASE_URL"]
db = PGMonkey(app)
with app.app_context():
    db.execute("CREATE TABLE IF NOT EXISTS visitor (name text)")


@app.post("/<name>")
def greet(name: str) -> str:
    db.execute("INSERT INTO visitor VALUES (%s)", [name])
    number = db.fetch_value("SELECT count(*) FROM visitor")
    return f"Hello {name}, you are number {number}"
