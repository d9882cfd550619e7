"""The code blocks of the documentation, run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml

from .. import programs
from ..contract.conftest import free_port
from .conftest import ROOT, blocks, run, section


def test_install(folder: Path, environ: dict[str, str]) -> None:
    # A file that "pgconfig create" writes, as the README says.
    create = [sys.executable, "-m", "pgmonkey", "pgconfig", "create", "--connconfig", "created.yaml"]
    subprocess.run(create, cwd=folder, env=environ, capture_output=True, check=True)
    assert (folder / "created.yaml").read_text() == (folder / "config.yaml").read_text()
    (command,) = re.findall(r"^\$ pgmonkey (pgconfig test .*)$", section("Install"), re.MULTILINE)
    finished = subprocess.run(
        [sys.executable, "-m", "pgmonkey", *command.split()], cwd=folder, env=environ, capture_output=True, text=True
    )
    shown = section("Install").partition("pgconfig test")[2].partition("\n")[2].partition("\n")[0]
    pattern = re.sub(r"\d+", r"\\d+", re.escape(shown).replace("127\\.0\\.0\\.1", "\\S+").replace("15\\.18", ".*"))
    assert re.fullmatch(pattern.replace("to\\ postgres", "to\\ \\S+"), finished.stdout.strip()), finished.stdout


@contextmanager
def served(folder: Path, environ: dict[str, str], command: str, *port: str) -> Iterator[httpx.Client]:
    """Run *command* of the README, on a port that is free, until the end of the block."""
    number = free_port()
    words = [*shlex.split(command), *(word.format(port=number) for word in port)]
    program = [str(Path(sys.executable).parent / words[0]), *words[1:]]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(program, cwd=folder, env=environ, stdout=log, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{number}", timeout=30) as client:
            for _ in range(1200):
                assert server.poll() is None, (folder / "log").read_text()
                with suppress(httpx.TransportError):
                    client.get("/")
                    break
                time.sleep(0.1)
            yield client
    finally:
        server.terminate()
        server.wait(30)


def commands(title: str, *names: str) -> list[str]:
    """Return the commands of these names in the text of a section."""
    return [code for code in re.findall(r"`([^`\n]+)`", section(title)) if code.startswith(names)]


def test_flask(folder: Path, environ: dict[str, str]) -> None:
    (code,) = blocks(section("Flask"), "python")
    (folder / "app.py").write_text(code)
    (command,) = commands("Flask", "flask run")
    with served(folder, environ, command, "--port={port}") as client:
        assert client.post("/users/Ann").json() == {"id": 1}
        assert client.get("/users").json() == [{"id": 1, "name": "Ann"}]


def test_fastapi(folder: Path, environ: dict[str, str]) -> None:
    (code,) = blocks(section("FastAPI"), "python")
    (folder / "app.py").write_text(code)
    (command,) = commands("FastAPI", "uvicorn ")
    with served(folder, environ, command, "--port={port}") as client:
        assert client.post("/users/Ann").json() == {"id": 1}
        assert client.get("/users").json() == [{"id": 1, "name": "Ann"}]
        assert client.get("/users/count").json() == 1
        assert client.get("/docs").status_code == 200


def test_django(folder: Path, environ: dict[str, str]) -> None:
    (start,) = commands("Django", "django-admin ")
    binaries = str(Path(sys.executable).parent)
    environ = {**environ, "PATH": f"{binaries}{os.pathsep}{environ['PATH']}", "DJANGO_SUPERUSER_PASSWORD": "x"}
    subprocess.run(shlex.split(start), cwd=folder, env=environ, check=True)
    settings, urls = blocks(section("Django"), "python")
    with open(folder / "mysite" / "settings.py", "a") as file:
        file.write(settings)
    (folder / "mysite" / "urls.py").write_text(urls)
    migrate, create, serve = commands("Django", "python manage.py")
    create += " --noinput --username=ann --email=ann@example.org"
    for command in (migrate, create):
        subprocess.run(shlex.split(command), cwd=folder, env=environ, check=True, stdout=subprocess.DEVNULL)
    with served(folder, environ, serve, "--noreload", "{port}") as client:
        assert client.get("/users").json() == {"users": [{"id": 1, "username": "ann"}]}


def program(document: str) -> str:
    """Return the Python blocks of *document*, which make one program."""
    return "\n".join(blocks((ROOT / "docs" / document).read_text(encoding="utf-8"), "python"))


def test_the_flask_document(folder: Path, environ: dict[str, str], observer: psycopg.Connection[Any]) -> None:
    (folder / "reports.yaml").write_text((folder / "config.yaml").read_text())
    use = """
client = app.test_client()
def call(method, path):
    answer = client.open(path, method=method)
    print(answer.status_code, answer.text.strip().replace("\\n", " ").partition(" <html")[0])
call("POST", "/users/Ann")
call("POST", "/users/Ann")
call("POST", "/signup/Ann")
call("GET", "/divide")
call("GET", "/report")
call("POST", "/counter")
call("POST", "/transfer")
call("GET", "/summary")
call("GET", "/users.csv")
call("GET", "/users.txt")
call("POST", "/signup/Eve")
call("GET", "/health/ready")
"""
    assert run(folder, environ, program("flask.md") + use).splitlines() == [
        '201 {"id":1}',
        '409 {"error":"there is one already"}',
        '409 {"error":"Ann is user 1 already"}',
        "500 noted",
        '200 [[1,"Ann"],[3,"an error"]]',
        "404 <!doctype html>",
        "204 ",
        '200 {"users":3}',
        "200 1,Ann! 3,an error! 4,counted!",
        "200 Ann! an error! counted!",
        "204 ",
        '200 {"status":"ready"}',
    ]


def test_the_fastapi_document(folder: Path, environ: dict[str, str]) -> None:
    use = """
import warnings
warnings.simplefilter("ignore")  # of the test client
from fastapi.testclient import TestClient
with TestClient(app) as client:
    def call(method, path):
        answer = client.request(method, path)
        print(answer.status_code, answer.text.strip().replace("\\n", " "))
    call("GET", "/health/ready")
    call("GET", "/health/live")
    call("POST", "/names/ann")
    call("POST", "/names/ann")
    call("GET", "/names")
    call("POST", "/visits/ann")
    call("POST", "/visits/nobody")
    call("GET", "/visits")
    call("POST", "/greetings/bob")
    call("GET", "/visits/count")
    with client.websocket_connect("/live") as socket:
        socket.send_text("carl")
        print(socket.receive_text())
    call("GET", "/visits.csv")
    call("POST", "/shout")
    call("GET", "/snapshot")
"""
    assert run(folder, environ, program("fastapi.md") + use).splitlines() == [
        '200 {"status":"ready"}',
        '200 {"status":"live"}',
        '200 {"new":true}',
        '200 {"names":1,"new":false}',
        '200 [["ann"]]',
        '200 {"who":"ann"}',
        '409 {"error":"no"}',
        '200 [["ann"]]',
        "200 {}",
        "200 2",
        "written",
        "200 ann carl greeted bob",
        "200 3",
        "200 3",
    ]


def test_the_document_on_many_rows(folder: Path, environ: dict[str, str]) -> None:
    assert run(folder, environ, program("bulk.md")).splitlines() == [
        *("2", "1", "1000", "1"),
        *("1", "1", "1"),
        "1 amount many",
        "rows[1], column 'amount', value 'many': invalid input syntax for type integer: \"many\"; nothing was stored",
        *("997", "997"),
        "[('mug', 4), ('cup 9', 0)]",
        "1",
        "2 [('cup 100', 100), ('cup 101', 101)]",
    ]


def test_the_document_on_queries(folder: Path, environ: dict[str, str]) -> None:
    assert run(folder, environ, program("queries.md")).splitlines() == [
        "User(id=1, name='Ann') User(id=2, name='Bob')",
        "[{'name': 'Ann'}, {'name': 'Bob'}]",
        "['Ann', 'Bob']",
        *("Ann", "Bob"),
        *("id=1 name='Ann' email='none'", "id=1 name='Ann' email='none'"),
        "Person(id=1, name='ANN')",
        '[{"name":"Ann","email":null},{"name":"Bob","email":null}]',
        "the statement returned 2 rows where exactly one was expected: DELETE FROM members RETURNING id",
        "2",
        "the statement did not end within 0.2 s (timeout)",
        "the lock 'nightly report' was not free: it is held by",
        "User(id=1, name='Ann') 1 ['ann@example.org', None]",
    ]


def run_pytest(folder: Path, text: str, plugin: str) -> str:
    """Write the files that a page names, and run its tests with one more *plugin*; return what pytest prints."""
    for name, code in re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
    plugins = ("-p", "no:cacheprovider", "-p", "pgmonkey.testing.plugin", "-p", plugin)
    # Without everybody else's, which take a second to load.
    environ = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", *plugins]
    finished = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.mark.timeout(500)  # it starts several processes, which import much
def test_the_testing_document(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    before, django, behind = re.split(r"^## (?:Django|Anything else)\n", text, flags=re.MULTILINE)
    assert "7 passed" in run_pytest(tmp_path, before + behind, "pytest_asyncio.plugin")
    # What the schema is made from is typed as it stands, too.
    (schema,) = blocks(text.partition("## The schema")[2].partition("\n## ")[0], "python")
    compile(schema, "conftest.py", "exec")
    project = tmp_path / "project"
    for folder in re.findall(r"`(visits[\w/]*)/__init__.py`", django):
        (project / folder).mkdir(parents=True, exist_ok=True)
        (project / folder / "__init__.py").touch()
    assert "3 passed" in run_pytest(project, django, "pytest_django.plugin")
    # The other fixture for a live server is in a block of its own.
    compile(blocks(django, "python")[-1], "conftest.py", "exec")


def test_the_telemetry_document(folder: Path, environ: dict[str, str]) -> None:
    (folder / "program.py").write_text(program("telemetry.md"))
    finished = programs.run(code=program("telemetry.md"), file="program.py", folder=folder, environ=environ)
    assert (finished.returncode, finished.stdout) == (0, "SELECT pg_sleep(0.1)\n"), finished.stderr
    lines = [line.partition(": ")[2] for line in finished.stderr.splitlines()]
    assert lines == ["SELECT name FROM users", "SELECT pg_sleep(?)"]


def test_the_document_on_notifications(folder: Path, environ: dict[str, str]) -> None:
    assert run(folder, environ, program("listen.md")).splitlines() == ["orders 42", "stock mug"]


def test_scripts(folder: Path, environ: dict[str, str]) -> None:
    (code,) = blocks(section("Scripts"), "python")
    assert "PostgreSQL" in run(folder, environ, code)


def test_references_in_the_configuration_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pgmonkey import load_config

    profiles, text = blocks((ROOT / "docs" / "configuration.md").read_text(encoding="utf-8"), "yaml")
    (tmp_path / "profiles.yaml").write_text(profiles)
    reports = load_config(tmp_path / "profiles.yaml", profile="reports")
    assert (reports["connection_settings"]["host"], reports["pool_settings"]) == ("replica.example", {"max_size": 2})
    (tmp_path / "key").write_text("k\n")
    (tmp_path / "config.yaml").write_text(text.replace("/run/secrets/key", str(tmp_path / "key")))
    monkeypatch.delenv("PGHOST", raising=False)
    monkeypatch.setenv("PGUSER", "u")
    monkeypatch.setenv("PGPASSWORD", "p")
    settings = load_config(tmp_path / "config.yaml", resolve_env=True)["connection_settings"]
    assert settings == {"host": "localhost", "user": "u", "password": "p", "sslpassword": "k"}


def test_every_pool_parameter_is_documented_with_its_default() -> None:
    from pgmonkey._config.schema import PoolSettings

    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for name, field in PoolSettings.__dataclass_fields__.items():
        row = next((line for line in text.splitlines() if line.startswith("|") and f"`{name}`" in line), None)
        assert row is not None, name
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            assert str(int(field.default)) in row, name


def anchors(text: str) -> set[str]:
    """Return what the headings of a page are called in links, as GitHub and the site call them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("example_apps/*.md")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", path.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


def test_every_test_that_the_documents_name_is_there() -> None:
    for path in DOCUMENTS:
        for name in re.findall(r"`(tests/[\w./]+)`", path.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{path.name}: {name}"


def test_the_sample_configuration_is_yaml() -> None:
    assert yaml.safe_load(blocks(section("Install"), "yaml")[0])["connection_type"] == "pool"
