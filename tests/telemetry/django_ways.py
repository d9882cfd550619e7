"""Execute Django's statements in every way, under a tracer; see `ways`."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

ROUNDS = 8


def run(tracer: Any, when: str) -> dict[str, list[int]]:
    """Return spans and statements by way; with *when* "stock", on Django's own backend."""
    if when != "after":
        tracer.install()
    import django
    from django.conf import settings

    settings.INSTALLED_APPS += getattr(tracer, "APPS", ())
    default = settings.DATABASES["default"]
    default["ENGINE"] = getattr(tracer, "ENGINE", default["ENGINE"])
    if when == "stock":
        given: dict[str, Any] = json.loads(os.environ["CONFIG"])["connection_settings"]
        names = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD", "dbname": "NAME"}
        default.update({name: given[key] for key, name in names.items()}, OPTIONS={})
        default["ENGINE"] = "django.db.backends.postgresql"
    django.setup()
    from django.contrib.auth.models import User
    from django.db import connection, transaction
    from django.http import HttpRequest, HttpResponse
    from django.test import Client
    from django.urls import path

    def cursor() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.execute("SELECT %s", [1])

    def many() -> None:
        with connection.cursor() as cursor:
            cursor.executemany("SELECT %s", [(1,), (2,)])

    def orm() -> None:
        User.objects.create(username="a")
        User.objects.filter(username="a").first()
        User.objects.filter(username="a").update(first_name="b")
        User.objects.filter(username="a")._raw_delete("default")  # one statement

    def atomic() -> None:
        with transaction.atomic():
            User.objects.count()
            User.objects.filter(username="a").exists()

    def iterator() -> None:
        list(User.objects.order_by("id").iterator())

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str(User.objects.count() + User.objects.filter(username="a").count()))

    urls: Any = sys.modules[__name__]
    urls.urlpatterns = [path("", view)]
    settings.ROOT_URLCONF, settings.ALLOWED_HOSTS = __name__, ["*"]
    client = Client()
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "Django: cursor": (2, cursor),
        "Django: executemany": (1, many),
        "Django: models": (4, orm),
        "Django: atomic": (2, atomic),
        "Django: iterator": (1, iterator),
        "Django: request": (2, lambda: client.get("/")),
    }
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    if when == "after":
        for _, work in ways.values():
            work()
            connection.close()
        tracer.install()
    found = {}
    for name, (statements, work) in ways.items():
        if name not in getattr(tracer, "ONLY", ways):
            continue
        seen: list[str] = []
        for _ in range(ROUNDS):
            seen += tracer.seen(work)
            connection.close()
        expected = statements * ROUNDS * getattr(tracer, "COUNTS", {}).get(name, 1)
        found[name] = [len([text for text in seen if "SAVEPOINT" not in text]), expected]
    return found


if __name__ == "__main__":
    name, when = sys.argv[1:3]
    print(json.dumps(run(importlib.import_module(f"tests.telemetry.tracers.{name}"), when)))
