"""What the Django backend does beside Django's own: checks, commands, threads, forks, streams, asynchronous views."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from .projects import SETTINGS, migrate, ok, run

Observer = psycopg.Connection[Any]


def configure(project: Path, extra: str = "{}", **options: Any) -> None:
    options = {"config": str(project / "config.yaml"), **options}
    (project / "settings.py").write_text(f"EXTRA = {{'OPTIONS': {options!r}, **{extra}}}\n" + SETTINGS)


# -- checks and commands ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "options", "message"),
    [
        ("{'CONN_MAX_AGE': 60}", {}, "(pgmonkey.E001) DATABASES['default']: CONN_MAX_AGE must be 0"),
        (
            "{}",
            {"aplication_name": "x"},
            "(pgmonkey.E002) DATABASES['default']: OPTIONS: unknown key 'aplication_name'",
        ),
        ("{}", {"aplication_name": "x"}, "HINT: Did you mean 'application_name'?"),
        ("{}", {"reslove_env": True}, "HINT: Did you mean 'resolve_env'?"),
        ("{}", {"config": "/nowhere.yaml"}, "(pgmonkey.E003) DATABASES['default']: /nowhere.yaml: cannot read"),
        ("{}", {"release": "never"}, "(pgmonkey.E003) DATABASES['default']: OPTIONS: release: 'never' is neither"),
        ("{'PASSWORD': 'wrong'}", {}, "(pgmonkey.E004) DATABASES['default']: connection failed:"),
    ],
)
def test_checks_that_fail(project: Path, extra: str, options: dict[str, Any], message: str) -> None:
    configure(project, extra, **options)
    finished = run(project, "check", "--database", "default")
    assert finished.returncode == 1
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_valid_project_has_no_findings(project: Path) -> None:
    (project / "config.yaml").chmod(0o640)
    configure(project, sslmode="prefer", server_side_binding=True, pool={"max_size": 2})
    assert "no issues" in ok(run(project, "check", "--database", "default", "--fail-level", "WARNING"))


def test_checks_that_warn(project: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path = project / "config.yaml"
    path.chmod(0o644)
    configure(project, pool=False)
    finished = run(project, "check", "--database", "default")
    assert "(pgmonkey.W003) DATABASES['default']: OPTIONS: pool is False, but there is always a pool" in finished.stderr
    assert f"(pgmonkey.W002) DATABASES['default']: {path} contains a password and is world-readable" in finished.stderr
    assert f"HINT: chmod o= {path}" in finished.stderr
    secret = project / "secret"
    secret.write_text(config["connection_settings"]["password"])
    secret.chmod(0o644)
    config["connection_settings"]["password"] = {"from_file": "../secret"}  # relative to the YAML file
    path = project / "folder" / "config.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(config))
    configure(project, config=str(path), resolve_env=True)
    finished = run(project, "check", "--database", "default")
    assert f"{path.parent / '../secret'} contains a password" in finished.stderr
    assert f"{path} " not in finished.stderr
    secret.chmod(stat.S_IRUSR)
    monkeypatch.setenv("WEB_CONCURRENCY", "auto")
    assert "no issues" in ok(run(project, "check", "--database", "default"))
    monkeypatch.setenv("WEB_CONCURRENCY", "1000")
    finished = run(project, "check", "--database", "default")
    assert "(pgmonkey.W001) DATABASES['default']: 1000 processes may want 4000 connections, but the" in finished.stderr
    assert "secret" not in finished.stderr


def test_the_management_command(project: Path, dbname: str, config: dict[str, Any]) -> None:
    source = (project / "settings.py").read_text()
    (project / "settings.py").write_text(source.replace('["shop"]', '["django_pgmonkey", "shop"]'))
    answer = ok(run(project, "pgmonkey", "ping"))
    assert re.fullmatch(rf"default: PostgreSQL .*, {dbname} as \w+, answers in \d+\.\d ms\n", answer)
    assert re.match(
        r"default: \d+ of \d+ connections of the server are in use\n"
        r"  the pool of this command, which it has opened just now; each process of the server has its own:\n"
        r"  pool_min +1\n",
        ok(run(project, "pgmonkey", "stats")),
    )
    shown = ok(run(project, "pgmonkey", "config", "--database", "default"))
    assert yaml.safe_load(shown)["connection_settings"]["dbname"] == dbname
    assert config["connection_settings"]["password"] not in shown
    finished = run(project, "pgmonkey", "ping", "--database", "nope")
    assert finished.returncode == 1
    assert finished.stderr == "CommandError: 'nope' is not in DATABASES, which has default\n"
    (project / "config.yaml").write_text("connection_settings: 7\n")
    finished = run(project, "pgmonkey", "ping")
    assert finished.returncode == 1
    assert finished.stderr.startswith(f"CommandError: default: {project}/config.yaml:1: connection_settings: ")
    assert "Traceback" not in finished.stderr


def test_the_management_command_shows_what_only_python_can_give(
    project: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_USER", config["connection_settings"]["user"])
    monkeypatch.setenv("APP_PASSWORD", config["connection_settings"]["password"])
    config["connection_settings"] |= {"user": "${APP_USER}", "password": {"from_env": "APP_PASSWORD"}}
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    source = SETTINGS.replace('["shop"]', '["django_pgmonkey", "shop"]')
    more = "DATABASES['default']['OPTIONS'] |= {'resolve_env': True, 'pool': {'configure': print}}\n"
    (project / "settings.py").write_text(f"EXTRA = {{}}\n{source}{more}")
    shown = yaml.safe_load(ok(run(project, "pgmonkey", "config")))
    assert shown["connection_settings"]["password"] == "***REDACTED***"
    assert shown["connection_settings"]["user"] == os.environ["APP_USER"]
    assert shown["pool_settings"]["configure"] == "<print>"


@pytest.mark.parametrize("command", [["pgmonkey", "stats"], ["check", "--database", "default"]])
def test_a_wrong_option_of_the_pool_is_one_line(project: Path, command: list[str]) -> None:
    source = (project / "settings.py").read_text().replace('["shop"]', '["django_pgmonkey", "shop"]')
    (project / "settings.py").write_text(source + "DATABASES['default']['OPTIONS']['pool'] = {'max_size': 'many'}\n")
    finished = run(project, *command)
    assert finished.returncode == 1
    assert "pool_settings.max_size: 'many' is not a whole number" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_dbshell_shows_no_secret_on_its_command_line(
    project: Path, dbname: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = project / "bin" / "psql"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "arguments: $@"\nenv | grep ^PG\n')
    fake.chmod(0o755)
    config["connection_settings"]["application_name"] = "shell"
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    output = ok(run(project, "dbshell", "--", "-c", "SELECT 1"))
    assert "arguments: -c SELECT 1\n" in output
    settings = config["connection_settings"]
    for name, value in {"PASSWORD": settings["password"], "DATABASE": dbname, "PORT": settings["port"]}.items():
        assert f"PG{name}={value}\n" in output
    assert "PGAPPNAME=shell\n" in output


@pytest.mark.parametrize("as_url", [True, False])
def test_dbshell_goes_where_the_application_goes(
    as_url: bool, project: Path, dbname: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = project / "bin" / "psql"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nenv | grep ^PG\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    own = config["connection_settings"]
    host, port = own["host"], own["port"]
    if as_url:
        url = f"postgresql://{own['user']}:{own['password']}@{host}:{port}/{dbname}"
        config["connection_settings"] = {"conninfo": url, "command_timeout": 30}
        expected = {"HOST": host, "PORT": port}
        (project / "config.yaml").write_text(yaml.safe_dump(config))
    else:
        own |= {"host": [host, host], "port": [port, port]}
        expected = {"HOST": f"{host},{host}", "PORT": f"{port},{port}"}
        mapping = f"config = {config!r}\nconfig['connection_settings']['password'] = lambda: {own['password']!r}\n"
        more = f"{mapping}DATABASES['default']['OPTIONS']['config'] = config\n"
        (project / "settings.py").write_text(f"EXTRA = {{}}\n{SETTINGS}{more}")
    output = ok(run(project, "dbshell")).splitlines()
    expected |= {"USER": own["user"], "PASSWORD": own["password"], "DATABASE": dbname}
    assert [line for line in (f"PG{name}={value}" for name, value in expected.items()) if line not in output] == []


# -- the backend ------------------------------------------------------------------------------------------------------


def test_threads_and_forgotten_wrappers_give_back(project: Path, config: dict[str, Any]) -> None:
    config["pool_settings"] = {"min_size": 1, "max_size": 4, "timeout": 20}
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    code = """
import gc, threading
from concurrent.futures import ThreadPoolExecutor
from django.db import connection, connections
from django.db.utils import ConnectionHandler
errors = []
def work():
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.002)")
    except BaseException as error:
        errors.append(error)
def batch(n):
    threads = [threading.Thread(target=work) for _ in range(n)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
for _ in range(25):
    batch(20)
for _ in range(20):
    other = connections.create_connection("default")
    other.cursor().execute("SELECT 1")
    other.connect()  # again, on an open connection
    del other
    gc.collect()
for _ in range(6):
    connection.connect()
connection.close()
stats = connection.pool.stats()
print(errors, stats["pool_size"] == stats["pool_available"], stats["requests_errors"])
"""
    assert ok(run(project, code=code)) == "[] True 0\n"


def test_persistent_connections_are_refused_in_the_words_of_django(project: Path) -> None:
    configure(project, "{'CONN_MAX_AGE': 60}", pool=True)
    finished = run(project, code="from django.db import connection\nconnection.ensure_connection()")
    assert "ImproperlyConfigured: Pooling doesn't support persistent connections." in finished.stderr


def test_an_exhausted_pool_names_who_holds_its_connections(project: Path, config: dict[str, Any]) -> None:
    config["pool_settings"] = {"min_size": 1, "max_size": 1, "timeout": 0.5}
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    code = """
import threading
from django.conf import settings
from django.db import OperationalError, connection
from django.http import HttpResponse
from django.test import Client
from django.urls import path
from django_pgmonkey.middleware import TransactionMiddleware
from shop.models import Thing
def refused():
    try:
        connection.ensure_connection()
    except OperationalError as error:
        print(error)
def tell():
    thread = threading.Thread(target=refused)
    thread.start()
    thread.join()
def report(request, number):
    Thing.objects.filter(pk=number).exists()  # through most of Django
    tell()
    return HttpResponse()
urlpatterns = [path("reports/<int:number>", report)]
settings.ROOT_URLCONF, settings.ALLOWED_HOSTS = __name__, ["testserver"]
def task():
    with connection.cursor():
        tell()
task()
connection.close()
Client().get("/reports/7")
connection.close()  # Django's test client does not
settings.MIDDLEWARE = ["django_pgmonkey.middleware.TransactionMiddleware"]
Client().get("/reports/7")
"""
    migrate(project)
    told = re.findall(r"held longest: [\d.]+ s, borrowed (.*) by thread 'MainThread'", ok(run(project, code=code)))
    assert told == [
        "at program.py:28 (task)",
        "at program.py:22 (report)",
        "for GET reports/<int:number>, at program.py:22 (report)",
    ]


def test_a_thread_gives_back_what_it_borrowed_last_and_nobody_elses(project: Path) -> None:
    code = """
import gc, threading
from django.db import connection, connections
gc.disable()  # the wrappers of threads that are gone are in reference cycles
def lent():
    stats = connection.pool.stats()
    return stats["pool_size"] - stats["pool_available"]
def work():
    for _ in range(3):
        connection.close()
        connection.cursor().execute("SELECT 1")
counts = []
for _ in range(2):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    counts.append(lent())
shared = connections.create_connection("default")
shared.inc_thread_sharing()
used, ending = threading.Event(), threading.Event()
def use():
    shared.cursor().execute("SELECT 1")
    shared.close()
    used.set()
    ending.wait()
thread = threading.Thread(target=use)
thread.start()
used.wait()
shared.cursor().execute("SELECT 1")
shared.dec_thread_sharing()
mine = shared.connection
ending.set()
thread.join()
counts.append(lent())
print(counts, shared.connection is mine, not mine.closed)
shared.close()
kept = []
def leave():
    kept.append(connections["default"])
    connection.cursor().execute("SELECT 1")
    shared.inc_thread_sharing()
    shared.cursor().execute("SELECT 2")
thread = threading.Thread(target=leave)
thread.start()
thread.join()
print(lent(), kept[0].connection, shared.cursor().execute("SELECT 3").fetchone())
"""
    assert ok(run(project, code=code)) == "[0, 0, 1] True True\n1 None (3,)\n"


def test_settings_that_change_reach_the_next_connection(project: Path) -> None:
    code = """
from django.db import connection
from django.test.utils import override_settings
def row():
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('TimeZone'), now()")
        zone, moment = cursor.fetchone()
        return zone, moment.tzinfo is None, connection.connection.cursor_factory.__name__
print(*row())
connection.close()
with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo"):
    print(*row())
    connection.close()
connection.settings_dict["OPTIONS"]["server_side_binding"] = True
connection.get_connection_params().clear()  # which is the caller's
print(*row())
"""
    expected = ["UTC False Cursor", "Asia/Tokyo True Cursor", "UTC False ServerBindingCursor"]
    assert ok(run(project, code=code)).splitlines() == expected


def test_a_role_is_assumed_or_the_connection_is_not_used(project: Path, observer: Observer, dbname: str) -> None:
    observer.execute(f"CREATE ROLE assumed_{dbname}".encode())
    code = """
from django.db import Error, connection
for _ in range(2):
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_user")
            print(cursor.fetchone()[0])
    except Error as error:
        print(str(error).splitlines()[0])
"""
    configure(project, assume_role=f"assumed_{dbname}")
    try:
        assert ok(run(project, code=code)).split() == [f"assumed_{dbname}"] * 2
    finally:
        observer.execute(f"DROP ROLE assumed_{dbname}".encode())
    configure(project, assume_role="nobody_at_all")
    assert ok(run(project, code=code)).splitlines() == ['role "nobody_at_all" does not exist'] * 2


def test_a_second_name_of_the_engine_ends_in_postgresql(project: Path) -> None:
    source = (project / "settings.py").read_text()
    (project / "settings.py").write_text(source.replace('"django_pgmonkey"', '"django_pgmonkey.postgresql"'))
    code = """
from django.db import connection, connections
from django_pgmonkey.base import DatabaseWrapper
connection.ensure_connection()
print(isinstance(connections["default"], DatabaseWrapper), connection.settings_dict["ENGINE"].rpartition(".")[2])
"""
    assert ok(run(project, code=code)) == "True postgresql\n"


def test_the_pool_answers_as_psycopg_pools_does(project: Path) -> None:
    code = """
from django.db import connection
pool = connection.pool
print(pool._check, pool is connection.pool, pool.get_stats() == pool.stats())
connection.settings_dict["CONN_HEALTH_CHECKS"] = True
print(connection.pool._check.__name__)
connection.settings_dict["OPTIONS"]["pool"] = {"check": print}
print(connection.pool._check is print)
"""
    assert ok(run(project, code=code)) == "None True True\ncheck_connection\nTrue\n"


def test_release_per_query(project: Path, observer: Observer) -> None:
    configure(project, release="query")
    migrate(project)
    code = """
from django.db import connection, transaction
from shop.models import Thing
def lent():
    stats = connection.pool.stats()
    return stats["pool_size"] - stats["pool_available"]
Thing.objects.create(name="a")
assert lent() == 0
assert [thing.name for thing in Thing.objects.all()] == ["a"] and lent() == 0
with connection.cursor() as outer:
    outer.execute("SELECT 1")
    with connection.cursor() as inner:
        inner.execute("SELECT 2")
    assert outer.fetchone() == (1,) and lent() == 1
assert lent() == 0
with transaction.atomic():
    Thing.objects.create(name="b")
    assert lent() == 1
    Thing.objects.create(name="c")
    transaction.set_rollback(True)
assert Thing.objects.count() == 1 and lent() == 0
assert len(list(Thing.objects.iterator())) == 1 and lent() == 0
print("given back")
"""
    assert ok(run(project, code=code)) == "given back\n"


def test_psycopgs_own_methods_work_through_the_cursor(project: Path) -> None:
    code = """
from django.db import connection, connections
with connection.cursor() as cursor:
    cursor.execute("LISTEN gossip")
    other = connections.create_connection("default")
    other.cursor().execute("NOTIFY gossip, 'hello'")
    other.close()
    print([notify.payload for notify in connection.connection.notifies(timeout=1, stop_after=1)])
    cursor.execute("CREATE TEMPORARY TABLE t (a int, b text)")
    with cursor.copy("COPY t FROM STDIN") as copy:
        for row in [(1, "one"), (2, "two")]:
            copy.write_row(row)
    cursor.execute("SELECT count(*) FROM t")
    print(cursor.fetchone()[0])
with connection.chunked_cursor() as cursor:
    cursor.execute("SELECT generate_series(1, 5)")
    print(cursor.fetchmany(2), len(cursor.fetchall()))
"""
    assert ok(run(project, code=code)) == "['hello']\n2\n[(1,), (2,)] 3\n"


def test_queries_are_captured_and_secrets_are_not(project: Path, config: dict[str, Any]) -> None:
    code = """
from django.db import connection
from django.http import HttpResponse
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from django.views.debug import technical_500_response
import sys
from django.conf import settings
settings.ROOT_URLCONF = "urls"
with CaptureQueriesContext(connection) as captured:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 42")
print([query["sql"] for query in captured.captured_queries])
try:
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM missing")
except Exception:
    print(technical_500_response(RequestFactory().get("/"), *sys.exc_info()).content.decode())
"""
    (project / "urls.py").write_text("urlpatterns = []")
    password = config["connection_settings"]["password"]
    output = ok(run(project, code=code))
    assert output.startswith("['SELECT 42']\n")
    assert "relation &quot;missing&quot; does not exist" in output
    assert password not in output


# -- asynchronous -----------------------------------------------------------------------------------------------------


def test_asynchronous_queries(project: Path, observer: Observer) -> None:
    migrate(project)
    code = """
import asyncio
import django_pgmonkey
from django.db import connection
async def main():
    database = django_pgmonkey.database("default")
    assert database is django_pgmonkey.database()
    async with database.transaction():
        await database.execute("INSERT INTO shop_thing (name, data) VALUES ('a', '{}')")
    try:
        async with database.transaction():
            await database.execute("INSERT INTO shop_thing (name, data) VALUES ('b', '{}')")
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    counts = (database.fetch_value("SELECT count(*) FROM shop_thing") for _ in range(50))
    print(set(await asyncio.gather(*counts)))
    connection.settings_dict["NAME"] = "postgres"
    print(await django_pgmonkey.database().fetch_value("SELECT current_database()"))
asyncio.run(main())
"""
    assert ok(run(project, code=code)) == "{1}\npostgres\n"


def test_asynchronous_queries_in_tests_go_to_the_test_database(project: Path) -> None:
    (project / "shop" / "tests.py").write_text(
        "import django_pgmonkey\n"
        "from django.db import connection\n"
        "from django.test import TransactionTestCase\n"
        "from shop.models import Thing\n"
        "class Asynchronous(TransactionTestCase):\n"
        "    async def test_one(self):\n"
        "        await Thing.objects.acreate(name='a')\n"
        "        database = django_pgmonkey.database()\n"
        "        self.assertEqual(await database.fetch_value('SELECT count(*) FROM shop_thing'), 1)\n"
        "        name = await database.fetch_value('SELECT current_database()')\n"
        "        self.assertTrue(name.startswith('test_'), name)\n"
    )
    ok(run(project, "makemigrations", "shop"))
    finished = run(project, "test", "shop")
    assert finished.returncode == 0, finished.stderr
    assert "accessed by other users" not in finished.stderr


def test_two_hundred_asynchronous_requests_on_a_pool_of_ten(project: Path, config: dict[str, Any]) -> None:
    config["pool_settings"] = config["async_pool_settings"] = {"min_size": 1, "max_size": 10, "timeout": 60}
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    migrate(project)
    (project / "urls.py").write_text("""
import django_pgmonkey
from django.http import HttpResponse
from django.urls import path
from shop.models import Thing
async def orm(request):
    await Thing.objects.acreate(name=request.GET["name"])
    return HttpResponse(await Thing.objects.acount())
async def own(request):
    return HttpResponse(await django_pgmonkey.database().fetch_value("SELECT count(*) FROM shop_thing"))
def plain(request):
    return HttpResponse(Thing.objects.count())
urlpatterns = [path("orm", orm), path("own", own), path("plain", plain)]
""")
    with open(project / "settings.py", "a") as settings:
        settings.write("ROOT_URLCONF = 'urls'\nALLOWED_HOSTS = ['*']\n")
        settings.write("MIDDLEWARE = ['django_pgmonkey.middleware.TransactionMiddleware']\n")
    code = """
import asyncio
import django_pgmonkey
from django.core.asgi import get_asgi_application
from django.db import connection
app = get_asgi_application()
async def get(path, query):
    sent, body = [], [{"type": "http.request", "body": b"", "more_body": False}]
    async def receive():
        if body:
            return body.pop()
        await asyncio.sleep(3600)
    async def send(message):
        sent.append(message)
    await app({"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "headers": [],
               "asgi": {"version": "3.0"}}, receive, send)
    return sent[0]["status"]
async def main():
    statuses = await asyncio.gather(*(get(["/orm", "/own", "/plain"][i % 3], f"name={i}") for i in range(200)))
    print(set(statuses))
    print(await django_pgmonkey.database().fetch_value("SELECT count(*) FROM shop_thing"))
    for stats in (connection.pool.stats(), django_pgmonkey.database().stats()):
        print(stats["pool_size"] == stats["pool_available"] <= 10, stats["requests_errors"])
asyncio.run(main())
"""
    assert ok(run(project, code=code)) == "{200}\n67\nTrue 0\nTrue 0\n"
