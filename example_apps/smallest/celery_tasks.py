"""The smallest application on Celery: ``DATABASE_URL=postgresql://... celery -A celery_tasks worker``."""

import os

from celery import Celery, Task

from pgmonkey import Database, PoolTimeoutError, ServerUnavailableError

app = Celery(__name__, broker=os.environ["CELERY_BROKER_URL"])
app.conf.task_acks_late = True  # a task whose worker has died is run again
db = Database(os.environ["DATABASE_URL"])  # one for all: each process of the worker opens its own pool
db.execute("CREATE TABLE IF NOT EXISTS visitor (task text PRIMARY KEY, name text)")


@app.task(bind=True, autoretry_for=(ServerUnavailableError, PoolTimeoutError), retry_backoff=True)
def greet(self: Task, name: str) -> int:
    with db.transaction():
        # The same task once more changes nothing.
        db.execute("INSERT INTO visitor VALUES (%s, %s) ON CONFLICT DO NOTHING", [self.request.id, name])
        return db.fetch_value("SELECT count(*) FROM visitor")
