"""The status that leaves decides, whoever made it; an exception rolls back, whoever answers it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flask
import psycopg
import pytest
from flask import Flask, Response
from flask.sessions import SecureCookieSessionInterface
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from flask_pgmonkey import PGMonkey
from pgmonkey import CommitUnknownError, ServerUnavailableError

from ..faults.proxy import FaultProxy

Observer = psycopg.Connection[Any]
Body = Iterable[bytes]


@pytest.fixture
def db() -> PGMonkey:
    return PGMonkey()


@pytest.fixture
def raw(config: dict[str, Any], observer: Observer) -> Flask:
    """An application on which no extension is set up."""
    observer.execute("CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    app = Flask("shop")
    app.config.update(PGMONKEY_CONFIG=config)
    return app


@pytest.fixture
def app(raw: Flask, db: PGMonkey) -> Flask:
    db.init_app(raw)
    return raw


def rows(observer: Observer) -> list[int]:
    return [row[0] for row in observer.execute("SELECT a FROM t ORDER BY a").fetchall()]


def insert(db: PGMonkey, a: int) -> None:
    db.execute("INSERT INTO t VALUES (%s)", [a])


# -- the framework's own HTTP exceptions ------------------------------------------------------------------------------


class Found(HTTPException):
    code = 302


def throw(error: Exception) -> None:
    raise error


def not_modified(environ: Any, start_response: Any) -> Body:
    """A WSGI application, whose status is known when it has run."""
    start_response("304 NOT MODIFIED", [])
    return []


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (lambda: flask.abort(flask.redirect("/elsewhere")), 302),
        (lambda: flask.abort(flask.make_response("ok", 200)), 200),
        (lambda: throw(HTTPException(response=not_modified)), 304),  # type: ignore[arg-type]
        (lambda: throw(Found()), 302),
        (lambda: flask.abort(flask.make_response("no", 409)), 409),
        (lambda: flask.abort(403), 403),
    ],
)
def test_the_status_of_an_http_exception_decides(
    app: Flask, db: PGMonkey, observer: Observer, answer: Callable[[], None], status: int
) -> None:
    @app.post("/")
    def view() -> str:
        insert(db, 1)
        answer()
        return ""

    assert app.test_client().post("/").status_code == status
    assert rows(observer) == ([1] if status < 400 else [])


def test_a_handler_turns_an_abort_into_a_success(app: Flask, db: PGMonkey, observer: Observer) -> None:
    @app.errorhandler(404)
    def handler(error: Exception) -> str:
        insert(db, 9)
        return "nothing here"

    @app.post("/")
    def view() -> str:
        insert(db, 1)
        flask.abort(404)

    assert app.test_client().post("/").status_code == 200
    assert rows(observer) == [9]


# -- extensions that handle exceptions --------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["extension first", "extension last"])
@pytest.mark.parametrize("name", ["flask_restx", "flask_restful"])
def test_an_extension_that_handles_exceptions_itself(
    raw: Flask, db: PGMonkey, observer: Observer, name: str, order: str
) -> None:
    extension = pytest.importorskip(name)

    class Api(extension.Api):  # type: ignore[misc, name-defined]
        def handle_error(self, error: Exception) -> Response:
            return self.make_response({"rows": db.fetch_value("SELECT count(*) FROM t")}, 200)  # type: ignore[no-any-return]

    class Rows(extension.Resource):  # type: ignore[misc, name-defined]
        def post(self, what: str) -> None:
            insert(db, 1)
            db.execute("SELECT * FROM missing") if what == "statement" else flask.abort(409)

    api = Api()
    api.add_resource(Rows, "/<what>")
    for each in (api, db) if order == "extension first" else (db, api):
        each.init_app(raw)
    for what in ("statement", "abort"):
        answer = raw.test_client().post(f"/{what}")
        assert (answer.status_code, answer.json) == (200, {"rows": 0})
    assert rows(observer) == []


# -- after_request and teardown functions -----------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "left"), [(200, [9]), (500, [])])
def test_an_after_request_function_that_raises(
    app: Flask, db: PGMonkey, observer: Observer, status: int, left: list[int]
) -> None:
    calls: list[int] = []

    @app.after_request
    def after(response: Response) -> Response:
        calls.append(response.status_code)
        insert(db, 10 + len(calls))
        raise ZeroDivisionError

    @app.errorhandler(500)
    def handler(error: Exception) -> tuple[str, int]:
        assert db.fetch_value("SELECT count(*) FROM t") == 0
        insert(db, 9)
        return "handled", status

    @app.post("/")
    def view() -> str:
        insert(db, 1)
        return ""

    assert app.test_client().post("/").status_code == status
    assert calls == [200, status], "Flask calls it again for what the handler answers, and logs what it raises"
    assert rows(observer) == left


@pytest.mark.parametrize("propagate", [False, True])
def test_what_teardown_functions_do_is_its_own_transaction(
    app: Flask, db: PGMonkey, observer: Observer, propagate: bool
) -> None:
    app.config["PROPAGATE_EXCEPTIONS"] = propagate
    app.teardown_request(lambda error: insert(db, 7))
    app.teardown_appcontext(lambda error: insert(db, 8))

    @app.post("/")
    def view() -> str:
        insert(db, 1)
        raise ZeroDivisionError

    if propagate:
        with pytest.raises(ZeroDivisionError):
            app.test_client().post("/")
    else:
        assert app.test_client().post("/").status_code == 500
    assert rows(observer) == [7, 8]


@pytest.mark.parametrize("kind", ["teardown_request", "teardown_appcontext"])
def test_a_teardown_function_that_raises_makes_no_error_of_what_is_stored(
    app: Flask, db: PGMonkey, observer: Observer, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    getattr(app, kind)(lambda error: 1 / 0)

    @app.post("/<int:status>")
    def view(status: int) -> tuple[str, int]:
        insert(db, status)
        return "", status

    @app.get("/")
    def without() -> str:
        return ""

    http = app.test_client()
    assert http.post("/200").status_code == 200
    (logged,) = [record for record in caplog.records if record.name == app.name]
    assert logged.message.startswith("POST /<int:status> was committed")
    assert logged.exc_info is not None
    assert logged.exc_info[0] is ZeroDivisionError
    app.config["PROPAGATE_EXCEPTIONS"] = True
    with pytest.raises(ZeroDivisionError):
        http.post("/201")
    app.config["PROPAGATE_EXCEPTIONS"] = False
    with pytest.raises(ZeroDivisionError):
        http.post("/409")
    with pytest.raises(ZeroDivisionError):
        http.get("/")
    assert rows(observer) == [200, 201]


def test_what_teardown_functions_do_after_an_interrupt_is_its_own_transaction(
    app: Flask, db: PGMonkey, observer: Observer
) -> None:
    app.teardown_request(lambda error: insert(db, 7))

    @app.post("/")
    def view() -> str:
        insert(db, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        app.test_client().post("/")
    assert rows(observer) == [7]


def test_an_exception_before_the_view_rolls_back(app: Flask, db: PGMonkey, observer: Observer) -> None:
    app.register_error_handler(ZeroDivisionError, lambda error: "fine")
    app.register_error_handler(500, lambda error: ("fine", 200))

    class Sessions(SecureCookieSessionInterface):
        def open_session(self, app: Flask, request: flask.Request) -> Any:
            if request.path == "/session":
                insert(db, 1)
                raise ZeroDivisionError
            return super().open_session(app, request)

    def receiver(sender: Flask, **kwargs: Any) -> None:
        insert(db, 2)
        raise ZeroDivisionError

    app.session_interface = Sessions()
    flask.request_started.connect(receiver, app)
    for path in ("/session", "/signal"):
        assert app.test_client().get(path).status_code == 200
    assert rows(observer) == []


# -- WSGI middleware --------------------------------------------------------------------------------------------------


def generator(app: Any) -> Any:
    def middleware(environ: Any, start_response: Any) -> Iterator[bytes]:
        yield b""
        yield from app(environ, start_response)

    return middleware


def turning(app: Any) -> Any:
    """Middleware that answers success with 429, and an exception with 200."""

    def middleware(environ: Any, start_response: Any) -> Any:
        def start(status: str, headers: Any, exc_info: Any = None) -> Any:
            return start_response("429 SLOW DOWN" if status.startswith("2") else status, headers, exc_info)

        try:
            return app(environ, start)
        except ZeroDivisionError:
            start_response("200 OK", [])
            return []

    return middleware


def holding_back(app: Any) -> Any:
    """Middleware that answers when it has the whole body."""

    def middleware(environ: Any, start_response: Any) -> Body:
        started: list[Any] = []
        # It may also give the application an environment of its own.
        body = app(dict(environ), lambda *arguments: started.append(arguments))
        whole = b"".join(body)
        body.close()
        start_response(*started[-1])
        return [whole]

    return middleware


@pytest.fixture(params=["middleware first", "middleware last"])
def around(request: pytest.FixtureRequest, raw: Flask, db: PGMonkey) -> Callable[[Any], Flask]:
    """A function that sets the application up with a middleware, in either order."""

    def set_up(middleware: Any) -> Flask:
        if request.param == "middleware last":
            db.init_app(raw)
        raw.wsgi_app = middleware(raw.wsgi_app)  # type: ignore[method-assign]
        if request.param == "middleware first":
            db.init_app(raw)
        return raw

    return set_up


@pytest.mark.parametrize("middleware", [generator, holding_back])
def test_a_middleware_may_answer_late(
    around: Callable[[Any], Flask], db: PGMonkey, observer: Observer, middleware: Any
) -> None:
    app = around(middleware)

    @app.post("/<int:status>")
    def view(status: int) -> tuple[str, int]:
        insert(db, status)
        assert rows(observer) == []
        return "body", status

    answer = app.test_client().post("/409")
    assert (answer.status_code, answer.text) == (409, "body")
    assert rows(observer) == []
    answer = app.test_client().post("/201")
    assert (answer.status_code, answer.text) == (201, "body")
    assert rows(observer) == [201]


@pytest.mark.parametrize("middleware", [generator, holding_back, turning])
def test_a_failing_commit_under_a_middleware(
    around: Callable[[Any], Flask], db: PGMonkey, observer: Observer, middleware: Any
) -> None:
    app = around(middleware)

    @app.errorhandler(psycopg.errors.UniqueViolation)
    def handler(error: Exception) -> tuple[str, int]:
        insert(db, 9)
        return flask.request.path, 203

    @app.post("/path")
    def view() -> str:
        insert(db, 1)
        insert(db, 1)
        return "body"

    observer.execute("TRUNCATE t")
    if middleware is turning:  # which refuses
        assert app.test_client().post("/path").status_code == 429
        assert rows(observer) == []
        return
    answer = app.test_client().post("/path")
    assert (answer.status_code, answer.text) == (203, "/path")
    assert rows(observer) == [9]


def test_the_status_of_a_middleware_decides(around: Callable[[Any], Flask], db: PGMonkey, observer: Observer) -> None:
    app = around(turning)
    app.config["PROPAGATE_EXCEPTIONS"] = True

    @app.post("/<what>")
    def view(what: str) -> Any:
        insert(db, 1)
        return flask.redirect("/") if what == "redirect" else str(1 / (what == "fine"))

    assert [app.test_client().post(path).status_code for path in ("/fine", "/broken")] == [429, 200]
    assert rows(observer) == []
    assert app.test_client().post("/redirect").status_code == 302
    assert rows(observer) == [1]


def test_an_application_that_is_mounted_in_another(
    app: Flask, db: PGMonkey, config: dict[str, Any], observer: Observer
) -> None:
    outer, outer_db = Flask("outer"), PGMonkey()
    outer.config["PGMONKEY_CONFIG"] = config
    outer.wsgi_app = DispatcherMiddleware(outer.wsgi_app, {"/shop": app.wsgi_app})  # type: ignore[method-assign]
    outer_db.init_app(outer)
    for each, database, a in ((app, db, 1), (outer, outer_db, 2)):

        @each.post("/<int:status>")
        def view(status: int, database: PGMonkey = database, a: int = a) -> tuple[str, int]:
            insert(database, a)
            return "", status

    client = Client(outer)
    for path in ("/shop/409", "/409"):
        assert client.post(path).status_code == 409
        assert rows(observer) == []
    for path in ("/shop/200", "/200"):
        assert client.post(path).status_code == 200
    assert rows(observer) == [1, 2]


def test_an_application_keeps_the_name_of_its_class(app: Flask) -> None:
    assert isinstance(app, Flask)
    assert repr(app) == "<Flask 'shop'>"


# -- what cannot be committed -----------------------------------------------------------------------------------------


def test_a_broken_transaction_takes_those_of_the_other_databases_with_it(
    raw: Flask, db: PGMonkey, config: dict[str, Any], observer: Observer
) -> None:
    raw.config["PGMONKEY_BINDS"] = {"reports": config}
    db.init_app(raw)

    @raw.post("/")
    def view() -> str:
        insert(db, 1)
        with pytest.raises(psycopg.Error):
            db["reports"].execute("SELECT * FROM missing")
        return ""

    assert raw.test_client().post("/").status_code == 500
    assert rows(observer) == []


# -- deciding otherwise -----------------------------------------------------------------------------------------------


def test_rollback_request(app: Flask, db: PGMonkey, observer: Observer) -> None:
    @app.post("/")
    def view() -> str:
        insert(db, 1)
        db.rollback_request()
        insert(db, 2)
        return "a preview"

    assert app.test_client().post("/").status_code == 200
    assert rows(observer) == []


@pytest.mark.parametrize("end", ["return", "abort", "raise"])
def test_keep_request(app: Flask, db: PGMonkey, observer: Observer, end: str) -> None:
    app.register_error_handler(ZeroDivisionError, lambda error: ("", 401))

    @app.post("/")
    def view() -> tuple[str, int]:
        db.rollback_request()
        db.keep_request()  # the last call counts
        insert(db, 1)
        if end == "raise":
            raise ZeroDivisionError
        if end == "abort":
            flask.abort(401)
        return "", 401

    assert app.test_client().post("/").status_code == 401
    assert rows(observer) == [1]


def test_keep_request_saves_no_transaction_that_failed(app: Flask, db: PGMonkey, observer: Observer) -> None:
    @app.post("/<what>")
    def view(what: str) -> tuple[str, int]:
        insert(db, 1)
        db.keep_request()
        if what == "raised":
            db.execute("SELECT * FROM missing")
        with pytest.raises(psycopg.Error):
            db.execute("SELECT * FROM missing")
        return "", 409

    @app.errorhandler(psycopg.errors.UndefinedTable)
    def handler(error: Exception) -> tuple[str, int]:
        insert(db, 9)
        return "", 409

    assert app.test_client().post("/ignored").status_code == 500
    assert app.test_client().post("/raised").status_code == 409
    assert rows(observer) == []


def test_keep_request_when_the_exception_is_passed_on(app: Flask, db: PGMonkey, observer: Observer) -> None:
    app.testing = True

    @app.post("/")
    def view() -> str:
        insert(db, 1)
        db.keep_request()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        app.test_client().post("/")
    assert rows(observer) == [1]


def test_only_a_request_has_an_end_to_decide(app: Flask, db: PGMonkey) -> None:
    @app.get("/stream")
    def stream() -> Response:
        return Response(flask.stream_with_context(str(decide()) for _ in range(1)))

    @app.get("/statement")
    @db.transaction_per("statement")
    def statement() -> str:
        return str(decide())

    def decide() -> RuntimeError:
        with pytest.raises(RuntimeError) as error:
            db.keep_request()
        return error.value

    for app_context in (app.app_context(), app.test_request_context("/")):
        with app_context:
            assert "work only during a request" in str(decide())
    assert "work only during a request" in app.test_client().get("/stream").text
    assert "no transaction of this request" in app.test_client().get("/statement").text


def test_the_log_says_why_a_request_was_rolled_back(app: Flask, db: PGMonkey, caplog: pytest.LogCaptureFixture) -> None:
    @app.post("/orders/<what>")
    def view(what: str) -> tuple[str, int]:
        if what != "nothing":
            insert(db, 1)
        if what == "twice":
            insert(db, 1)
        if what == "preview":
            db.rollback_request()
        if what == "error":
            raise ZeroDivisionError
        return "", 409 if what in ("refused", "nothing") else 200

    caplog.set_level(logging.DEBUG, "pgmonkey")
    for what in ("fine", "nothing", "refused", "preview", "twice", "error"):
        caplog.clear()
        app.test_client().post(f"/orders/{what}")
        found = [record.getMessage() for record in caplog.records if "rolled back" in record.getMessage()]
        why = {"refused": "status 409", "preview": "rollback_request()", "twice": "UniqueViolation"}
        why["error"] = "ZeroDivisionError"
        statements = 2 if what == "twice" else 1
        line = f"POST /orders/<what>: rolled back: {why.get(what)} (statements: {statements})"
        assert found == ([line] if what in why else [])


def test_the_log_says_where_a_rollback_is_not_certain(
    raw: Flask, db: PGMonkey, config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    settings = config["connection_settings"]
    with FaultProxy(settings["host"], int(settings["port"])) as proxy:
        through = {**config, "connection_settings": {**settings, "host": "127.0.0.1", "port": proxy.port}}
        raw.config.update(PGMONKEY_CONFIG=through, PGMONKEY_BINDS={"other": config})
        db.init_app(raw)

        @raw.post("/lost")
        def lost() -> str:
            insert(db, 1)
            proxy.cut_after = 1
            return ""

        @raw.post("/part")
        def part() -> str:
            insert(db, 2)
            db["other"].execute("INSERT INTO t VALUES (3), (3)")
            return ""

        @raw.errorhandler(CommitUnknownError)
        def handler(error: Exception) -> str:
            # The server is away, but nobody may be told to try again.
            return str(db.fetch_value("SELECT 1"))

        caplog.set_level(logging.DEBUG, "pgmonkey")
        for name in ("lost", "part"):
            assert raw.test_client().post(f"/{name}").status_code == 500
            proxy.cut_after = 0
    told = [record.getMessage() for record in caplog.records if record.name == "pgmonkey"]
    assert [message for message in told if "(statements: " in message] == [
        "POST /lost: outcome unknown: CommitUnknownError (statements: 1)",
        "POST /part: committed in part: UniqueViolation (statements: 2)",
    ]


# -- a server that is away --------------------------------------------------------------------------------------------


@pytest.fixture
def away(config: dict[str, Any], db: PGMonkey) -> Flask:
    app = Flask("shop")
    settings = {**config["connection_settings"], "port": 1, "connect_timeout": 2}
    app.config["PGMONKEY_CONFIG"] = {**config, "connection_settings": settings}
    db.init_app(app)
    app.register_blueprint(db.health_blueprint())
    return app


def test_a_server_that_is_away_is_a_503_and_one_line(
    away: Flask, db: PGMonkey, caplog: pytest.LogCaptureFixture
) -> None:
    away.get("/")(lambda: str(db.fetch_value("SELECT 1")))
    away.register_error_handler(404, lambda error: query())

    def query() -> str:
        return str(db.fetch_value("SELECT 1"))

    for path in ("/", "/nowhere"):
        caplog.clear()
        answer = away.test_client().get(path)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
        assert "Connection refused" in record.getMessage() or "unexpectedly" in record.getMessage()
        assert "\n" not in record.getMessage()
        assert record.exc_info is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"password": "not the one"}, "password authentication failed"),
        ({"dbname": "nowhere"}, 'database "nowhere" does not exist'),
        ({"user": "nobody"}, "authentication failed"),
    ],
)
def test_a_server_that_lets_nobody_in_is_a_503_and_one_line(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture, change: dict[str, str], why: str
) -> None:
    app = Flask("shop")
    app.config["PGMONKEY_CONFIG"] = {**config, "connection_settings": {**config["connection_settings"], **change}}
    db = PGMonkey(app)
    app.get("/")(lambda: str(db.fetch_value("SELECT 1")))
    answer = app.test_client().get("/")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert why in record.getMessage()
    assert "not the one" not in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize("order", ["extension first", "extension last"])
@pytest.mark.parametrize("name", ["flask_restx", "flask_restful"])
def test_a_server_that_is_away_behind_an_extension(
    config: dict[str, Any], db: PGMonkey, caplog: pytest.LogCaptureFixture, name: str, order: str
) -> None:
    extension = pytest.importorskip(name)
    app = Flask("shop")
    app.config["PGMONKEY_CONFIG"] = {**config, "connection_settings": {**config["connection_settings"], "port": 1}}

    class Rows(extension.Resource):  # type: ignore[misc, name-defined]
        def get(self, what: str) -> None:
            if what == "bug":
                raise ZeroDivisionError
            db.execute("SELECT 1")

    api = extension.Api()
    api.add_resource(Rows, "/<what>")
    for each in (api, db) if order == "extension first" else (db, api):
        each.init_app(app)
    answer = app.test_client().get("/away")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert record.exc_info is None
    assert app.test_client().get("/bug").status_code == 500
    assert caplog.records[-1].exc_info is not None
    # Its own handlers come first.
    if name == "flask_restx":
        api.errorhandler(ServerUnavailableError)(lambda error: ({}, 418))
        assert app.test_client().get("/away").status_code == 418


def test_a_handler_of_the_application_is_called_once(away: Flask, db: PGMonkey) -> None:
    called: list[Exception] = []

    def handler(error: Exception) -> tuple[str, int]:
        called.append(error)
        return "sorry", 500

    away.register_error_handler(ServerUnavailableError, handler)
    away.get("/")(lambda: str(db.fetch_value("SELECT 1")))
    assert away.test_client().get("/").text == "sorry"
    assert len(called) == 1


def test_an_after_request_function_without_a_server_is_a_503(away: Flask, db: PGMonkey) -> None:
    away.after_request(lambda response: Response(str(db.fetch_value("SELECT 1"))))
    assert away.test_client().get("/nowhere").status_code == 503


def test_the_applications_own_handler_may_need_the_server_too(away: Flask, db: PGMonkey) -> None:
    away.register_error_handler(ServerUnavailableError, lambda error: str(db.fetch_value("SELECT 1")))
    away.register_error_handler(500, lambda error: ("sorry", 500))
    away.get("/")(lambda: str(db.fetch_value("SELECT 1")))
    answer = away.test_client().get("/")
    assert (answer.status_code, answer.text) == (500, "sorry")


def test_the_health_of_a_server_that_is_away(away: Flask, caplog: pytest.LogCaptureFixture) -> None:
    client = away.test_client()
    assert client.get("/health/live").json == {"status": "live"}
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json, answer.headers["Retry-After"]) == (503, {"status": "unavailable"}, "1")
    assert caplog.records[-1].getMessage().startswith("not ready: ")


def test_the_health_of_a_server_that_is_there(app: Flask, db: PGMonkey) -> None:
    app.register_blueprint(db.health_blueprint(), url_prefix="/status")
    client = app.test_client()
    assert client.get("/status/live").status_code == 200
    with app.app_context():
        assert not db.stats(), "liveness does not ask the database"
    answer = client.get("/status/ready")
    assert (answer.status_code, answer.json) == (200, {"status": "ready"})
