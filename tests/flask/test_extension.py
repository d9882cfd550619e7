"""What is particular to the Flask extension; the promises are in tests/contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from flask import Flask
from psycopg.rows import dict_row

from flask_pgmonkey import PGMonkey
from pgmonkey import ConfigError, DeadlineExceededError

Observer = psycopg.Connection[Any]


def make(db: PGMonkey[Any], config: Any, **settings: Any) -> Flask:
    app = Flask("shop")
    app.config.update(PGMONKEY_CONFIG=config, **settings)
    db.init_app(app)
    return app


@pytest.fixture
def table(observer: Observer) -> None:
    observer.execute("CREATE TABLE t (a int)")


def test_configuration_is_checked_by_init_app(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shop: PGMONKEY_CONFIG is not set"):
        make(PGMonkey(), None)
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        make(PGMonkey(), str(tmp_path / "nowhere.yaml"))
    with pytest.raises(ConfigError, match="PGMONKEY_TRANSACTION: 'sometimes'"):
        make(PGMonkey(), config, PGMONKEY_TRANSACTION="sometimes")


def test_a_second_init_is_refused(config: dict[str, Any]) -> None:
    db = PGMonkey()
    app = make(db, config)
    with pytest.raises(RuntimeError, match="once per application"):
        db.init_app(app)


def test_a_path_is_relative_to_the_application(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    app = Flask("shop", root_path=str(tmp_path))
    app.config["PGMONKEY_CONFIG"] = "config.yaml"
    db = PGMonkey(app)
    with app.app_context():
        assert db.fetch_value("SELECT 1") == 1


def test_references_are_resolved_when_asked(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGM_PASSWORD", config["connection_settings"]["password"])
    config["connection_settings"]["password"] = {"from_env": "PGM_PASSWORD"}
    db = PGMonkey()
    app = make(db, config, PGMONKEY_RESOLVE_ENV=True)
    with app.app_context():
        assert db.ping() > 0


def test_one_extension_serves_several_applications(
    config: dict[str, Any], server: Any, new_database: Any, dbname: str
) -> None:
    db = PGMonkey()
    other_name = new_database()
    apps = [make(db, config), make(db, {**config, **server.config(other_name)})]
    seen = []
    for app in apps:
        with app.app_context():
            seen.append(db.fetch_value("SELECT current_database()"))
    assert seen == [dbname, other_name]


def test_outside_an_application_the_error_says_what_to_do(config: dict[str, Any]) -> None:
    db = PGMonkey()
    with pytest.raises(RuntimeError, match=r"with app\.app_context\(\)"):
        db.fetch_value("SELECT 1")
    app = Flask("bare")
    with app.app_context(), pytest.raises(RuntimeError, match=r"'bare'; call db\.init_app\(app\)"):
        db.fetch_value("SELECT 1")
    with make(db, config).app_context(), pytest.raises(RuntimeError, match=r"with db\.transaction\(\) as connection"):
        _ = db.connection


def test_outside_a_request_each_statement_is_its_own_transaction(
    config: dict[str, Any], table: None, observer: Observer
) -> None:
    db = PGMonkey()
    with make(db, config).app_context():
        assert db.execute("INSERT INTO t VALUES (1)") == 1
        assert db.execute_many("INSERT INTO t VALUES (%s)", [(2,), (3,)]) == 2
        assert db.fetch_all("SELECT a FROM t ORDER BY a") == [(1,), (2,), (3,)]
        assert list(db.stream("SELECT a FROM t ORDER BY a")) == [(1,), (2,), (3,)]
        with db.transaction(read_only=True) as connection:
            assert connection.execute("SHOW transaction_read_only").fetchone() == ("on",)
        stats = db.stats()
    assert stats["pool_available"] == stats["pool_size"] == 1


def test_query_methods_and_the_connection_are_one_transaction(
    config: dict[str, Any], table: None, observer: Observer
) -> None:
    db = PGMonkey(row_factory=dict_row)
    app = make(db, config)

    @app.post("/")
    def view() -> dict[str, Any]:
        db.execute("INSERT INTO t VALUES (1)")
        db.connection.execute("INSERT INTO t VALUES (2)")
        assert db.fetch_one("SELECT count(*) FROM t") == {"count": 2}
        assert observer.execute("SELECT count(*) FROM t").fetchone() == (0,)
        return {}

    assert app.test_client().post("/").status_code == 200
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (2,)


def test_statement_mode(config: dict[str, Any], table: None, observer: Observer) -> None:
    db = PGMonkey()
    app = make(db, config, PGMONKEY_TRANSACTION="statement")

    @app.post("/")
    def view() -> tuple[str, int]:
        db.execute("INSERT INTO t VALUES (1)")
        return "", 400

    assert app.test_client().post("/").status_code == 400
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (1,)


def test_functions_before_and_after_a_request_are_part_of_it(
    config: dict[str, Any], table: None, observer: Observer
) -> None:
    db = PGMonkey()
    app = Flask("shop")
    app.config["PGMONKEY_CONFIG"] = config

    @app.before_request
    def before() -> None:
        db.execute("INSERT INTO t VALUES (1)")

    @app.after_request
    def after(response: Any) -> Any:
        db.execute("INSERT INTO t VALUES (3)")
        response.status_code = int(response.headers["wanted"])
        return response

    db.init_app(app)

    @app.post("/<int:status>")
    def view(status: int) -> tuple[str, int, dict[str, str]]:
        db.execute("INSERT INTO t VALUES (2)")
        return "", 200, {"wanted": str(status)}

    client = app.test_client()
    assert client.post("/409").status_code == 409
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (0,)
    assert client.post("/201").status_code == 201
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (3,)


def test_an_exception_that_propagates_to_a_test_rolls_back(
    config: dict[str, Any], table: None, observer: Observer
) -> None:
    db = PGMonkey()
    app = make(db, config, TESTING=True)

    @app.post("/")
    def view() -> str:
        db.execute("INSERT INTO t VALUES (1)")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        app.test_client().post("/")
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (0,)
    with app.app_context():
        assert db.stats()["pool_available"] == 1


def test_a_stream_outlives_the_view_and_gives_back_when_the_client_leaves(
    config: dict[str, Any], observer: Observer
) -> None:
    db = PGMonkey()
    app = make(db, config)

    @app.get("/")
    def view() -> Any:
        rows = db.stream("SELECT generate_series(1, 100000)", size=100)
        return app.response_class(f"{row[0]}\n" for row in rows)

    response = app.test_client().get("/", buffered=False)
    chunks = iter(response.response)
    assert [next(chunks) for _ in range(2)] == [b"1\n", b"2\n"]
    with app.app_context():
        assert db.stats()["pool_available"] == 0
        response.close()
        del chunks, response
        assert db.stats()["pool_available"] == 1


def test_the_shell_has_db(config: dict[str, Any]) -> None:
    db = PGMonkey()
    assert make(db, config).make_shell_context()["db"] is db


# -- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, -1, "soon", float("nan")])
def test_a_deadline_is_a_number_of_seconds(seconds: Any, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="shop: PGMONKEY_DEADLINE: expected a positive number of seconds"):
        make(PGMonkey(), config, PGMONKEY_DEADLINE=seconds)


@pytest.mark.parametrize("scope", ["request", "statement"])
def test_the_deadline_of_a_request(scope: str, config: dict[str, Any], table: None, observer: Observer) -> None:
    db = PGMonkey()
    app = make(db, config, PGMONKEY_DEADLINE=30, PGMONKEY_DEADLINE_HEADER="X-Timeout-Ms", PGMONKEY_TRANSACTION=scope)

    @app.errorhandler(DeadlineExceededError)
    def late(error: DeadlineExceededError) -> tuple[str, int]:
        return str(error), 418

    @app.get("/")
    def view() -> list[str]:
        db.execute("INSERT INTO t VALUES (1)")
        db.execute("SELECT pg_sleep(60)")
        return []

    @app.get("/stream")
    def stream() -> Any:
        return (str(row[0]) for row in db.stream("SELECT 1 FROM pg_sleep(2.5)"))

    client = app.test_client()
    for _ in range(3):
        answer = client.get("/", headers={"X-Timeout-Ms": "2000"})
        assert answer.status_code == 418
        assert answer.text == "the statement did not end within 2 s (X-Timeout-Ms)"
    assert observer.execute("SELECT count(*) FROM t").fetchone() == (0 if scope == "request" else 3,)
    # What streams after the response has started has all the time that it needs.
    assert client.get("/stream", headers={"X-Timeout-Ms": "2000"}).text == "1"
    with app.app_context():
        assert db.fetch_value("SELECT 1") == 1


def test_the_answer_to_a_request_that_takes_too_long(config: dict[str, Any]) -> None:
    db = PGMonkey()
    app = make(db, config, PGMONKEY_DEADLINE=0.2)

    @app.get("/")
    def view() -> list[str]:
        db.execute("SELECT pg_sleep(60)")
        return []

    answer = app.test_client().get("/")
    assert (answer.status_code, answer.text) == (504, "The request took too long.")
    assert "Retry-After" not in answer.headers
