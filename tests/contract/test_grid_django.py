"""Random programs on Django, over real servers: what is stored is what the status that left says."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import httpx
import psycopg
import pytest
import uvicorn
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import BadRequest, PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import path
from hypothesis import assume, given
from hypothesis import settings as settings_of_examples

from pgmonkey.testing import sandbox

from .grid import (
    ENDS,
    EVERY_EXAMPLE,
    EXAMPLES,
    GROUP,
    TOUCHES,
    Account,
    Crash,
    Part,
    Program,
    number_rows_anew,
    programs,
)

if TYPE_CHECKING:
    from pgmonkey.embedded import Server

HANDLERS = ("handler400", "handler403", "handler404", "handler500")
# What the view raises to refuse; Http404 for other statuses.
REFUSALS: dict[int, type[Exception]] = {409: PermissionDenied, 400: BadRequest}
ENDINGS = tuple(end for end in ENDS if end != "answer")  # Django has no exceptions with a response of their own

pytestmark = pytest.mark.timeout(10 * EXAMPLES)  # seconds: ten a program, on a busy machine

account = Account()
program = Program({}, {}, ())
served_by = "wsgi"


def answers(error: BaseException) -> int | None:
    kinds: dict[type[BaseException], int] = {PermissionDenied: 403, BadRequest: 400, Http404: 404}
    return kinds.get(type(error))


def touch(what: str, row: int) -> None:
    from django.db import DataError, connection, connections, transaction

    from django_pgmonkey import keep_request, rollback_request

    def write(table: str = "t", using: str = "default") -> None:
        with connections[using].cursor() as cursor:
            cursor.execute(f"INSERT INTO {table} VALUES (%s)", [row])

    if what in ("write", "late"):
        write("t" if what == "write" else "late")
    elif what == "write elsewhere":
        write("elsewhere", "other")
    elif what == "nested":
        with transaction.atomic():
            write()
    elif what == "undone":
        with contextlib.suppress(Crash), transaction.atomic():
            write()
            raise Crash
    elif what == "read":
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    elif what == "close":
        write()  # which is lost
        connection.close()
    elif what == "caught":
        with contextlib.suppress(DataError), connection.cursor() as cursor:
            cursor.execute("SELECT 1/0")
    else:
        (keep_request if what == "keep" else rollback_request)()


async def chunks() -> AsyncIterator[bytes]:
    yield b"a"


def end(part: Part, *, refuses: bool = False) -> HttpResponseBase:
    if part.end == "return":
        return HttpResponse(status=part.status)
    if part.end == "stream":
        return StreamingHttpResponse(chunks() if served_by == "asgi" else iter([b"a", b"b"]), status=part.status)
    if part.end == "refuse" and refuses:
        raise REFUSALS.get(part.status, Http404)
    if part.end == "group":
        raise GROUP("several", [Crash()])
    raise Crash


def do(name: str, handles: BaseException | None = None) -> HttpResponseBase:
    part = program.parts[name]
    error = (sys.exc_info()[1] or Exception()) if handles else None
    with account.part(answers=answers if name == "endpoint" else None, handles=error):
        for what, row in account.steps(part):
            touch(what, row)
        return end(part, refuses=name == "endpoint")


def view(request: HttpRequest) -> HttpResponseBase:
    return do("endpoint")


async def async_view(request: HttpRequest) -> HttpResponseBase:
    part = program.parts["endpoint"]
    with account.part(answers=answers):
        for what, row in account.steps(part):
            await sync_to_async(touch)(what, row)
        return end(part, refuses=True)


urlpatterns = [path("sync", view), path("async", async_view)]


class Answering:
    """A middleware that may answer what the view raises."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponseBase | None:
        return do("process_exception") if "process_exception" in program.parts else None


def turning(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    def turn(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        return HttpResponse(status=program.turns["turning"]) if "turning" in program.turns else response

    return turn


def set_up(drawn: Program, server: str) -> None:
    """Let Django serve *drawn* from here on."""
    global program, account, served_by
    program, account, served_by = drawn, Account(), server
    settings.MIDDLEWARE = [
        "django_pgmonkey.middleware.TransactionMiddleware",
        *(f"{__name__}.{name}" for name in drawn.order),
    ]
    for name in HANDLERS:

        def handler(request: HttpRequest, exception: object = None, name: str = name) -> HttpResponseBase:
            return do(name, handles=sys.exc_info()[1])

        globals()[name] = handler if name in drawn.parts else None


@pytest.fixture(scope="module")
def observer(server: Server) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the database of this process, which Django is set up for."""
    name = f"grid_django_{os.getpid()}"
    server.create_database(name)
    config = {**server.config(name), "pool_settings": {"min_size": 1, "max_size": 4, "timeout": 10}}
    database = {"ENGINE": "django_pgmonkey", "OPTIONS": {"config": config}}
    settings.configure(
        SECRET_KEY="x",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        DATABASES={"default": database, "other": database},
        LOGGING_CONFIG=None,
    )
    from django import setup
    from django.db import connections

    setup()
    with psycopg.connect(server.dsn(name), autocommit=True) as connection:
        connection.execute("""
            CREATE TABLE t (row int); CREATE TABLE elsewhere (row int); CREATE TABLE late (row int);
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
            CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION refuse();
        """)
        yield connection
        connections["default"].close_pool()  # type: ignore[attr-defined]
        connections["other"].close_pool()  # type: ignore[attr-defined]
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def wsgi(observer: object) -> Iterator[httpx.Client]:
    from django.core.wsgi import get_wsgi_application

    def serve(environ: Any, start_response: Any) -> Any:
        return get_wsgi_application()(environ, start_response)

    with make_server("127.0.0.1", 0, serve, handler_class=Quiet) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{httpd.server_port}", timeout=30) as client:
            yield client
        httpd.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def asgi(observer: object) -> Iterator[httpx.Client]:
    from django.core.asgi import get_asgi_application

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        await get_asgi_application()(scope, receive, send)

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(serve, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=30) as client:
            yield client
        server.should_exit = True
        thread.join()


def check(
    drawn: Program, server: str, client: httpx.Client, url: str, observer: psycopg.Connection[Any]
) -> tuple[int, list[int]]:
    """Serve a program, and compare what is stored with the account; return the status and the rows."""
    # A handler500 that raises is called again, which ends what keep_request() decided.
    raising = drawn.parts.get("handler500", drawn.parts["endpoint"]).end not in ("return", "stream")
    keeps = any("keep" in part.touches for part in drawn.parts.values())
    assume(not ("handler500" in drawn.parts and raising and keeps))
    observer.execute("TRUNCATE t, elsewhere, late")
    set_up(drawn, server)
    status = client.get(url).status_code
    query = "SELECT row FROM t UNION ALL SELECT row FROM elsewhere UNION ALL SELECT row FROM late ORDER BY 1"
    stored: list[int] = [row[0] for row in observer.execute(query).fetchall()]
    assert stored == sorted(account.stored(status)), status
    return status, stored


@EVERY_EXAMPLE
@given(programs((*HANDLERS, "process_exception"), ("turning",), ("Answering", "turning"), ends=ENDINGS))
def test_p1_p2_what_is_stored_is_what_the_status_says(
    wsgi: httpx.Client, observer: psycopg.Connection[Any], drawn: Program
) -> None:
    check(drawn, "wsgi", wsgi, "/sync", observer)


@EVERY_EXAMPLE
@given(programs(("process_exception",), ("turning",), ("Answering", "turning"), ends=ENDINGS))
def test_p1_p2_what_is_stored_is_what_the_status_says_under_asgi(
    asgi: httpx.Client, observer: psycopg.Connection[Any], drawn: Program
) -> None:
    for url in ("/sync", "/async"):
        check(drawn, "asgi", asgi, url, observer)


# One database: there are two aliases for it, and a request that writes by both waits for itself in a sandbox.
@settings_of_examples(EVERY_EXAMPLE, max_examples=max(EXAMPLES // 5, 10))
@given(
    programs(
        (*HANDLERS, "process_exception"),
        ("turning",),
        ("Answering", "turning"),
        touches=[touch for touch in TOUCHES if touch != "write elsewhere"],
        ends=ENDINGS,
    )
)
def test_p1_p2_a_program_is_answered_in_a_sandbox_as_outside(
    wsgi: httpx.Client, observer: psycopg.Connection[Any], server: Server, drawn: Program
) -> None:
    number_rows_anew()
    outside = check(drawn, "wsgi", wsgi, "/sync", observer)
    observer.execute("TRUNCATE t, elsewhere, late")
    number_rows_anew()
    with sandbox(server.dsn(observer.info.dbname), patience=60) as opened:
        with psycopg.connect(opened.dsn, autocommit=True) as inside:
            assert check(drawn, "wsgi", wsgi, "/sync", inside) == outside
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (0,), "nothing is left"
