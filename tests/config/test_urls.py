"""A URL is a configuration, wherever a path or a mapping is one."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flask
import pydantic
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

import fastapi_pgmonkey
import flask_pgmonkey
from pgmonkey import AsyncDatabase, ConfigError, Database, Origin, PGConnectionManager, load_config
from pgmonkey.cli import main

from .. import programs
from ..conftest import ON_CI, ROOT

ASK = "SELECT current_database()"
SCHEMES = ["postgresql", "postgres", "postgresql+psycopg", "PostgreSQL+asyncpg"]
Urls = dict[str, str]


@pytest.fixture
def url(config: dict[str, Any]) -> str:
    """The URL of the test's database, with a setting of the pools."""
    settings = config["connection_settings"]
    address = "{user}:{password}@{host}:{port}/{dbname}".format(**settings)
    return f"postgresql://{address}?pool_min_size=1&pool_max_size=3&application_name=shop"


def shapes(url: str) -> list[Origin]:
    """The URL in all its shapes."""
    written: list[Origin] = [url.replace("postgresql", scheme) for scheme in SCHEMES]
    return [*written, pydantic.PostgresDsn(url), pydantic.SecretStr(url), {"connection_settings": {"conninfo": url}}]


def test_a_database(url: str, dbname: str) -> None:
    for origin in shapes(url):
        database = Database(origin)
        assert database.fetch_value(ASK) == dbname
        assert database.fetch_value("SHOW application_name") == "shop"
        assert database.stats()["pool_max"] == 3
        database.close()


async def test_an_asynchronous_database(url: str, dbname: str) -> None:
    for origin in shapes(url):
        database = AsyncDatabase(origin)
        assert await database.fetch_value(ASK) == dbname
        assert database.stats()["pool_max"] == 3
        await database.close()


def test_a_manager(url: str) -> None:
    manager = PGConnectionManager()
    paths = [origin for origin in shapes(url) if not isinstance(origin, Mapping)]
    pools = {manager.get_database_connection(path, "pool") for path in paths}
    assert len(pools) == 1, "however it is written, it is one configuration"
    manager.clear_cache()


def test_what_stands_beside_a_url_comes_first() -> None:
    url = "postgresql://u@h/d?pool_max_size=3&command_timeout=5&sslmode=require&pgbouncer=yes"
    settings = {"conninfo": url, "dbname": "other", "command_timeout": 7}
    config = PGConnectionManager().load({"connection_settings": settings, "pool_settings": {"max_size": 9}})
    assert config.connect == {"user": "u", "host": "h", "dbname": "other", "sslmode": "require"}
    assert config.arguments == {"command_timeout": 7, "pgbouncer": True}
    assert (config.pool_settings.max_size, config.async_pool_settings.max_size) == (9, 3)


def test_references_in_a_url_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGM_SECRET", "a@b/c")
    config = PGConnectionManager().load("postgresql://u:${PGM_SECRET}@h/d", resolve_env=True)
    assert config.connect == {"user": "u", "password": "a@b/c", "host": "h", "dbname": "d"}


@pytest.mark.parametrize("given", [5, None, b"postgresql://u:hunter2@h/d", ["postgresql://u:hunter2@h/d"]])
def test_what_is_no_configuration_is_not_shown(given: Any) -> None:
    for make in (Database, load_config, AsyncDatabase):
        with pytest.raises(ConfigError, match="expected the path of a file, a URL or a mapping, not") as error:
            make(given)
        assert "hunter2" not in str(error.value)
    app = flask.Flask(__name__)
    app.config["PGMONKEY_BINDS"] = {"a": given}
    with pytest.raises(ConfigError, match=r"PGMONKEY_BINDS\['a'\]: expected the path of a YAML file, a URL") as error:
        flask_pgmonkey.PGMonkey(app)
    assert "hunter2" not in str(error.value)
    app.config["PGMONKEY_BINDS"] = "postgresql://u:hunter2@h/d"
    with pytest.raises(ConfigError, match=r"PGMONKEY_BINDS: expected a mapping .*, got str") as error:
        flask_pgmonkey.PGMonkey(app)


@pytest.mark.parametrize(
    "text",
    [
        *("host=h oauth_client_secret=hunter2", "host=h scram_client_key=hunter2", "host=h;pwd=hunter2"),
        *("'postgresql://u:hunter2@h/d'", "mysql://u:hunter2@h/d", "postgres//u:hunter2@h/d", "u:hunter2@h"),
    ],
)
def test_what_is_like_a_url_is_not_shown(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for make in (Database, load_config, AsyncDatabase, PGConnectionManager().load):
        with pytest.raises(ConfigError) as error:
            make(text)
        assert "hunter2" not in str(error.value)
    for command in ("check", "show", "test", "dsn", "env", "generate-code", "create"):
        assert main(["pgconfig", command, "--connconfig", text]) == 1
    assert "hunter2" not in "".join(capsys.readouterr())
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def from_variable(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with nothing but the name of the variable that holds the URL."""
    monkeypatch.setenv("DATABASE_URL", url)
    path = tmp_path / "url.yaml"
    path.write_text("connection_settings:\n  conninfo: '${DATABASE_URL}'\n")
    return path


def test_flask(url: str, dbname: str, from_variable: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for origin in [*shapes(url), from_variable]:
        app = flask.Flask(__name__)
        app.config.update(PGMONKEY_CONFIG=origin, PGMONKEY_RESOLVE_ENV=True)
        db = flask_pgmonkey.PGMonkey(app)
        app.add_url_rule("/", view_func=lambda db=db: db.fetch_value(ASK))
        assert app.test_client().get("/").text == dbname
        assert "Traceback" not in caplog.text
        assert url.split(":")[2].split("@")[0] not in caplog.text


def ask(db: fastapi_pgmonkey.PGMonkey[Any]) -> object:
    return db.sync_database.fetch_value(ASK)


def test_fastapi(url: str, dbname: str, from_variable: Path) -> None:
    for origin in [*shapes(url), from_variable]:
        db = fastapi_pgmonkey.PGMonkey(origin, resolve_env=True, open_at_start="both")
        app = FastAPI(lifespan=db.lifespan)
        app.add_api_route("/", partial(ask, db), response_model=str)
        with TestClient(app) as client:
            assert client.get("/").json() == dbname


def test_the_recipe_with_pydantic_settings(config: dict[str, Any], tmp_path: Path) -> None:
    if importlib.util.find_spec("pydantic_settings") is None and not ON_CI:
        pytest.skip("pydantic-settings is not installed")
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```python\n(from pathlib .*?)```", text, re.DOTALL)
    own = config["connection_settings"]
    environ = {
        **os.environ,
        "DATABASE_URL": "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**own),
        "DATABASE_PASSWORD": own["password"],
    }
    use = f"\nfor each in database, other: print(each.fetch_value({ASK!r}))\nprint(other.stats()['pool_max'])"
    ran = programs.run(code=recipe + use, folder=tmp_path, environ=environ)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.split() == [own["dbname"], own["dbname"], "10"]


DJANGO = """
import json, os, sys
import django, psycopg
from django.conf import settings
from pathlib import Path
import pydantic
url = os.environ["DATABASE_URL"]
options = {}
if os.environ["SHAPE"] == "parts":  # Django's own keys, with a secret that is an object
    parts = psycopg.conninfo.conninfo_to_dict(url.partition("?")[0])
    options = {"NAME": parts["dbname"], "USER": parts["user"], "PASSWORD": pydantic.SecretStr(parts["password"]),
               "HOST": parts["host"], "PORT": parts["port"]}
config = {
    "parts": {"connection_settings": {}}, "url": url,
    "dsn": pydantic.PostgresDsn(url), "secret": pydantic.SecretStr(url), "file": Path("url.yaml"),
    "sqlalchemy": url.replace("postgresql", "postgresql+psycopg"),
}[os.environ["SHAPE"]]
options["OPTIONS"] = {"config": config, "resolve_env": True, "pool": {"max_size": 5}}
settings.configure(DATABASES={"default": {"ENGINE": "django_pgmonkey", **options}}, USE_TZ=True,
                   INSTALLED_APPS=["django_pgmonkey"])
django.setup()
from django.core.management import call_command
from django.db import connection
call_command("check", "--database", "default", "--fail-level", "WARNING")
call_command("pgmonkey", "config")
with connection.cursor() as cursor:
    cursor.execute("SELECT current_database()")
    found = [cursor.fetchone()[0]]
found.append(connection.pool.stats()["pool_max"])
found.append(connection.creation._get_test_db_name())
arguments, env = connection.client.settings_to_cmd_args_env(connection.settings_dict, [])
found.append([arguments, env["PGHOST"], env["PGDATABASE"], env["PGPASSWORD"] == url.split(":")[2].split("@")[0]])
connection.creation.create_test_db(verbosity=0, autoclobber=True)
with connection.cursor() as cursor:
    cursor.execute("SELECT current_database()")
    found.append(cursor.fetchone()[0])
connection.creation.destroy_test_db(found[0], verbosity=0)
print(json.dumps(found))
"""


@pytest.mark.parametrize("shape", ["url", "dsn", "secret", "sqlalchemy", "file", "parts"])
def test_django(shape: str, url: str, dbname: str, from_variable: Path, config: dict[str, Any]) -> None:
    environ = {**os.environ, "DATABASE_URL": url, "SHAPE": shape}
    ran = programs.run(code=DJANGO, folder=from_variable.parent, environ=environ)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    test = f"test_{dbname}"
    expected = [dbname, 5, test, [["psql"], "127.0.0.1", dbname, True], test]
    assert json.loads(ran.stdout.splitlines()[-1]) == expected
    assert config["connection_settings"]["password"] not in ran.stdout
