"""Requests of a Flask application: handlers, functions around the view, what a view may choose."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, ClassVar

import flask
import psycopg
import pytest
from flask import Blueprint, Flask
from flask.sessions import SecureCookieSessionInterface
from flask.views import MethodView

from flask_pgmonkey import PGMonkey
from pgmonkey import BadRowError, ConfigError, Database, PoolTimeoutError

from ..garbage import no_cycles

Observer = psycopg.Connection[Any]


@pytest.fixture
def db() -> PGMonkey:
    return PGMonkey()


@pytest.fixture
def app(db: PGMonkey, config: dict[str, Any], observer: Observer) -> Flask:
    observer.execute("CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    app = Flask("shop")
    app.config.update(PGMONKEY_CONFIG=config, SECRET_KEY="x")
    db.init_app(app)
    return app


def rows(observer: Observer) -> list[int]:
    return [row[0] for row in observer.execute("SELECT a FROM t ORDER BY a").fetchall()]


# -- handlers and functions around the view ---------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "left"), [(200, [9]), (500, [])])
def test_error_handlers_query_in_a_transaction_of_their_own(
    app: Flask, db: PGMonkey, observer: Observer, status: int, left: list[int]
) -> None:
    @app.errorhandler(psycopg.errors.UndefinedTable)
    def handler(error: Exception) -> tuple[str, int]:
        assert db.fetch_value("SELECT count(*) FROM t") == 0
        db.execute("INSERT INTO t VALUES (9)")
        return "handled", status

    @app.post("/")
    def view() -> str:
        db.execute("INSERT INTO t VALUES (1)")
        db.execute("SELECT * FROM missing")
        return ""

    assert app.test_client().post("/").status_code == status
    assert rows(observer) == left


def test_abort_reaches_a_handler_that_queries(app: Flask, db: PGMonkey, observer: Observer) -> None:
    @app.errorhandler(404)
    def handler(error: Exception) -> tuple[str, int]:
        return str(db.fetch_value("SELECT count(*) FROM t")), 404

    @app.post("/")
    def view() -> str:
        db.execute("INSERT INTO t VALUES (1)")
        flask.abort(404)

    assert app.test_client().post("/").text == "0"
    assert app.test_client().post("/nowhere").text == "0"


def test_a_failing_commit_is_handled_like_an_error_of_the_view(app: Flask, db: PGMonkey, observer: Observer) -> None:
    @app.errorhandler(psycopg.errors.UniqueViolation)
    def handler(error: Exception) -> tuple[str, int]:
        db.execute("INSERT INTO t VALUES (9)")
        return "twice", 409

    @app.after_request
    def mark(response: flask.Response) -> flask.Response:
        response.headers["X-Marked"] = str(response.status_code)
        return response

    @app.post("/")
    def view() -> str:
        flask.session["who"] = "ann"
        for _ in range(2):
            db.execute("INSERT INTO t VALUES (1)")
        return "fine"

    answer = app.test_client().post("/")
    assert (answer.status_code, answer.text, answer.headers["X-Marked"]) == (409, "twice", "409")
    assert len(answer.headers.getlist("Set-Cookie")) == 1
    assert rows(observer) == []


def test_the_response_that_a_failing_commit_replaces_is_closed(app: Flask, db: PGMonkey) -> None:
    closed: list[str] = []
    app.register_error_handler(psycopg.errors.UniqueViolation, lambda error: ("twice", 409))

    @app.post("/")
    def view() -> flask.Response:
        for _ in range(2):
            db.execute("INSERT INTO t VALUES (1)")
        response = flask.Response(iter(["never sent"]))
        response.call_on_close(lambda: closed.append("closed"))
        return response

    assert app.test_client().post("/").text == "twice"
    assert closed == ["closed"]


def test_a_failing_commit_that_nobody_handles(app: Flask, db: PGMonkey) -> None:
    @app.post("/")
    def view() -> str:
        for _ in range(2):
            db.execute("INSERT INTO t VALUES (1)")
        return "fine"

    assert app.test_client().post("/").status_code == 500
    app.config["TESTING"] = True
    with pytest.raises(psycopg.errors.UniqueViolation):
        app.test_client().post("/")
    with app.app_context():
        assert db.stats()["pool_available"] == db.stats()["pool_size"]


def test_a_handler_whose_own_commit_fails_is_no_success(app: Flask, db: PGMonkey, observer: Observer) -> None:
    @app.errorhandler(psycopg.errors.UniqueViolation)
    def view(error: Exception | None = None) -> str:
        for _ in range(2):
            db.execute("INSERT INTO t VALUES (1)")
        return "fine"

    app.post("/")(view)
    with pytest.raises(psycopg.errors.UniqueViolation):
        app.test_client().post("/")
    assert rows(observer) == []


def test_what_fails_after_the_view_rolls_back(app: Flask, db: PGMonkey, observer: Observer) -> None:
    @app.post("/session")
    def unserialisable() -> str:
        db.execute("INSERT INTO t VALUES (1)")
        flask.session["who"] = object()
        return ""

    @app.post("/after")
    def after() -> str:
        db.execute("INSERT INTO t VALUES (2)")

        @flask.after_this_request
        def fail(response: flask.Response) -> flask.Response:
            raise ZeroDivisionError

        return ""

    @app.post("/signal")
    def signal() -> str:
        db.execute("INSERT INTO t VALUES (3)")
        return ""

    def receiver(sender: Flask, **kwargs: Any) -> None:
        if flask.request.path == "/signal":
            raise ZeroDivisionError

    flask.request_finished.connect(receiver, app)
    for path in ("/session", "/after", "/signal"):
        assert app.test_client().post(path).status_code == 500
    assert rows(observer) == []


def test_teardown_functions_may_query(app: Flask, db: PGMonkey, observer: Observer) -> None:
    seen: list[int] = []

    @app.teardown_request
    def teardown(error: BaseException | None) -> None:
        seen.append(db.fetch_value("SELECT count(*) FROM t"))

    @app.post("/")
    def view() -> str:
        db.execute("INSERT INTO t VALUES (1)")
        return ""

    app.test_client().post("/")
    assert seen == [1], "what was committed, after the end of the transaction"


def test_a_session_interface_that_queries_is_part_of_the_request(app: Flask, db: PGMonkey, observer: Observer) -> None:
    class Sessions(SecureCookieSessionInterface):
        def open_session(self, app: Flask, request: flask.Request) -> Any:
            db.execute("INSERT INTO t VALUES (1)")
            return super().open_session(app, request)

    app.session_interface = Sessions()
    app.get("/<int:status>")(lambda status: ("", status))
    app.test_client().get("/409")
    assert rows(observer) == []
    app.test_client().get("/200")
    assert rows(observer) == [1]


@pytest.mark.parametrize("status", [200, 409])
def test_a_transaction_block_that_comes_first_is_part_of_the_request(
    app: Flask, db: PGMonkey, observer: Observer, status: int
) -> None:
    @app.post("/")
    def view() -> tuple[str, int]:
        with db.transaction():
            db.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(ZeroDivisionError):
            with db.connection.transaction():
                db.execute("INSERT INTO t VALUES (2)")
                raise ZeroDivisionError
        return "", status

    app.test_client().post("/")
    assert rows(observer) == ([1] if status == 200 else [])


def test_async_views(app: Flask, db: PGMonkey, observer: Observer) -> None:
    @app.post("/<int:status>")
    async def view(status: int) -> tuple[str, int]:
        await asyncio.sleep(0)
        db.execute("INSERT INTO t VALUES (1)")
        return "", status

    assert app.test_client().post("/409").status_code == 409
    assert rows(observer) == []
    assert app.test_client().post("/201").status_code == 201
    assert rows(observer) == [1]


def test_blueprints(app: Flask, db: PGMonkey, observer: Observer) -> None:
    blueprint = Blueprint("orders", __name__, url_prefix="/orders")

    @blueprint.before_request
    def before() -> None:
        db.execute("INSERT INTO t VALUES (1)")

    @blueprint.errorhandler(psycopg.errors.UniqueViolation)
    def handler(error: Exception) -> tuple[str, int]:
        return str(db.fetch_value("SELECT count(*) FROM t")), 418

    @blueprint.post("/")
    def view() -> str:
        db.execute("INSERT INTO t VALUES (1)")
        return ""

    app.register_blueprint(blueprint)
    answer = app.test_client().post("/orders/")
    assert (answer.status_code, answer.text) == (418, "0")


def test_a_streamed_view_that_keeps_its_context_may_query(app: Flask, db: PGMonkey, observer: Observer) -> None:
    @app.get("/")
    def view() -> Any:
        db.execute("INSERT INTO t VALUES (1)")

        def lines() -> Iterator[str]:
            for (n,) in db.stream("SELECT generate_series(1, 3)"):
                yield f"{n}:{db.fetch_value('SELECT count(*) FROM t')} "

        return flask.Response(flask.stream_with_context(lines()))

    assert app.test_client().get("/").text == "1:1 2:1 3:1 "


def test_contexts_made_by_hand_have_no_transaction(app: Flask, db: PGMonkey, observer: Observer) -> None:
    app.get("/")(db.transaction_per("request")(lambda: str(db.execute("INSERT INTO t VALUES (1)"))))
    with app.test_request_context("/"):
        assert app.preprocess_request() is None
        assert app.dispatch_request() == "1"
    assert rows(observer) == [1]


# -- what a view may choose -------------------------------------------------------------------------------------------


def test_a_view_chooses_statements(app: Flask, db: PGMonkey, observer: Observer) -> None:
    @app.post("/")
    @db.transaction_per("statement")
    def view() -> tuple[str, int]:
        db.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(RuntimeError, match="there is no transaction in this request"):
            _ = db.connection
        return "", 409

    app.test_client().post("/")
    assert rows(observer) == [1]


def test_a_views_choice_is_made_before_anything_else(app: Flask, db: PGMonkey, observer: Observer) -> None:
    @app.url_value_preprocessor
    def first(endpoint: str | None, values: dict[str, Any] | None) -> None:
        db.execute("INSERT INTO t VALUES (1)")
        assert rows(observer) == [1], "by itself"

    @app.post("/")
    @db.transaction_per("statement")
    def view() -> str:
        return ""

    assert app.test_client().post("/").status_code == 200


def test_a_view_chooses_a_transaction(db: PGMonkey, config: dict[str, Any]) -> None:
    app = Flask("shop")
    app.config.update(PGMONKEY_CONFIG=config, PGMONKEY_TRANSACTION="statement")
    db.init_app(app)

    class View(MethodView):
        decorators: ClassVar = [
            db.transaction_per("request", isolation="serializable", read_only=True, deferrable=True)
        ]

        def get(self) -> list[Any]:
            names = ("isolation", "read_only", "deferrable")
            return [db.fetch_value(f"SHOW transaction_{name}".encode()) for name in names]

    app.add_url_rule("/chosen", view_func=View.as_view("chosen"))
    app.get("/")(lambda: [db.fetch_value("SHOW transaction_isolation")])
    assert app.test_client().get("/chosen").json == ["serializable", "on", "on"]
    assert app.test_client().get("/").json == ["read committed"]


def test_a_wrong_choice_fails_at_once(db: PGMonkey) -> None:
    with pytest.raises(ConfigError, match="'sometimes' is neither 'request' nor 'statement'"):
        db.transaction_per("sometimes")  # type: ignore[arg-type]


def test_a_view_may_try_again(app: Flask, db: PGMonkey, observer: Observer) -> None:
    observer.execute("INSERT INTO t VALUES (0)")
    tries: list[int] = []

    def add_one() -> int:
        tries.append(db.fetch_value("SELECT a FROM t"))
        if len(tries) == 1:
            observer.execute("UPDATE t SET a = 10")
        return db.execute("UPDATE t SET a = %s", [tries[-1] + 1])

    app.post("/")(lambda: str(db.retry(add_one, isolation="serializable")))
    assert app.test_client().post("/").text == "1"
    assert rows(observer) == [11]


def test_session_values_are_those_of_the_request(app: Flask, db: PGMonkey) -> None:
    @db.session_values
    def values() -> dict[str, Any]:
        return {"app.tenant": flask.request.args["tenant"]}

    query = "SELECT current_setting('app.tenant', true)"

    @app.get("/")
    def view() -> Any:
        values = [db.fetch_value(query), db.connection.execute(query).fetchall()[0][0]]
        rows = db.stream(query)
        return flask.Response(f"{value} " for value in [*values, *(row[0] for row in rows)])

    for tenant in "123":
        assert app.test_client().get(f"/?tenant={tenant}").text.split() == [tenant] * 3
    with app.app_context():
        assert not db.fetch_value(query)


# -- overload ---------------------------------------------------------------------------------------------------------


def test_an_exhausted_pool_names_the_route(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture, db: PGMonkey
) -> None:
    config["pool_settings"] = {"max_size": 1, "timeout": 0.5}
    app = Flask("shop")
    app.config["PGMONKEY_CONFIG"] = config
    db.init_app(app)

    @app.get("/orders/<int:number>")
    def outer(number: int) -> str:
        db.fetch_value("SELECT 1")
        with app.test_client() as client:
            answer = client.get("/inner")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        return ""

    @app.get("/inner")
    def inner() -> str:
        return str(db.stream("SELECT 1").__next__())

    assert app.test_client().get("/orders/7").status_code == 200
    message = caplog.records[-1].getMessage()
    assert "1 of at most 1 in use, 0 waiting; held longest: 0." in message
    assert "borrowed for GET /orders/<int:number>, at " in message
    assert "test_requests.py:" in message
    assert "7" not in message.partition("borrowed for")[2].partition(", at")[0]


def test_the_applications_own_handler_for_overload_stays(config: dict[str, Any], db: PGMonkey) -> None:
    app = Flask("shop")
    app.config["PGMONKEY_CONFIG"] = config
    app.register_error_handler(PoolTimeoutError, lambda error: ("mine", 429))
    db.init_app(app)

    @app.get("/")
    def view() -> str:
        raise PoolTimeoutError("none")

    assert app.test_client().get("/").text == "mine"


def test_a_request_leaves_nothing_to_the_garbage_collector(app: Flask, db: PGMonkey) -> None:
    @app.get("/")
    def view() -> str:
        return str(db.fetch_value("SELECT 1"))

    client = app.test_client()
    assert client.get("/").text == "1"
    with no_cycles():
        assert client.get("/").text == "1"


def test_many_rows_and_notifications_are_part_of_the_request(
    app: Flask, db: PGMonkey, config: dict[str, Any], observer: Observer
) -> None:
    @app.post("/<int:first>/<int:status>")
    def view(first: int, status: int) -> tuple[str, int]:
        assert db.copy_rows("t", ((first + i,) for i in range(3))) == 3
        assert db.execute_many("INSERT INTO t VALUES (%s) RETURNING a", [[first + 3]], returning=True) == [(first + 3,)]
        try:
            db.copy_rows("t", [(first + 4,), ("five",)])  # a savepoint of the request
        except BadRowError:
            db.notify("done", str(first))
        return "", status

    http = app.test_client()
    with Database(config).listen("done") as notes:
        assert [http.post(f"/{10 * i}/{status}").status_code for i, status in enumerate((409, 200))] == [409, 200]
        note = next(notes)
        assert isinstance(note, psycopg.Notify)
        assert note.payload == "10"
    assert rows(observer) == [10, 11, 12, 13]
