"""Several databases of a Flask application, and what ``app.config`` may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from flask import Flask
from psycopg.rows import dict_row

from flask_pgmonkey import PGMonkey
from pgmonkey import ConfigError

Observer = psycopg.Connection[Any]


def rows(observer: Observer) -> list[int]:
    return [row[0] for row in observer.execute("SELECT a FROM t ORDER BY a").fetchall()]


@pytest.fixture
def two(config_file: Path, new_database: Any, server: Any, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """An application with two databases, from the environment."""
    other = yaml.safe_dump(server.config(new_database()))
    (config_file.parent / "other.yaml").write_text(other)
    app = Flask("shop", root_path=str(config_file.parent))
    monkeypatch.setenv("FLASK_PGMONKEY_CONFIG", "config.yaml")
    monkeypatch.setenv("FLASK_PGMONKEY_BINDS__reports", "other.yaml")
    monkeypatch.setenv("FLASK_PGMONKEY_RESOLVE_ENV", "True")
    app.config.from_prefixed_env()
    return app


def test_binds(two: Flask, server: Any, observer: Observer, dbname: str) -> None:
    db = PGMonkey(row_factory=dict_row)
    db.init_app(two)
    assert db["reports"] is db["reports"]
    with two.app_context():
        reports = db["reports"].fetch_value("SELECT current_database()")
    with psycopg.connect(server.dsn(reports), autocommit=True) as other:
        for connection in (observer, other):
            connection.execute("CREATE TABLE t (a int)")

        @two.post("/<int:status>")
        def view(status: int) -> tuple[list[Any], int]:
            for database in (db, db["reports"]):
                database.execute("INSERT INTO t VALUES (1)")
            return [d.fetch_one("SELECT current_database()") for d in (db, db["reports"])], status

        answer = two.test_client().post("/409")
        assert answer.json == [{"current_database": dbname}, {"current_database": reports}]
        for connection in (observer, other):
            assert rows(connection) == []
        two.test_client().post("/200")
        for connection in (observer, other):
            assert rows(connection) == [1]
        with two.app_context():
            db["reports"].database.close()


def test_an_unknown_bind_names_the_known_ones(two: Flask) -> None:
    db = PGMonkey(two)
    with (
        two.app_context(),
        pytest.raises(RuntimeError, match=r"no PGMONKEY_BINDS\['x'\]; there is db, db\['reports'\]"),
    ):
        db["x"].fetch_value("SELECT 1")


def test_binds_alone(config: dict[str, Any]) -> None:
    app = Flask("shop")
    app.config["PGMONKEY_BINDS"] = {"main": {"config": config, "transaction": "statement"}}
    db = PGMonkey(app)
    with app.app_context():
        assert db["main"].fetch_value("SELECT 1") == 1
        with pytest.raises(RuntimeError, match=r"'shop' has no PGMONKEY_CONFIG; there is db\['main'\]"):
            db.fetch_value("SELECT 1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"PGMONKEY_BINDS": "reports.yaml"}, "PGMONKEY_BINDS: expected a mapping of names"),
        ({"PGMONKEY_BINDS": {"a": {"config": {}, "resolve": 1}}}, r"PGMONKEY_BINDS\['a'\]: unknown key 'resolve'"),
        ({"PGMONKEY_BINDS": {"a": 7}}, r"PGMONKEY_BINDS\['a'\]: expected the path of a YAML file, a URL, or a mapping"),
        (
            {"PGMONKEY_BINDS": {"a": {"config": {}, "transaction": "x"}}},
            r".*: transaction: 'x' is neither",
        ),
        ({"PGMONKEY_CONFIG": {}, "PGMONKEY_RESOLVE_ENV": "perhaps"}, "PGMONKEY_RESOLVE_ENV: 'perhaps' is neither true"),
        ({"PGMONKEY_CONFIG": 7}, "PGMONKEY_CONFIG: expected the path of a YAML file"),
        ({"PGMONKEY_CONFG": {}}, r"PGMONKEY_CONFG: unknown setting; did you mean PGMONKEY_CONFIG\?"),
        ({"PGMONKEY_CONFIG": {}, "PGMONKEY_BIND": {}}, r"PGMONKEY_BIND: .* PGMONKEY_BINDS\?"),
        ({"PGMONKEY_CONFIG": {}, "PGMONKEY_RESOLVEENV": True}, r"PGMONKEY_RESOLVEENV: .* PGMONKEY_RESOLVE_ENV\?"),
        (
            {"PGMONKEY_BINDS": {"a": {"connection_setings": {}}}},
            r"PGMONKEY_BINDS\['a'\]: configuration: connection_setings: .*; did you mean",
        ),
        ({"PGMONKEY_CONFIG": {"pool_setings": {}}}, "PGMONKEY_CONFIG: configuration: pool_setings: unknown section"),
        ({"PGMONKEY_CONFIG": "nowhere.yaml"}, "PGMONKEY_CONFIG: /.*/nowhere.yaml: cannot read"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    app = Flask("shop")
    app.config.update(settings)
    with pytest.raises(ConfigError, match=f"shop: {message}"):
        PGMonkey(app)


def test_a_warning_names_the_database(config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    odd = {**config, "connection_settings": {**config["connection_settings"], "zzz": 1}}
    app = Flask("shop")
    app.config.update(PGMONKEY_CONFIG=config, PGMONKEY_BINDS={"a": config, "b": odd, "c": {"config": odd}})
    db = PGMonkey(app)
    with app.app_context():
        assert db["b"].fetch_value("SELECT 1") == 1
    told = [
        record.getMessage().partition(": connection_settings.zzz: unknown key ignored") for record in caplog.records
    ]
    assert all(found for _, found, _ in told)
    assert {name for name, _, _ in told} == {f"shop: PGMONKEY_BINDS['{key}']: configuration" for key in "bc"}


def test_a_setting_that_is_like_none_is_left_alone(config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    app = Flask("shop")
    app.config.update(PGMONKEY_CONFIG=config, PGMONKEY_DASHBOARD="/status")
    PGMonkey(app)
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "shop: PGMONKEY_DASHBOARD: unknown setting ignored; use one of PGMONKEY_CONFIG,"
    )


@pytest.mark.parametrize(("value", "resolved"), [("False", False), ("0", False), (0, False), ("true", True), (1, True)])
def test_switches_from_the_environment(config: dict[str, Any], value: Any, resolved: bool) -> None:
    config["connection_settings"]["application_name"] = "${NAME:-resolved}"
    app = Flask("shop")
    app.config.update(PGMONKEY_CONFIG=config, PGMONKEY_RESOLVE_ENV=value)
    db = PGMonkey(app)
    with app.app_context():
        assert db.fetch_value("SHOW application_name") == ("resolved" if resolved else "${NAME:-resolved}")
