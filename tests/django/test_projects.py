"""What is particular to the Django backend: migrations, the ORM, test databases; the promises are in tests/contract."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from pgmonkey.embedded import find_binaries

from .. import programs
from ..faults.proxy import FaultProxy
from .projects import IMPORTS, SETTINGS, make, migrate, ok, run


def test_migrations_and_the_orm(project: Path, observer: psycopg.Connection[Any]) -> None:
    migrate(project)
    code = """
import datetime
from django.db import connection, transaction
from django.db.models import F
from django.utils import timezone
from shop.models import Thing
now = timezone.now()
Thing.objects.bulk_create(Thing(name=f"t{i}", data={"i": i}, made=now) for i in range(300))
assert Thing.objects.filter(data__i__gte=290).count() == 10
thing = Thing.objects.get(name="t7")
assert thing.data == {"i": 7} and thing.made == now and thing.made.tzinfo is not None
assert len(list(Thing.objects.order_by("id").iterator(chunk_size=50))) == 300
with connection.cursor() as cursor:
    cursor.execute("SHOW TimeZone")
    assert cursor.fetchone() == ("UTC",)
    with cursor.copy("COPY (SELECT 1) TO STDOUT") as copy:
        assert b"".join(copy) == b"1\\n"
with transaction.atomic():
    Thing.objects.select_for_update().filter(name="t7").update(name="seven")
    with transaction.atomic():
        Thing.objects.all().delete()
        transaction.set_rollback(True)
connection.close()
print(Thing.objects.count(), connection.pool.stats()["pool_size"])
"""
    assert ok(run(project, code=code)).split()[0] == "300"
    assert observer.execute("SELECT count(*) FROM shop_thing WHERE name = 'seven'").fetchone() == (1,)


@pytest.mark.parametrize("options", [[], ["--parallel", "2"]])
def test_test_databases(options: list[str], project: Path, server: Any, dbname: str) -> None:
    ok(run(project, "makemigrations", "shop"))
    for _ in range(2):
        finished = run(project, "test", *options, "shop")
        assert finished.returncode == 0, finished.stderr
        assert "Ran 5 tests" in finished.stderr
        assert "accessed by other users" not in finished.stderr
    with psycopg.connect(server.dsn()) as connection:
        left = connection.execute("SELECT count(*) FROM pg_database WHERE datname LIKE %s", [f"test_{dbname}%"])
        assert left.fetchone() == (0,)


@pytest.mark.parametrize("as_url", [True, False])
def test_test_databases_with_what_only_pgmonkey_knows(as_url: bool, project: Path, config: dict[str, Any]) -> None:
    ok(run(project, "makemigrations", "shop"))
    own = config["connection_settings"]
    password = own.pop("password")
    if as_url:
        url = f"postgresql://{own['user']}:{password}@{own['host']}:{own['port']}/{own['dbname']}"
        config["connection_settings"] = {"conninfo": url}
        more = ""
    else:
        own |= {"command_timeout": 30, "pgbouncer": True, "keepalives": True}
        own |= {"host": [own["host"]] * 2, "port": [own["port"]] * 2}
        more = f"config['connection_settings']['password'] = lambda: {password!r}\n"
    more = f"config = {config!r}\n{more}DATABASES['default']['OPTIONS']['config'] = config\n"
    (project / "settings.py").write_text(f"EXTRA = {{}}\n{SETTINGS}{more}")
    finished = run(project, "test", "--verbosity", "2", "shop.tests.InTransaction")
    assert finished.returncode == 0, finished.stderr
    assert f"test_{own['dbname']}" in finished.stderr


def test_pytest_django(project: Path) -> None:
    ok(run(project, "makemigrations", "shop"))
    (project / "test_things.py").write_text(
        "import pytest\nfrom shop.models import Thing\n"
        "@pytest.mark.django_db\ndef test_one():\n"
        "    Thing.objects.create(name='a')\n    assert Thing.objects.count() == 1\n"
        "@pytest.mark.django_db(transaction=True)\ndef test_two():\n    assert Thing.objects.count() == 0\n"
    )
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "settings", "CONFIG": str(project / "config.yaml")}
    # Not what else is installed of pytest's plugins, which takes longer to import than the tests take.
    environ |= {"PYTHONPATH": str(project), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for flag in ("--create-db", "--reuse-db"):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "pytest_django.plugin", "-p", "no:cacheprovider", flag]
        command.append("test_things.py")
        finished = subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, timeout=90)
        assert "2 passed" in finished.stdout, finished.stdout


def test_settings_override_the_file(project: Path, server: Any, new_database: Any) -> None:
    other = new_database()
    extra = {"NAME": other, "OPTIONS": {"config": str(project / "config.yaml"), "application_name": "mine"}}
    (project / "settings.py").write_text(f"EXTRA = {extra!r}\n" + SETTINGS)
    code = """
from django.db import connection
with connection.cursor() as cursor:
    cursor.execute("SELECT current_database(), current_setting('application_name')")
    print(*cursor.fetchone())
"""
    assert ok(run(project, code=code)) == f"{other} mine\n"


@pytest.mark.parametrize(
    ("setup", "expected"),
    [
        ("config['connection_settings']['password'] = 'wrong'", "password authentication failed"),
        ("config['connection_settings']['dbname'] = 'missing'", '"missing" does not exist'),
    ],
)
def test_errors_are_in_the_servers_words(setup: str, expected: str, project: Path, config: dict[str, Any]) -> None:
    exec(setup, {"config": config})
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    code = """
from django.db import OperationalError, connection
try:
    connection.ensure_connection()
except OperationalError as error:
    print(error)
"""
    assert expected in ok(run(project, code=code))


def test_a_wrong_configuration_is_improperly_configured(project: Path) -> None:
    (project / "config.yaml").write_text("connection_settings: [x]\n")
    finished = run(project, "check", "--database", "default")
    assert finished.returncode != 0
    assert "(pgmonkey.E003) DATABASES['default']: " in finished.stderr
    assert "Traceback" not in finished.stderr
    finished = run(project, code="from django.db import connection\nconnection.ensure_connection()")
    assert "ImproperlyConfigured" in finished.stderr
    assert "config.yaml:1: connection_settings" in finished.stderr


def test_a_project_and_a_script_share_one_pool(project: Path) -> None:
    file = project / "config.yaml"
    file.write_text(file.read_text() + "sync_settings: {TimeZone: UTC}\n")
    code = """
import os
from django.db import connection
from pgmonkey import Database
connection.ensure_connection()
database = Database(os.environ["CONFIG"])
database.fetch_value("SELECT 1")
assert database.stats() == connection.pool.stats()
print("shared")
"""
    assert ok(run(project, code=code)) == "shared\n"


def test_a_mapping_is_a_configuration(project: Path) -> None:
    code = """
import os
import yaml
from django.db import connections
with open(os.environ["CONFIG"]) as file:
    config = yaml.safe_load(file)
connections.databases["mapped"] = {**connections.databases["default"], "OPTIONS": {"config": config}}
with connections["mapped"].cursor() as cursor:
    cursor.execute("SHOW TimeZone")
    print(*cursor.fetchone())
"""
    assert ok(run(project, code=code)) == "UTC\n"


def test_what_was_resolved_is_literal(project: Path, config: dict[str, Any]) -> None:
    """A reference is resolved once, what comes out of it is no reference, and nobody warns of it."""
    odd = "a${HOME} $${b} {c} $$${"
    config["connection_settings"]["application_name"] = "${ODD}"
    code = f"""
import asyncio, logging, os
os.environ["ODD"] = odd = {odd!r}
logging.basicConfig(format="%(message)s")
from django.db import connection, connections
from django_pgmonkey import database
from django_pgmonkey.health import ready
def show(wrapper):
    with wrapper.cursor() as cursor:
        cursor.execute("SHOW application_name")
        assert cursor.fetchone() == (odd,), odd
mapped = {{"config": {config!r}, "resolve_env": True}}
connections.databases["resolved"] = {{**connections.databases["default"], "OPTIONS": mapped}}
own = {{"config": os.environ["CONFIG"], "application_name": odd}}
connections.databases["own"] = {{**connections.databases["default"], "OPTIONS": own}}
for alias in ("resolved", "own"):
    show(connections[alias])
    assert asyncio.run(database(alias).fetch_value("SHOW application_name")) == odd
assert ready(None).status_code == 200
print("literal")
"""
    finished = run(project, code=code)
    assert ok(finished) == "literal\n"
    assert finished.stderr == ""


def test_a_request_that_reads_once_is_one_round_trip(project: Path, config: dict[str, Any]) -> None:
    connect = config["connection_settings"]
    with FaultProxy(connect["host"], int(connect["port"])) as proxy:
        connect["port"] = proxy.port
        (project / "config.yaml").write_text(yaml.safe_dump(config))
        code = """
import sys
import django
django.setup()
from django.db import connection
for _ in range(4):
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_class WHERE oid = %s", [1])
    connection.close()
    print("done", flush=True)
    sys.stdin.readline()
"""
        command = [sys.executable, "-c", code]
        environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": str(project)}
        environ["CONFIG"] = str(project / "config.yaml")
        with subprocess.Popen(
            command, cwd=project, env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            counts = []
            for _ in range(4):
                assert process.stdout.readline() == "done\n"
                counts.append(proxy.round_trips)
                process.stdin.write("\n")
                process.stdin.flush()
        assert [after - before for before, after in itertools.pairwise(counts[1:])] == [1, 1]


def test_the_example_shops_commands(examples: Path, config: dict[str, Any], observer: psycopg.Connection[Any]) -> None:
    """As example_apps/README.md has them."""
    settings = config["connection_settings"]
    names = {"HOST": "host", "PORT": "port", "USER": "user", "PASSWORD": "password", "DATABASE": "dbname"}
    environ = {**os.environ, **{f"SHOP_{name}": str(settings[key]) for name, key in names.items()}}
    text = (examples / "example_apps" / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ python -m example_apps.django_orders.manage (.*)$", text, re.MULTILINE)
    assert len(commands) == 5
    environ["PATH"] = f"{environ['PATH']}:{find_binaries()}"
    if shutil.which("psql", path=environ["PATH"]) is None:
        commands.remove("dbshell")
    if "dbshell" in commands:
        commands.remove("dbshell")
        finished = subprocess.run(
            [sys.executable, "-m", "example_apps.django_orders.manage", "dbshell"],
            cwd=examples,
            env=environ,
            capture_output=True,
            text=True,
            input="SELECT 'from the ' || 'shell';\n",
        )
        assert finished.returncode == 0, finished.stderr
        assert "from the shell" in finished.stdout
    for command in [*commands, "makemigrations --check --dry-run"]:
        module = "example_apps.django_orders.manage"
        finished = programs.run(
            module=module, arguments=command.split(), folder=examples, environ=environ, imports=IMPORTS
        )
        assert finished.returncode == 0, finished.stderr
        if command.startswith("test"):
            assert "Ran 2 tests" in finished.stderr
    assert observer.execute("SELECT count(*) FROM purchase").fetchone() == (0,)


def test_a_rotated_secret_needs_no_restart(
    config: dict[str, Any], observer: psycopg.Connection[Any], tmp_path: Path
) -> None:
    role = f"rotating_{observer.info.dbname}"
    observer.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'one'".encode())
    try:
        secret = tmp_path / "secret"
        secret.write_text("one\n")
        admin = dict(config["connection_settings"])
        config["connection_settings"].update(user=role, password={"from_file": str(secret)})
        config["pool_settings"]["max_lifetime"] = 0.05
        make(tmp_path, config)
        (tmp_path / "settings.py").write_text(
            "EXTRA = {}\n" + SETTINGS + "DATABASES['default']['OPTIONS']['resolve_env'] = True\n"
        )
        code = f"""
import pathlib, threading, time
import psycopg
from django.db import connection
def work():
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user")
        seen.append((cursor.fetchone()[0], id(connection.pool)))
    connection.close()
seen = []
work()
with psycopg.connect(**{admin!r}, autocommit=True) as c:
    c.execute("ALTER ROLE {role} PASSWORD 'two'")
pathlib.Path({str(secret)!r}).write_text("two\\n")
time.sleep(0.1)
work()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(len(seen), len(set(seen)))
"""
        assert ok(run(tmp_path, code=code)) == "3 1\n"
    finally:
        observer.execute(f"DROP ROLE {role}".encode())
