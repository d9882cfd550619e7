"""Named profiles in one file, chosen in the same way everywhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import flask
import pytest
import yaml
from fastapi import FastAPI
from starlette.testclient import TestClient

import fastapi_pgmonkey
import flask_pgmonkey
from pgmonkey import AsyncDatabase, ConfigError, Database, PGConnectionManager, load_config

from .. import programs

FILE = """\
connection_type: pool
connection_settings:
  host: db.example
  dbname: shop
  password: '${PGM_UNSET}'
  sslmode: verify-full
  command_timeout: 5
pool_settings:
  max_size: 10
  timeout: 3
profiles:
  reports:
    connection_settings:
      host: replica.example
      password: hunter2
    pool_settings:
      timeout: 60
      max_size:
    async_pool_settings: {max_size: 2}
  test:
    connection_settings:
      conninfo: '${PGM_TEST_URL}'
  same:
    connection_settings: {host: replica.example, password: hunter2}
    pool_settings: {timeout: 60, max_size: }
    async_pool_settings: {max_size: 2}
  empty:
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PGM_TEST_URL", "postgresql://t@localhost/shop_test?application_name=x")
    path = tmp_path / "config.yaml"
    path.write_text(FILE)
    return path


def load(path: Path, profile: str | None) -> Any:
    return load_config(path, resolve_env=True, profile=profile)


def test_a_profile_replaces_key_by_key(path: Path) -> None:
    assert load(path, "reports") == {
        "connection_type": "pool",
        "connection_settings": {
            "host": "replica.example",
            "dbname": "shop",
            "password": "hunter2",
            "sslmode": "verify-full",
            "command_timeout": 5,
        },
        "pool_settings": {"max_size": None, "timeout": 60},
        "async_pool_settings": {"max_size": 2},
    }
    config = PGConnectionManager().load(path, profile="reports")
    assert (config.pool_settings.max_size, config.pool_settings.timeout) == (None, 60)


def test_a_url_in_a_profile_is_the_whole_address(path: Path) -> None:
    """Host, password or certificates of another database must not go with it."""
    config = PGConnectionManager().load(path, resolve_env=True, profile="test")
    assert config.connect == {"user": "t", "host": "localhost", "dbname": "shop_test", "application_name": "x"}
    assert config.arguments == {"command_timeout": 5}


def test_references_of_other_profiles_are_not_looked_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGM_TEST_URL")
    assert load(path, "reports")["connection_settings"]["password"] == "hunter2"
    for profile in (None, "default", "empty"):
        with pytest.raises(ConfigError, match=r":5: connection_settings.password: .*PGM_UNSET is not set"):
            load(path, profile)
    with pytest.raises(ConfigError, match=r":22: profiles.test.connection_settings.conninfo: .*PGM_TEST_URL is not"):
        load(path, "test")


def test_what_is_called_default_is_used_when_none_is_chosen() -> None:
    both = {"connection_settings": {"host": "a"}, "profiles": {"default": {"connection_settings": {"dbname": "d"}}}}
    assert load_config(both) == load_config(both, profile="default")
    assert load_config(both)["connection_settings"] == {"host": "a", "dbname": "d"}
    assert load_config({"connection_settings": {}}, profile="default") == {"connection_settings": {}}
    # What was loaded is of one profile, and can be passed on.
    assert load_config(load_config(both)) == load_config(both)


def test_profiles_that_say_the_same_share_a_pool(path: Path) -> None:
    load = PGConnectionManager().load
    names = ("reports", "same", "test")
    reports, same, test = (load(path, resolve_env=True, profile=name).digest for name in names)
    assert reports == same != test


NAMES = "'reports', 'test', 'same', 'empty'"


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("report", ":11: profiles: there is no profile 'report'; did you mean 'reports'?"),
        ("Reports", ":11: profiles: there is no profile 'Reports'; did you mean 'reports'?"),
        ("zzz", f":11: profiles: there is no profile 'zzz'; there are {NAMES}"),
        ("", f":11: profiles: there is no profile ''; there are {NAMES}"),
        (5, ": a profile is chosen by its name as text, not a number"),
    ],
)
def test_a_misspelt_profile_is_one_error(profile: Any, message: str, path: Path) -> None:
    for make in (load_config, Database, AsyncDatabase, PGConnectionManager().load):
        with pytest.raises(ConfigError) as error:
            make(path, profile=profile)
        assert str(error.value) == f"{path}{message}"


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ("postgresql://u:hunter2@h/d", "URL: there is no profile 'test', because there is no section 'profiles'; "),
        ({"connection_settings": {}}, "configuration: there is no profile 'test', because there is no section"),
        ({"profiles": ["test"]}, "configuration: profiles: expected names with the sections of each, found a list; "),
        ({"profiles": {"test": "x"}}, "configuration: profiles.test: expected sections such as "),
        ({"profiles": {"test": {"profiles": {}}}}, "configuration: profiles.test.profiles: a profile cannot hold pro"),
        ({"profiles": {1: {}, "test": {}}}, "configuration: profiles: the name of a profile is text, not a number"),
        ({"profiles": {None: {}}}, "configuration: profiles: the name of a profile is text, not nothing"),
        ({"profiles": {"test": {"pool_settings": [1]}}, "connection_settings": {}}, "profiles.test.pool_settings: exp"),
    ],
)
def test_what_is_no_profile_is_one_error(origin: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        load_config(origin, profile="test")
    assert "hunter2" not in str(error.value)


def test_without_connection_settings_for_all_one_is_chosen() -> None:
    only = {"profiles": {"reports": {"connection_settings": {"host": "a"}}}}
    assert load_config(only, profile="reports") == {"connection_settings": {"host": "a"}}
    with pytest.raises(ConfigError, match=r"configuration: profiles: none is chosen, .*profile= \(--profile\): 'repo"):
        load_config(only)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("    connection_settings:\n      prt: 1", ":5: profiles.test.connection_settings.prt: unknown key ignored"),
        ("    pool_settings: {max_size: 0}", ":4: profiles.test.pool_settings.max_size: 0 is not"),
        ("    pool_settings: {max_size: 0}\n  other: {}", ":4: profiles.test.pool_settings.max_size: 0 is not"),
        ("    sync_settings: 3", ":4: profiles.test.sync_settings: expected keys and values"),
        ("    connection_settings: {port: [1, x]}", ":4: profiles.test.connection_settings.port[1]: 'x' is not"),
        ("    pol_settings: {}", ":4: profiles.test.pol_settings: unknown section; did you mean 'pool_settings'"),
        ("    connection_type: pol", ":4: profiles.test.connection_type: 'pol' is not one of"),
    ],
)
def test_mistakes_name_where_they_are(
    text: str, expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"connection_settings: {{host: a}}\nprofiles:\n  test:\n{text}\n")
    try:
        load_config(path, profile="test")
        message = caplog.messages[0]
    except ConfigError as error:
        message = str(error)
    assert message.startswith(f"{path}{expected}")


@pytest.fixture
def two(config: dict[str, Any], tmp_path: Path) -> Path:
    """A file with two profiles, which a server tells apart by the name of the application."""
    named = {"connection_settings": {"application_name": "reports"}, "pool_settings": {"max_size": 2}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**config, "profiles": {"reports": named}}))
    return path


ASK = "SHOW application_name"


async def test_a_database_and_a_manager(two: Path) -> None:
    database, other = Database(two, profile="reports"), Database(two)
    assert (database.fetch_value(ASK), other.fetch_value(ASK) == "reports") == ("reports", False)
    assert database.stats()["pool_max"] == 2
    for each in (database, other):
        each.close()
    asynchronous = AsyncDatabase(two, profile="reports")
    assert await asynchronous.fetch_value(ASK) == "reports"
    await asynchronous.close()
    manager = PGConnectionManager()
    with manager.get_database_connection(two, "pool", profile="reports") as connection:
        assert connection.execute(ASK).fetchone() == ("reports",)
    mapping = yaml.safe_load(two.read_text())
    with manager.get_database_connection_from_dict(mapping, "normal", profile="reports") as connection:
        assert connection.execute(ASK).fetchone() == ("reports",)
    manager.clear_cache()


def test_flask(two: Path) -> None:
    app = flask.Flask(__name__)
    app.config.update(PGMONKEY_CONFIG=two, PGMONKEY_PROFILE="reports")
    app.config["PGMONKEY_BINDS"] = {"main": {"config": two, "profile": "default"}, "same": two}
    db = flask_pgmonkey.PGMonkey(app)
    with app.app_context():
        assert [each.fetch_value(ASK) == "reports" for each in (db, db["main"], db["same"])] == [True, False, True]
    app = flask.Flask("shop")
    app.config.update(PGMONKEY_CONFIG=two, PGMONKEY_PROFILE="report")
    with pytest.raises(ConfigError, match=r"^shop: PGMONKEY_CONFIG: .*profiles: .*; did you mean 'reports'\?$"):
        flask_pgmonkey.PGMonkey(app)
    app.config["PGMONKEY_PROFILE"] = 5
    with pytest.raises(ConfigError, match=r"^shop: PGMONKEY_PROFILE: expected the name of a profile, got int$"):
        flask_pgmonkey.PGMonkey(app)


def test_fastapi(two: Path) -> None:
    db = fastapi_pgmonkey.PGMonkey(two, profile="reports")
    app = FastAPI(lifespan=db.lifespan)
    app.add_api_route("/", lambda: db.sync_database.fetch_value(ASK), response_model=str)
    with TestClient(app) as client:
        assert client.get("/").json() == "reports"


DJANGO = f"""
import django
from django.conf import settings
options = {{"config": "config.yaml", "resolve_env": True, "profile": "reports"}}
settings.configure(DATABASES={{"default": {{"ENGINE": "django_pgmonkey", "OPTIONS": options}}}}, USE_TZ=True)
django.setup()
from django.core.management import call_command
from django.db import connection
call_command("check", "--database", "default", "--fail-level", "WARNING")
with connection.cursor() as cursor:
    cursor.execute({ASK!r})
    print(cursor.fetchone()[0], connection.pool.stats()["pool_max"])
"""


def test_django(two: Path) -> None:
    two.chmod(0o600)
    ran = programs.run(code=DJANGO, folder=two.parent)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    assert ran.stdout.splitlines()[-1] == "reports 2"
    # A password in a profile is as much a secret as one for all.
    content = yaml.safe_load(two.read_text())
    secret = {"password": content["connection_settings"].pop("password")}
    two.write_text(yaml.safe_dump({**content, "profiles": {"reports": {"connection_settings": secret}}}))
    two.chmod(0o644)
    ran = programs.run(code=DJANGO, folder=two.parent)
    assert f"{two.name} contains a password and is world-readable" in ran.stderr
