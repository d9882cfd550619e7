"""What a request leaves: who answers, how, and what was done to the connections; the promises are in tests/contract."""

from __future__ import annotations

import inspect
import re
import shutil
import socket
from pathlib import Path

import pytest
import yaml

from ..faults.proxy import FaultProxy
from .projects import ok, run

PRELUDE = """
import contextlib, logging, os, sys
import psycopg
from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, InternalError, OperationalError
from django.db import close_old_connections, connection, connections, transaction
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


def test_what_rendering_raises_rolls_back_whoever_answers(project: Path) -> None:
    code = """
from django.template import engines
class Answering:
    def __init__(self, get_response):
        self.get_response = get_response
    def __call__(self, request):
        return self.get_response(request)
    def process_exception(self, request, exception):
        write("by process_exception")
        return HttpResponse(status=302)
settings.MIDDLEWARE += [f"{__name__}.Answering"]
settings.TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates"}]
template = engines["django"].from_string("{{ value }}")
class Value:
    def __init__(self, error):
        self.error = error
    def __str__(self):
        write("by the template")
        if self.error:
            raise self.error
        return "rendered"
@view
def raises(request):
    write("by the view")
    return TemplateResponse(request, template, {"value": Value(ValueError())})
@view
async def araises(request):
    from asgiref.sync import sync_to_async
    await sync_to_async(write)("by the view")
    return TemplateResponse(request, template, {"value": Value(ValueError())})
@view
def renders(request):
    write("by the view")
    return TemplateResponse(request, template, {"value": Value(None)})
@view
def refuses(request):
    write("by the view")
    return TemplateResponse(request, template, {"value": Value(None)}, status=409)
ask()
"""
    assert told(project, code) == [
        "raises 302 by process_exception",
        "araises 302 by process_exception",
        "renders 200 by the template by the view",
        "refuses 409",
    ]


def test_what_is_no_response_ends_the_request(project: Path) -> None:
    """Otherwise all later requests of the thread would find it going on."""
    code = """
@view
def returns_a_number(request):
    write("by the view")
    return 5
@view
def returns_nothing(request):
    write("by the view")
@view
def responds(request):
    write("by the view")
    return HttpResponse()
ask()
"""
    assert told(project, code) == ["returns_a_number 500", "returns_nothing 500", "responds 200 by the view"]


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
    with contextlib.suppress(ValueError):
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
    with contextlib.suppress(OperationalError):
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


def test_an_ignored_error_is_told_with_its_statement_and_place(project: Path) -> None:
    code = """
def handler500(request):
    error = sys.exc_info()[1]
    print(type(error).__name__, "|", error, "|", type(error.__cause__.__cause__).__name__)
    return HttpResponse(status=500)
@view
def failed(request):
    write("a")
    with contextlib.suppress(IntegrityError), transaction.atomic():
        write("a")
    with contextlib.suppress(psycopg.errors.DivisionByZero):
        connection.connection.execute("SELECT 1 / %s", [0])  # by psycopg, of which Django sees nothing
    with contextlib.suppress(InternalError):
        write("b")
    return HttpResponse()
ask()
"""
    told_of = next(line for line in told(project, code) if line.startswith("InternalError | "))
    assert re.fullmatch(
        r"InternalError \| nothing was committed: SELECT 1 / %s at \S+:\d+ \(failed\) failed and its error was "
        r"ignored: division by zero; put what may fail into 'with transaction.atomic\(\):' and .* \| DivisionByZero",
        told_of,
    ), told_of


def test_psycopgs_own_ends_are_refused_in_a_request(project: Path) -> None:
    code = """
from django.db.utils import ProgrammingError
def end(name, *arguments):
    write("a")
    try:
        getattr(connection.connection, name)(*arguments)
    except psycopg.ProgrammingError as error:
        print(error)
    write("b")
ends = [("commit",), ("rollback",), ("set_autocommit", True), ("tpc_begin", "x")]
for name, *arguments in ends:
    for status in (200, 409):
        def ended(request, name=name, arguments=arguments, status=status):
            end(name, *arguments)
            return HttpResponse(status=status)
        urlpatterns.append(path(f"{name}{status}", ended))
@view
def not_begun(request):
    connection.ensure_connection()
    try:
        connection.connection.autocommit = True
    except psycopg.ProgrammingError as error:
        print(error)
    write("a")
    return HttpResponse(status=409)
@view
def by_statements(request):
    write("a")
    for text in ("COMMIT", "ROLLBACK"):
        try:
            with connection.cursor() as cursor:
                cursor.execute(text)
        except ProgrammingError as error:
            print(str(error).partition(" is forbidden in a request")[0])
    write("b")
    return HttpResponse()
@view
def in_a_block(request):
    with transaction.atomic():
        end("commit")
    return HttpResponse()
@view
def with_connection(request):
    write("a")
    with connection.connection:
        write("b")
    return HttpResponse()
@view
def nested(request):
    print(Client().get("/nothing").status_code)
    end("commit")
    return HttpResponse(status=409)
@view
def nothing(request):
    write("c")
    return HttpResponse(status=409)
@transaction.non_atomic_requests
def apart(request):
    write("a")
    with transaction.atomic():
        write("b")
    connection.set_autocommit(False)
    write("c")
    connection.connection.commit()
    write("d")
    connection.connection.rollback()
    connection.set_autocommit(True)
    return HttpResponse(status=409)
urlpatterns.append(path("apart", apart))
@view
def afterwards(request):
    connection.close()
    write("a")
    return HttpResponse()
ask()
connection.set_autocommit(False)
connection.connection.commit()
"""
    lines = [line.partition("() is forbidden in a request")[0] for line in told(project, code)]
    assert lines == [
        *(
            line
            for name in ("commit", "rollback", "set_autocommit", "tpc_begin")
            for line in (name, f"{name}200 200 a b", name, f"{name}409 409")
        ),
        "set_autocommit",
        "not_begun 409",
        "COMMIT",
        "ROLLBACK",
        "by_statements 200 a b",
        "commit",
        "in_a_block 200 a b",
        "with_connection 500",
        "409",
        "commit",
        "nested 409",
        "nothing 409",
        "apart 409 a b c",
        "afterwards 200 a",
    ]


def test_keep_and_roll_back_decide_whatever_the_status(project: Path) -> None:
    code = """
connections.databases["other"] = connections.databases["default"]
@view
def rolled_back(request):
    write("a")
    rollback_request()
    return HttpResponse()
@view
def kept(request):
    write("a")
    keep_request()
    return HttpResponse(status=403)
@view
async def kept_in_an_async_view(request):
    from asgiref.sync import sync_to_async
    await sync_to_async(write)("a")
    keep_request()
    return HttpResponse(status=403)
@view
def kept_before_it_is_raised(request):
    write("a")
    keep_request()
    raise PermissionDenied
@view
def the_last_call_wins(request):
    keep_request()
    write("a")
    rollback_request()
    return HttpResponse()
@view
def one_of_two(request):
    write("a")
    write("b", "other")
    keep_request(using="other")
    return HttpResponse(status=409)
@view
def failed(request):
    write("a")
    keep_request()
    write("a")
    return HttpResponse(status=409)
@view
def elsewhere(request):
    try:
        keep_request(using="nowhere")
    except RuntimeError as error:
        return HttpResponse(status=418)
ask()
for decide in (keep_request, rollback_request):
    try:
        decide()
    except RuntimeError as error:
        print(error)
"""
    outside = "outside of a request that django_pgmonkey.middleware.TransactionMiddleware serves"
    assert told(project, code) == [
        "rolled_back 200",
        "kept 403 a",
        "kept_in_an_async_view 403 a",
        "kept_before_it_is_raised 403 a",
        "the_last_call_wins 200",
        "one_of_two 409 b",
        "failed 500",
        "elsewhere 418",
        outside,
        outside,
    ]


def test_views_that_opt_out(project: Path) -> None:
    code = """
def before(get_response):
    def serve(request):
        write("before")
        response = get_response(request)
        write("after")
        return response
    return serve
settings.MIDDLEWARE += [f"{__name__}.before"]
@view
@transaction.non_atomic_requests
def apart(request):
    write("apart")
    return HttpResponse(status=403)
@view
@transaction.non_atomic_requests
async def apart_and_async(request):
    from asgiref.sync import sync_to_async
    await sync_to_async(write)("apart")
    raise ValueError
@view
@transaction.non_atomic_requests
def durable(request):
    with transaction.atomic(durable=True):
        write("durable")
    return HttpResponse()
@view
@transaction.non_atomic_requests
def left_open(request):
    transaction.set_autocommit(False)
    write("lost")
    raise ValueError
@view
def not_durable(request):
    with transaction.atomic(durable=True):
        write("durable")
    return HttpResponse()
@view
@transaction.non_atomic_requests(using="other")
def another_database(request):
    write("a")
    return HttpResponse(status=403)
ask()
settings.MIDDLEWARE.pop()
ask()
"""
    assert told(project, code) == [
        "apart 403 apart before",
        "apart_and_async 500 apart before",
        "durable 200 after before durable",
        "left_open 500 before",
        "not_durable 500",
        "another_database 403",
        "apart 403 apart",
        "apart_and_async 500 apart",
        "durable 200 durable",
        "left_open 500",
        "not_durable 500",
        "another_database 403",
    ]


def test_packages_see_atomic_requests_while_the_transaction_lasts(project: Path) -> None:
    code = """
seen = []
def look():
    seen.append(bool(connection.settings_dict["ATOMIC_REQUESTS"]))
@view
def not_begun(request):
    look()
    return HttpResponse()
@view
def as_django_rest_framework_does(request):
    write("a")
    look()
    for each in connections.all():
        if each.settings_dict["ATOMIC_REQUESTS"] and each.in_atomic_block:
            each.set_rollback(True)
    return HttpResponse()
@view
def kept(request):
    write("a")
    keep_request()
    look()
    return HttpResponse(status=403)
ask()
look()
print(*seen, connection.settings_dict is connections.settings["default"])
"""
    assert told(project, code) == [
        "not_begun 200",
        "as_django_rest_framework_does 200",
        "kept 403 a",
        "False True False False True",
    ]


def test_what_django_rest_framework_answers(project: Path) -> None:
    pytest.importorskip("rest_framework")
    file = project / "settings.py"
    more = '["django.contrib.contenttypes", "django.contrib.auth", "rest_framework", "shop"]'
    file.write_text(file.read_text().replace('["shop"]', more))
    code = """
settings.REST_FRAMEWORK = {
    "EXCEPTION_HANDLER": f"{__name__}.handler",
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "UNAUTHENTICATED_USER": None,
}
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import APIView, exception_handler
def handler(error, context):
    if isinstance(error, ValueError):
        return Response("handled")
    response = exception_handler(error, context)
    response.status_code = 200
    return response
class View(APIView):
    def get(self, request, name):
        write("a")
        if name == "kept":
            keep_request()
        if name != "fine":
            raise {"value": ValueError}.get(name, exceptions.PermissionDenied)
        return Response("fine")
for name in ("fine", "value", "denied", "kept"):
    urlpatterns.append(path(name, View.as_view(), {"name": name}))
ask()
"""
    assert told(project, code) == ["fine 200 a", "value 200", "denied 200", "kept 200 a"]


def test_a_rolled_back_request_is_logged(project: Path) -> None:
    code = """
logging.disable(logging.NOTSET)
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(message)s")
for name in ("django", "asyncio", "pgmonkey.sql"):
    logging.getLogger(name).disabled = True
logging.getLogger("django.request").disabled = True
@view
def fine(request):
    write("a")
    return HttpResponse()
@view
def refused(request):
    for value in "ab":
        write(value)
    return HttpResponse(status=409)
@view
def raised(request):
    write("a")
    raise ValueError("secret")
@view
def untouched(request):
    return HttpResponse(status=404)
@view
def decided(request):
    write("a")
    rollback_request()
    return HttpResponse()
@view
def ignored(request):
    with contextlib.suppress(IntegrityError):
        write("a")
        write("a")
    return HttpResponse()
@view
def hook(request):
    write("a")
    transaction.on_commit(lambda: 1 / 0)
    return HttpResponse()
ask()
"""
    lines = [line for line in told(project, code) if "statements" in line]
    assert lines[:3] == [
        "GET refused: rolled back: the status is 409 (statements: 2)",
        "GET raised: rolled back: ValueError was raised (statements: 1)",
        "GET decided: rolled back: rollback_request() was called (statements: 1)",
    ]
    assert re.match(
        r"GET ignored: rolled back: nothing was committed: INSERT INTO written VALUES \(%s\) at \S+:\d+ \(write\)"
        r" failed and its error was ignored: duplicate key value violates unique constraint",
        lines[3],
    )
    assert lines[3].endswith(
        "put what may fail into 'with transaction.atomic():' and catch its error around that block (statements: 2)"
    )
    assert len(lines) == 4


def test_the_log_says_where_a_rollback_is_not_certain(project: Path) -> None:
    shutil.copy(inspect.getfile(FaultProxy), project / "proxy.py")
    code = """
from proxy import FaultProxy
logging.disable(logging.NOTSET)
logging.basicConfig(stream=sys.stdout, format="%(message)s")
logging.getLogger("pgmonkey").setLevel(logging.DEBUG)
logging.getLogger("pgmonkey.sql").setLevel(logging.CRITICAL)
params = connection.get_connection_params()
with FaultProxy(params["host"], int(params["port"])) as proxy:
    connection.close_pool()
    connection.settings_dict = {**connection.settings_dict, "HOST": "127.0.0.1", "PORT": proxy.port}
    @view
    def lost(request):
        write("a")
        proxy.cut_after = 1
        return HttpResponse()
    ask()
"""
    said = told(project, code)
    assert "lost 500 a" in said  # not 503 with Retry-After: the server is away, but it may be done
    (line,) = [line for line in said if "statements" in line]
    assert line.startswith("GET lost: outcome unknown: the answer to COMMIT was lost")
    assert line.endswith("(statements: 1)")


def test_a_server_that_is_away_is_a_503(project: Path) -> None:
    code = """
from django.urls import include
logging.disable(logging.NOTSET)
logging.basicConfig(stream=sys.stdout, format="%(name)s: %(message)s")
@view
def writes(request):
    write("a")
    return HttpResponse()
def inner(get_response):
    def serve(request):
        if "middleware" in request.path:
            write("a")
        return get_response(request)
    return serve
@view
def middleware(request):
    return HttpResponse()
@view
def nothing(request):
    return HttpResponse()
@view
async def adatabase(request):
    return HttpResponse(await django_pgmonkey.database().fetch_value("SELECT 'answered'"))
urlpatterns += [path("health/", include("django_pgmonkey.health"))]
def see(*paths):
    for each in paths:
        response = Client(raise_request_exception=False).get(each)
        print(response.status_code, response.get("Retry-After"), response.content.decode(), flush=True)
        connections.close_all()
see("/health/ready", "/health/live")
connections.settings["default"]["PORT"] = "1"
see("/writes", "/nothing", "/health/ready", "/health/live", "/middleware", "/adatabase")
"""
    seen = [line for line in told(project, code) if line.startswith(("pgmonkey:", "django.request:", "200", "503"))]
    # The pool's own report comes when its thread gets to it.
    seen = [line for line in seen if "cannot connect, trying again" not in line]
    assert [re.sub(r"(?<=connection failed): .* Connection refused.*", "", line) for line in seen] == [
        '200 None {"status": "ready"}',
        '200 None {"status": "live"}',
        "pgmonkey: connection failed",
        "503 1 The database is not available, please try again.",
        "200 None ",
        "pgmonkey: not ready: connection failed",
        '503 1 {"status": "unavailable"}',
        '200 None {"status": "live"}',
        # What a middleware raises, Django logs before anybody else hears of it.
        "django.request: Internal Server Error: /middleware",
        "pgmonkey: connection failed",
        "503 1 The database is not available, please try again.",
        "pgmonkey: connection failed",
        "503 1 The database is not available, please try again.",
    ]


# -- deadlines --------------------------------------------------------------------------------------------------------


def test_the_first_connection_of_a_process_has_the_time_of_its_request(project: Path) -> None:
    code = """
import time
import django_pgmonkey
from django.conf import settings
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.urls import path
settings.ROOT_URLCONF, settings.ALLOWED_HOSTS = __name__, ["testserver"]
settings.MIDDLEWARE = ["django_pgmonkey.middleware.TransactionMiddleware"]
settings.PGMONKEY_DEADLINE = 0.4
def read(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
async def read_async(request):
    await django_pgmonkey.database().fetch_value("SELECT 1")
urlpatterns = [path("read", read), path("read-async", read_async)]
started = time.monotonic()
for name in ("read", "read-async", "read"):
    answer = Client(raise_request_exception=False).get(f"/{name}")
    print(answer.status_code, answer.text)
print(time.monotonic() - started < 30)
"""
    file = project / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["pool_settings"]["timeout"] = 60
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and answers nothing
        config["connection_settings"] |= {"host": "127.0.0.1", "port": silent.getsockname()[1]}
        file.write_text(yaml.safe_dump(config))
        finished = run(project, code=code)
    assert ok(finished).splitlines() == ["504 The request took too long."] * 3 + ["True"]
    assert finished.stderr.count("no connection became free within 0.4 s (PGMONKEY_DEADLINE)") == 3


def test_a_deadline_holds_for_its_own_request(project: Path) -> None:
    code = """
from asgiref.sync import async_to_sync
settings.PGMONKEY_DEADLINE, settings.PGMONKEY_DEADLINE_HEADER = 30, "X-Timeout-Ms"
connection.settings_dict["CONN_MAX_AGE"] = None  # the connection outlives its requests
def sleep(seconds):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])
@view
def quick(request):
    write("quick")
    return HttpResponse(status=200)
@view
def late(request):
    write("late")
    sleep(60)
@view
def patient(request):
    write("patient")
    sleep(0.5)
    return HttpResponse(status=200)
@view
def asynchronous(request):
    async_to_sync(django_pgmonkey.database().execute)("SELECT pg_sleep(60)")
client = Client(raise_request_exception=False)
def ask(name, **headers):
    answer = client.get(f"/{name}", headers=headers)
    print(name, answer.status_code, answer.text)
ask("quick", **{"X-Timeout-Ms": "20000"})
sleep(0.2)
ask("patient")
for name in ("late", "asynchronous", "late"):
    ask(name, **{"X-Timeout-Ms": "400"})
print(sorted(row[0] for row in observer.execute("SELECT v FROM written")))
settings.PGMONKEY_DEADLINE = -1
try:
    Client().get("/quick")
except Exception as error:
    print(type(error).__name__, error)
"""
    assert told(project, code) == [
        "quick 200 ",
        "patient 200 ",
        *(f"{name} 504 The request took too long." for name in ("late", "asynchronous", "late")),
        "['patient', 'quick']",
        "ImproperlyConfigured PGMONKEY_DEADLINE: expected a positive number of seconds, got -1",
    ]
