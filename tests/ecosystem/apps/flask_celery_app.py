"""Celery with Flask's application context, as Flask's documentation sets it up; messages are files."""

import os

from celery import Celery, Task
from flask import Flask

from flask_pgmonkey import PGMonkey

INSERT = "INSERT INTO jobs VALUES (%s)"
db = PGMonkey()
app = Flask(__name__)
app.config["PGMONKEY_CONFIG"] = os.environ["CONFIG"]
db.init_app(app)


class FlaskTask(Task):
    def __call__(self, *args, **kwargs):
        with app.app_context():
            return self.run(*args, **kwargs)


folder = os.environ["QUEUE"]
celery = Celery("jobs", task_cls=FlaskTask, broker="filesystem://")
celery.conf.broker_transport_options = {
    "data_folder_in": folder,
    "data_folder_out": folder,
    "control_folder": f"{folder}/control",
}


@celery.task
def two(first, second):
    with db.transaction():
        db.execute(INSERT, [first])
        db.execute(INSERT, [second])


@celery.task(bind=True, max_retries=2, default_retry_delay=0)
def again(self, name):
    with db.transaction():
        db.execute(INSERT, [f"{name} {self.request.retries}"])
        if self.request.retries < 2:
            raise self.retry()


@celery.task
def file(name):
    db.execute("INSERT INTO jobs SELECT name || ' filed' FROM jobs WHERE name = %s", [name])  # its own transaction


@celery.task
def note_stats():
    stats = db.stats()
    db.execute("INSERT INTO stats VALUES (%s, %s)", [stats["pool_available"], stats["pool_size"]])


@app.post("/orders/<name>")
@db.transaction_per("statement")
def order(name):
    with db.transaction():  # committed at its end: a task that is sent before may run before the COMMIT
        db.execute(INSERT, [name])
    file.delay(name)
    return "", 201


@app.post("/tasks/<name>")
def send(name):
    from flask import request

    celery.tasks[f"flask_celery_app.{name}"].delay(*request.json)
    return "", 202


app.get("/stats")(lambda: db.stats())
