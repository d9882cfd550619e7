"""Whatever a Flask application does, and whoever answers: what is stored is what the status that left says."""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flask
import httpx
import psycopg
import pytest
from flask import Blueprint, Flask, Response
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.exceptions import HTTPException
from werkzeug.serving import make_server

from flask_pgmonkey import PGMonkey
from pgmonkey.embedded import Server

from .grid import (
    EVERY_EXAMPLE,
    EXAMPLES,
    GROUP,
    TOUCHES,
    WITH,
    Account,
    Crash,
    Part,
    Program,
    TwoDatabases,
    programs,
    unlogged,
)

pytestmark = pytest.mark.timeout(10 * EXAMPLES)  # seconds: ten a program, on a busy machine


def installed(name: str) -> Any:
    """Return the module *name*, or None where it is not installed."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(name)


APIS = {name: installed(f"flask_{name}") for name in ("restx", "restful")}
HOSTS = ["plain", "blueprint", *(name for name, module in APIS.items() if module)]
PROGRAMS = programs(
    others=("before", "handler", "handler of all", "handler of http", "handler of 409", "handler of 500", "after"),
    middlewares=("middleware", "generator"),
    order=("pgmonkey", "api", "middleware", "generator"),
    touches=(*TOUCHES, WITH),
)
OTHER = "other"


class Site(TwoDatabases):
    """A real server that serves one application after the other, over two databases."""

    def __init__(self, server: Server) -> None:
        super().__init__(server, "flask")
        self.app: Callable[..., Iterable[bytes]]
        self.server = make_server("127.0.0.1", 0, lambda environ, start: self.app(environ, start), threaded=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.server.server_port}", timeout=30)

    def serve(self, app: Flask) -> int:
        self.app = app
        return self.client.get("/").status_code

    def stop(self) -> None:
        self.client.close()
        self.server.shutdown()
        self.close()


@pytest.fixture(scope="module")
def site(server: Server) -> Iterator[Site]:
    site = Site(server)
    with unlogged():
        yield site
    site.stop()


class Play:
    """Builds the application of a *program*, and plays its parts."""

    def __init__(self, program: Program, host: str, configs: list[dict[str, Any]]) -> None:
        self.program = program
        self.account = Account()
        self.db = PGMonkey()
        self.app = app = Flask("grid")
        app.config.update(PGMONKEY_CONFIG=configs[0], PGMONKEY_BINDS={OTHER: configs[1]})
        self.api: Any = make_api(host)
        if host in APIS:
            resource = type("Endpoint", (APIS[host].Resource,), {"get": lambda resource: self.endpoint()})
            self.api.add_resource(resource, "/")
        for name in program.order:
            self.set_up(name)
        self.add_endpoint(host)
        handle = app.register_error_handler
        if "before" in program.parts:
            app.before_request(self.before)
        if "after" in program.parts:
            app.after_request(self.after)
        if "handler" in program.parts:
            for kind in filter(None, (Crash, GROUP, psycopg.Error)):
                handle(kind, lambda error: self.play("handler", handles=original(error)))
                if host == "restx":
                    self.api.errorhandler(kind)(self.handle_in_restx)
        for what, kind in (("all", Exception), ("http", HTTPException), ("409", 409), ("500", 500)):
            if (name := f"handler of {what}") in program.parts:
                handle(kind, lambda error, name=name: self.play(name, handles=original(error)))

    def set_up(self, name: str) -> None:
        app, status = self.app, self.program.turns.get(name)
        if name == "pgmonkey":
            self.db.init_app(app)
        elif name == "api":
            if self.api is not None:
                self.api.init_app(app)
        elif status is not None:
            turned = self.turned if name == "middleware" else self.turned_by_generator
            app.wsgi_app = turned(app.wsgi_app, f"{status} TURNED")  # type: ignore[method-assign]

    def add_endpoint(self, host: str) -> None:
        if host == "blueprint":
            part = Blueprint("part", __name__)
            part.get("/")(self.endpoint)
            self.app.register_blueprint(part)
        elif host == "plain":
            self.app.get("/")(self.endpoint)

    # -- middleware -------------------------------------------------------------------------------------------------

    def turned(self, app: Any, status: str) -> Any:
        """Middleware that passes on what it is given, but for the status."""

        def middleware(environ: Any, start_response: Any) -> Any:
            try:
                return app(environ, lambda _, headers, exc_info=None: start_response(status, headers, exc_info))
            except Exception as error:
                with self.account.part(handles=error):
                    start_response(status, [])
                return []

        return middleware

    def turned_by_generator(self, app: Any, status: str) -> Any:
        """Middleware that is a generator, and holds the response back until it is whole."""

        def middleware(environ: Any, start_response: Any) -> Any:
            try:
                body = app(environ, lambda status, headers, exc_info=None: None)
                list(body)
                if hasattr(body, "close"):
                    body.close()
            except Exception as error:
                with self.account.part(handles=error):
                    pass
            start_response(status, [("Content-Length", "4")])
            yield b"held"

        return middleware

    def handle_in_restx(self, error: Exception) -> tuple[dict[str, str], int]:
        return {}, self.play("handler", handles=original(error)).status_code

    # -- parts --------------------------------------------------------------------------------------------------------

    def endpoint(self) -> Response:
        return self.play("endpoint", answers=status_of)

    def before(self) -> Response | None:
        response = self.play("before", answers=status_of)
        return response if self.program.parts["before"].end == "stream" else None

    def after(self, response: Response) -> Response:
        # What is raised then, Flask only logs.
        frames = (frame for frame, _ in traceback.walk_stack(None) if frame.f_code.co_name == "finalize_request")
        alone = any(frame.f_locals.get("from_error_handler") for frame in frames)
        response.status_code = self.play("after", handles=original(sys.exc_info()[1]), alone=alone).status_code
        return response

    def play(self, name: str, **how: Any) -> Response:
        part = self.program.parts[name]
        with self.account.part(**how):
            for touch, row in self.account.steps(part):
                self.touch(touch, row)
            return end(part)
        raise AssertionError

    def touch(self, touch: str, row: int) -> None:
        db = self.db
        if touch == "write":
            db.execute("INSERT INTO t VALUES (%s)", [row])
        elif touch == "write elsewhere":
            db[OTHER].execute("INSERT INTO t VALUES (%s)", [row])
        elif touch == "nested":
            with db.transaction():
                db.execute("INSERT INTO t VALUES (%s)", [row])
        elif touch == WITH:
            with db.connection as connection:
                connection.execute("INSERT INTO t VALUES (%s)", [row])
        elif touch == "undone":
            with contextlib.suppress(Crash), db.transaction():
                db.execute("INSERT INTO t VALUES (%s)", [row])
                raise Crash
        elif touch == "read":
            db.fetch_value("SELECT count(*) FROM t")
        elif touch == "late":
            db.execute("INSERT INTO late VALUES (%s)", [row])
        elif touch == "caught":
            with contextlib.suppress(psycopg.Error):
                db.execute("SELECT * FROM missing")
        elif touch == "close":
            connection = db.connection
            connection.execute("SELECT 1")  # or nothing is open, and nothing is lost
            connection.close()
        elif touch == "keep":
            db.keep_request()
        else:
            db.rollback_request()


def make_api(host: str) -> Any:
    return APIS[host].Api() if host in APIS else None


def original(error: BaseException | None) -> BaseException | None:
    """Return what was raised, also where Flask gives its own 500 to the handler."""
    return getattr(error, "original_exception", None) or error


def end(part: Part) -> Response:
    response = Response("", part.status)
    if part.end == "stream":
        response = Response(iter(["a", "b"]), part.status)
    elif part.end == "refuse":
        raise type("Refused", (HTTPException,), {"code": part.status})()
    elif part.end == "answer":
        flask.abort(response)
    elif part.end == "raise":
        raise Crash
    elif part.end == "group":
        raise GROUP("several", [Crash(), ValueError()])
    return response


def status_of(error: BaseException) -> int | None:
    return error.get_response().status_code if isinstance(error, HTTPException) else None


@EVERY_EXAMPLE
@given(program=PROGRAMS, host=st.sampled_from(HOSTS), propagate=st.booleans())
def test_p1_p2_what_is_stored_is_what_the_status_says(site: Site, program: Program, host: str, propagate: bool) -> None:
    play = Play(program, host, site.configs)
    play.app.config["PROPAGATE_EXCEPTIONS"] = propagate
    status = site.serve(play.app)
    assert status != 404
    assert site.stored() == play.account.stored(status)
