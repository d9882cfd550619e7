"""The contract's endpoints on Django: settings, views and WSGI application in one file."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import psycopg
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse, StreamingHttpResponse
from django.urls import include, path
from ways import async_way

from django_pgmonkey import database

settings.configure(
    SECRET_KEY="contract",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    DATABASES={"default": {"ENGINE": "django_pgmonkey", "OPTIONS": {"config": os.environ["CONTRACT_CONFIG"]}}},
    PGMONKEY_DEADLINE_HEADER=os.environ.get("CONTRACT_DEADLINE_HEADER"),
    MIDDLEWARE=["django_pgmonkey.middleware.TransactionMiddleware"],
    USE_TZ=True,
    LOGGING_CONFIG=None,
)


def handler500(request: HttpRequest) -> HttpResponse:
    if isinstance(sys.exc_info()[1], IntegrityError):
        return JsonResponse({"handled": True}, status=409)
    return HttpResponse(status=500)


def run(query: str, *params: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(query, params or None)
        return cursor.fetchone()[0] if cursor.description else None


def insert(request: HttpRequest) -> None:
    run("INSERT INTO t VALUES (%s)", int(request.GET["a"]))


def nothing(request: HttpRequest) -> HttpResponse:
    return JsonResponse({})


def stats(request: HttpRequest) -> HttpResponse:
    pool: Any = connection.pool  # type: ignore[attr-defined]
    return JsonResponse(pool.stats())


def write(request: HttpRequest) -> HttpResponse:
    insert(request)
    return JsonResponse({}, status=int(request.GET["status"]))


def redirected(request: HttpRequest) -> HttpResponse:
    insert(request)
    return HttpResponseRedirect("/nothing")


def refuse(request: HttpRequest) -> HttpResponse:
    from django.core.exceptions import BadRequest, PermissionDenied
    from django.http import Http404

    insert(request)
    raise {400: BadRequest, 403: PermissionDenied, 404: Http404}[int(request.GET["status"])]


def crash(request: HttpRequest) -> HttpResponse:
    insert(request)
    raise RuntimeError("crashed")


def deferred(request: HttpRequest) -> HttpResponse:
    insert(request)
    insert(request)
    return JsonResponse({}, status=201)


def late(request: HttpRequest) -> HttpResponse:
    run("INSERT INTO late VALUES (%s)", int(request.GET["a"]))
    return JsonResponse({}, status=201)


def doomed(request: HttpRequest) -> HttpResponse:
    run("INSERT INTO doomed VALUES (%s)", int(request.GET["a"]))
    return JsonResponse({}, status=201)


def block(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        insert(request)
    return JsonResponse({}, status=int(request.GET["status"]))


def slow(request: HttpRequest) -> HttpResponse:
    insert(request)
    run("SELECT pg_sleep(%s)", float(request.GET["sleep"]))
    return JsonResponse({})


def stream(request: HttpRequest) -> StreamingHttpResponse:
    rows, sleep = int(request.GET["rows"]), float(request.GET.get("sleep", 0))

    def lines() -> Iterator[str]:
        with connection.chunked_cursor() as cursor:
            query = "SELECT repeat('x', 1023), pg_sleep(%s) FROM generate_series(1, %s)"
            cursor.execute(query, [sleep, rows])
            for text, _ in cursor:
                yield f"{text}\n"

    return StreamingHttpResponse(lines())


class Refused(Exception):
    """The status is one that rolls back."""


async def by_way(request: HttpRequest) -> HttpResponse:
    """Write by query methods, which do not join the transaction of the request, but have one of their own."""
    status = int(request.GET["status"])
    with contextlib.suppress(Refused):
        async with database().transaction():
            await async_way(database(), request.GET["name"])(int(request.GET["a"]), float(request.GET["sleep"]))
            if status >= 400:
                raise Refused
    return JsonResponse({}, status=status)


async def refused(request: HttpRequest) -> HttpResponse:
    async with database().transaction():
        await database().execute("INSERT INTO t VALUES (%s)", [int(request.GET["a"])])
        try:
            await async_way(database(), request.GET["name"])()
        except psycopg.Error:
            if request.GET["caught"] == "no":
                raise
    return JsonResponse({}, status=201)


def ignored(request: HttpRequest) -> HttpResponse:
    insert(request)
    with contextlib.suppress(DatabaseError):
        run("SELECT * FROM missing")
    return JsonResponse({}, status=201)


def own(request: HttpRequest) -> HttpResponse:
    run("SELECT set_config('contract.who', %s, true)", request.GET["who"])
    before = run("SELECT pg_backend_pid()")
    time.sleep(float(request.GET["sleep"]))
    who = run("SELECT current_setting('contract.who', true)")
    return JsonResponse({"who": who, "pids": [before, run("SELECT pg_backend_pid()")]})


def dirty(request: HttpRequest) -> HttpResponse:
    for statement in json.loads(request.body):
        run(statement)
    return JsonResponse({})


def value(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"value": run(json.loads(request.body))})


VIEWS: tuple[Any, ...] = (
    *(nothing, stats, write, refuse, crash, deferred, late, doomed, block, slow, stream, ignored, own, dirty, value),
    refused,
)
urlpatterns = [
    path("redirect", redirected),
    path("way", by_way),
    path("health/", include("django_pgmonkey.health")),
    *(path(view.__name__, view) for view in VIEWS),
]
application = get_wsgi_application()
