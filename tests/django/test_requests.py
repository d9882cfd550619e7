"""What a request leaves: who answers, how, and what was done to the connections; the promises are in tests/contract."""

from __future__ import annotations

from pathlib import Path

from .projects import ok, run

PRELUDE = """
import contextlib, logging, os, sys
import psycopg
from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, close_old_connections, connection, connections, transaction
from django.http import Http404, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template.response import TemplateResponse
from django.test import Client
from django.urls import path
import django_pgmonkey
from django_pgmonkey import keep_request, rollback_request
settings.ROOT_URLCONF, settings.ALLOWED_HOSTS = __name__, ["testserver"]
settings.MIDDLEWARE = ["django_pgmonkey.middleware.TransactionMiddleware", f"{__name__}.inner"]
logging.disable(logging.ERROR)
connection.ensure_connection()
observer = psycopg.connect(**{
    key: value for key, value in connection.get_connection_params().items()
    if key in ("host", "port", "user", "password", "dbname")
}, autocommit=True)
observer.execute("CREATE TABLE written (v text PRIMARY KEY)")
connection.close()
urlpatterns = []
def view(function):
    urlpatterns.append(path(function.__name__, function))
    return function
def write(value, using="default"):
    with connections[using].cursor() as cursor:
        cursor.execute("INSERT INTO written VALUES (%s)", [value])
def inner(get_response):
    return get_response
def ask(client=None):
    for each in urlpatterns:
        observer.execute("TRUNCATE written")
        status = (client or Client(raise_request_exception=False)).get(f"/{each.pattern}").status_code
        rows = sorted(row[0] for row in observer.execute("SELECT v FROM written"))
        connections.close_all()  # as at the end of a request, which Django's test client leaves out
        print(each.pattern, status, *rows)
"""


def told(project: Path, code: str) -> list[str]:
    """Return what the views of *code* answered, and what they left, a line each."""
    return ok(run(project, code=PRELUDE + code)).splitlines()


def test_what_a_view_raises_rolls_back_whoever_answers(project: Path) -> None:
    code = """
class Answering:
    def __init__(self, get_response):
        self.get_response = get_response
    def __call__(self, request):
        return self.get_response(request)
    def process_exception(self, request, exception):
        if isinstance(exception, ValueError):
            write("by process_exception")
            return HttpResponse(status=int(request.path[-3:]))
settings.MIDDLEWARE += [f"{__name__}.Answering"]
def answering(status):
    def handler(request, exception=None):
        write("by the handler")
        return HttpResponse(status=status)
    return handler
handler404, handler403, handler500 = (answering(status) for status in (200, 302, 409))
def raising(error):
    def raises(request):
        with transaction.atomic():
            write("by the view")
        raise error
    async def araises(request):
        from asgiref.sync import sync_to_async
        await sync_to_async(write)("by the view")
        raise error
    return raises, araises
errors = {"200": ValueError(), "302": ValueError(), "409": ValueError()}
errors |= {"404": Http404(), "403": PermissionDenied(), "crash": RuntimeError()}
for name, error in errors.items():
    one, other = raising(error)
    urlpatterns += [path("raises" + name, one), path("araises" + name, other)]
ask()
"""
    expected = {
        "200": "200 by process_exception",
        "302": "302 by process_exception",
        "409": "409",
        "404": "200 by the handler",
        "403": "302 by the handler",
        "crash": "409",
    }
    views = [(kind, name) for name in expected for kind in ("raises", "araises")]
    assert told(project, code) == [f"{kind}{name} {expected[name]}" for kind, name in views]


def test_what_handler500_writes_follows_its_status(project: Path) -> None:
    code = """
called = []
def handler500(request):
    called.append(sys.exc_info()[0].__name__)
    write("by the handler")
    status = 200 if "stays" in request.path else 500
    return HttpResponse(status=status)
observer.execute("CREATE TABLE other (v text UNIQUE DEFERRABLE INITIALLY DEFERRED)")
def late():
    write("by the view")
    for _ in range(2):
        connection.cursor().execute("INSERT INTO other VALUES ('twice')")
    return HttpResponse()
@view
def late_goes(request):
    return late()
@view
def late_stays(request):
    return late()
def double():
    write("by the view")
    write("by the view")
@view
def error_goes(request):
    return double()
@view
def error_stays(request):
    return double()
@view
def ignored_goes(request):
    with contextlib.suppress(IntegrityError):
        double()
    return HttpResponse()
def inner(get_response):
    def serve(request):
        response = get_response(request)
        if "middleware" in request.path:
            double()
        return response
    return serve
@view
def middleware_goes(request):
    return HttpResponse()
@view
def middleware_stays(request):
    return HttpResponse()
ask()
print(*called)
"""
    *answers, called = told(project, code)
    assert answers == [
        "late_goes 500",
        "late_stays 200 by the handler",
        "error_goes 500",
        "error_stays 200 by the handler",
        "ignored_goes 500",
        "middleware_goes 500",
        "middleware_stays 200 by the handler",
    ]
    assert called.split() == ["IntegrityError"] * 4 + ["InternalError"] + ["IntegrityError"] * 2


def test_no_success_where_nothing_can_be_committed(project: Path) -> None:
    code = """
from shop.models import Thing
@view
def failed(request):
    write("a")
    with contextlib.suppress(IntegrityError):
        write("a")
    return HttpResponse()
@view
def save(request):
    write("a")
    with contextlib.suppress(Exception):
        Thing(pk="abc").save()
    return HttpResponse()
@view
def no_savepoint(request):
    write("a")
    with contextlib.suppress(ValueError), transaction.atomic(savepoint=False):
        raise ValueError
    return HttpResponse()
@view
def closed(request):
    write("a")
    connection.close()
    return HttpResponse()
@view
def closed_in_a_block(request):
    with transaction.atomic():
        write("a")
        connections.close_all()
    return HttpResponse()
@view
def closed_old(request):
    write("a")
    close_old_connections()
    return HttpResponse()
@view
def closed_below_django(request):
    write("a")
    connection.connection.close()
    return HttpResponse()
@view
def connected_again(request):
    write("a")
    connection.close()
    connection.connect()
    write("b")
    return HttpResponse()
@view
def hooks_lost(request):
    transaction.on_commit(lambda: write("by the hook"))
    connection.close()
    return HttpResponse()
@view
def killed(request):
    write("a")
    observer.execute("SELECT pg_terminate_backend(%s)", [connection.connection.info.backend_pid])
    with contextlib.suppress(Exception):
        connection.cursor().execute("SELECT 1")
    return HttpResponse()
@view
def never_left(request):
    transaction.atomic().__enter__()
    write("a")
    return HttpResponse()
@view
def set_rollback(request):
    write("a")
    transaction.set_rollback(True)
    return HttpResponse()
@view
def set_rollback_in_a_block(request):
    write("a")
    with transaction.atomic():
        write("b")
        transaction.set_rollback(True)
    with contextlib.suppress(ValueError), transaction.atomic(savepoint=False):
        raise ValueError
    return HttpResponse()
@view
def read_and_closed(request):
    connection.cursor().execute("SELECT 1")
    connection.close()
    return HttpResponse()
@view
def closed_first(request):
    connection.close()
    write("a")
    return HttpResponse()
@view
def caught(request):
    write("a")
    with contextlib.suppress(IntegrityError), transaction.atomic():
        write("a")
    write("b")
    return HttpResponse()
ask()
"""
    refused = ["failed", "save", "no_savepoint", "closed", "closed_in_a_block", "closed_old", "closed_below_django"]
    refused += ["connected_again", "hooks_lost", "killed", "never_left"]
    assert told(project, code) == [
        *(f"{name} 500" for name in refused),
        "set_rollback 200",
        "set_rollback_in_a_block 500",
        "read_and_closed 200",
        "closed_first 200 a",
        "caught 200 a b",
    ]
