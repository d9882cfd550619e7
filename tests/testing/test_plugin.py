"""The plugin in projects of other people: found by itself, and free of cost where it is not used."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from importlib.metadata import entry_points
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from pgmonkey.embedded import Server
from pgmonkey.testing import TestServer, command, function, sql_files, template

# Each starts several processes, which import much, and the machine may be busy.
pytestmark = pytest.mark.timeout(500)

SCHEMA = "CREATE TABLE visit (who text UNIQUE); INSERT INTO visit VALUES ('first');"
APPLICATION = """
    from flask import Flask
    from flask_pgmonkey import PGMonkey

    db = PGMonkey()

    def create_app():
        app = Flask(__name__)
        app.config["PGMONKEY_CONFIG"] = "postgresql://app@db.example/app"
        db.init_app(app)

        @app.post("/visits/<who>")
        def visit(who):
            db.execute("INSERT INTO visit VALUES (%s)", [who])
            return {}, 201

        @app.get("/visits")
        def visits():
            return [who for (who,) in db.fetch_all("SELECT who FROM visit ORDER BY who")]

        return app
"""
TESTS = """
    import pytest
    from app import create_app

    @pytest.mark.parametrize("i", range(4))
    def test_visits(i, pgmonkey_sandbox):
        client = create_app().test_client()
        assert client.post("/visits/Ann").status_code == 201
        assert client.post("/visits/Ann").status_code == 500
        assert client.get("/visits").json == ["Ann", "first"]

    def test_a_database(pgmonkey_database, pgmonkey_module_database, pgmonkey_session_database):
        names = {pgmonkey_database.name, pgmonkey_module_database.name, pgmonkey_session_database.name}
        assert len(names) == 3
        with pgmonkey_database.connect() as connection:
            assert connection.execute("TABLE visit").fetchall() == [("first",)]
            connection.execute("VACUUM")
"""


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(textwrap.dedent(text))


def run_pytest(folder: Path, *arguments: str, **environ: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    if PLUGIN[1] in arguments:
        # Without everybody else's, which take a second of each process to load.
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        command += ["-p", "xdist.plugin"] if "-n2" in arguments else []
    run = subprocess.run(
        command, cwd=folder, env={**environment, **environ}, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def databases(server: Server) -> set[str]:
    with psycopg.connect(server.dsn()) as connection:
        return {row[0] for row in connection.execute("SELECT datname FROM pg_database").fetchall()}


PLUGIN = ("-p", "pgmonkey.testing.plugin")


def test_a_project_is_tested(tmp_path: Path, server: Server) -> None:
    write(tmp_path, schema_sql=SCHEMA, app_py=APPLICATION, test_visits_py=TESTS)
    write(tmp_path, pytest_ini="[pytest]\npgmonkey_schema = schema.sql\n")
    before = databases(server)
    # The plugin is found by itself, but for an old editable install, which has no entry points.
    found = any(point.value == PLUGIN[1] for point in entry_points(group="pytest11"))
    assert "5 passed" in run_pytest(tmp_path, *(() if found else PLUGIN))
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        # It is kept for the next run, and is not made again.  Others may make theirs at the same time.
        numbers: dict[str, int] = {
            name: oid for name, oid in connection.execute("SELECT datname, oid FROM pg_database")
        }
        with TestServer(server.dsn()) as again:
            made = template(again, sql_files(tmp_path / "schema.sql")).name
        row = connection.execute("SELECT oid FROM pg_database WHERE datname = %s", [made]).fetchone()
        assert made not in before
        assert row == (numbers[made],)
        for statement in ("ALTER DATABASE {} IS_TEMPLATE false", "DROP DATABASE {}"):
            connection.execute(sql.SQL(statement).format(sql.Identifier(made)))


def load(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("INSERT INTO visit VALUES ('function')")


def test_the_template_is_made_anew_when_the_schema_changes(tmp_path: Path, server: Server) -> None:
    write(tmp_path, schema_sql=SCHEMA)
    more = tmp_path / "more.sql"
    insert = "import os, sys, psycopg; c = psycopg.connect(os.environ['DATABASE_URL'], autocommit=True); "
    insert += "c.execute(open(sys.argv[1]).read()); c.close()"
    for word in ("command", "changed"):
        more.write_text(f"INSERT INTO visit VALUES ('{word}')")
        run = command([sys.executable, "-c", insert, str(more)], depends=[more])
        schema = sql_files(tmp_path / "schema.sql") + function(load) + run
        with TestServer(server.dsn()) as again, template(again, schema).clone() as database:
            with database.connect() as connection:
                assert connection.execute("TABLE visit").fetchall() == [("first",), ("function",), (word,)]


def test_a_project_without_a_server_gets_one_that_stops_after_the_tests(tmp_path: Path) -> None:
    """And xdist's workers share it."""
    assert "5 passed" in run_without_server(tmp_path, *PLUGIN, "-n2")


def run_without_server(folder: Path, *arguments: str) -> str:
    """Test a project that has no server; return what pytest says when the server has stopped."""
    write(folder, schema_sql=SCHEMA, app_py=APPLICATION, test_visits_py=TESTS)
    write(folder, pytest_ini="[pytest]\npgmonkey_schema = schema.sql\n")
    # Short, because of the socket, and for everybody: as root, the server runs under another account.
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp", ignore_cleanup_errors=True) as home:
        Path(home).chmod(0o777)
        out = run_pytest(folder, *arguments, PGMONKEY_TEST_DSN="", TMPDIR=home)
        (kept,) = Path(home).glob("pgmonkey-testing-*")
        deadline = time.monotonic() + 60
        while (kept / "address").exists() or (kept / "data" / "postmaster.pid").exists():
            assert time.monotonic() < deadline, (kept / "keeper.log").read_text()
            time.sleep(0.1)
    return out


def test_a_project_that_does_not_use_it_pays_nothing(tmp_path: Path) -> None:
    test = """
        import sys, threading

        def test_nothing(pytestconfig):
            assert pytestconfig.getini("pgmonkey_schema") == []
            loaded = {name.partition(".")[0] for name in sys.modules}
            assert not {"psycopg", "psycopg_pool", "yaml", "flask", "fastapi", "django"} & loaded
            assert sorted(name for name in sys.modules if name.startswith("pgmonkey")) == [
                "pgmonkey", "pgmonkey.testing", "pgmonkey.testing.plugin"
            ]
            assert threading.active_count() == 1
    """
    write(tmp_path, test_nothing_py=test)
    assert "1 passed" in run_pytest(tmp_path, *PLUGIN, "-W", "error")
