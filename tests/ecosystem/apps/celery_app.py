"""Celery over Django: tasks that write, fail, are tried again and are killed."""

import os

os.environ["DJANGO_SETTINGS_MODULE"] = "celery_settings"

import json
import signal

import django
from celery import Celery
from django.db import connection, transaction

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
django.setup()

from django.db.models import F
from shop.models import Thing

if os.environ.get("WARM"):
    # The parent has a connection and a pool when the children are forked.
    Thing.objects.count()
    assert connection.connection is not None


@app.task
def create(name):
    Thing.objects.create(name=name)


@app.task
def fail(name):
    with transaction.atomic():
        Thing.objects.create(name=name)
        raise RuntimeError(name)


@app.task
def leave_open(name):
    """End within a transaction that nobody ends."""
    transaction.set_autocommit(False)
    Thing.objects.create(name=name)


@app.task(bind=True, max_retries=3)
def third_time(self, name):
    with transaction.atomic():
        Thing.objects.create(name=name)
        if self.request.retries < 2:
            raise self.retry(countdown=0.05)


@app.task
def count_up(name):
    with transaction.atomic():
        thing = Thing.objects.select_for_update().get(name=name)
        thing.price += 1
        thing.save()


@app.task
def kill(name):
    """Be killed within a transaction, once."""
    with transaction.atomic():
        Thing.objects.create(name=name)
        os.kill(os.getpid(), signal.SIGKILL)


@app.task
def tick():
    Thing.objects.filter(name="ticks").update(price=F("price") + 1)


@app.task
def report(name):
    """Store how many connections the pool of this process lacks, before this task has one."""
    stats = connection.pool.stats()
    lent = stats.get("pool_size", 0) - stats.get("pool_available", 0)
    Thing.objects.create(name=name, price=lent)


def send(*calls):
    for name, *arguments in calls:
        globals()[name].delay(*arguments)


if __name__ == "__main__":
    import sys

    from celery_app import send

    send(*json.load(sys.stdin))
