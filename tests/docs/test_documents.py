"""The code blocks of the documentation, run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from .. import programs

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """Return the README's section *title*."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.fixture
def folder(config: dict[str, Any], tmp_path: Path, observer: psycopg.Connection[Any]) -> Path:
    """A folder with the README's ``config.yaml``, for a database with its table."""
    (tmp_path / "config.yaml").write_text(blocks(section("Install"), "yaml")[0])
    observer.execute(blocks(section("Install"), "sql")[0].encode())
    return tmp_path


@pytest.fixture
def environ(config: dict[str, Any]) -> dict[str, str]:
    settings = config["connection_settings"]
    names = {"PGUSER": "user", "PGPASSWORD": "password", "PGHOST": "host", "PGPORT": "port", "PGDATABASE": "dbname"}
    return {**os.environ, **{variable: str(settings[key]) for variable, key in names.items()}}


def run(folder: Path, environ: dict[str, str], code: str) -> str:
    (folder / "program.py").write_text(code)
    finished = programs.run(code=code, file="program.py", folder=folder, environ=environ)
    assert (finished.returncode, finished.stderr) == (0, ""), finished.stderr
    return finished.stdout


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


def test_flask(folder: Path, environ: dict[str, str]) -> None:
    (code,) = blocks(section("Flask"), "python")
    use = """
client = create_app().test_client()
print(client.post("/users/Ann").get_json(), client.get("/users").get_json())
"""
    assert run(folder, environ, code + use) == "{'id': 1} [{'id': 1, 'name': 'Ann'}]\n"


def test_fastapi(folder: Path, environ: dict[str, str]) -> None:
    (code,) = blocks(section("FastAPI"), "python")
    use = """
import asyncio, httpx
async def main():
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            print((await client.post("/users/Ann")).json(), (await client.get("/users")).json())
            print((await client.get("/users/count")).json())
asyncio.run(main())
"""
    assert run(folder, environ, code + use) == "{'id': 1} [{'id': 1, 'name': 'Ann'}]\n1\n"


def test_django(folder: Path, environ: dict[str, str]) -> None:
    (settings,) = blocks(section("Django"), "python")
    (folder / "settings.py").write_text(settings + "\nSECRET_KEY = 'x'\nROOT_URLCONF = 'urls'\nALLOWED_HOSTS = ['*']\n")
    (folder / "urls.py").write_text(
        "from django.db import connection\nfrom django.http import JsonResponse\nfrom django.urls import path\n"
        "def view(request):\n"
        "    with connection.cursor() as cursor:\n"
        "        cursor.execute('INSERT INTO users (name) VALUES (%s) RETURNING id', ['Ann'])\n"
        "        return JsonResponse({'id': cursor.fetchone()[0]})\n"
        "urlpatterns = [path('', view)]\n"
    )
    use = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
import django
django.setup()
from django.core.management import call_command
from django.test import Client
call_command("check", databases=["default"], verbosity=0)
print(Client().get("/").json())
"""
    printed = run(folder, environ, use)
    assert printed.splitlines()[-1] == "{'id': 1}"


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


def test_every_link_in_the_documents_leads_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("example_apps/*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_test_that_the_documents_name_is_there() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for name in re.findall(r"`(tests/[\w./]+)`", path.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{path.name}: {name}"


def test_the_sample_configuration_is_yaml() -> None:
    assert yaml.safe_load(blocks(section("Install"), "yaml")[0])["connection_type"] == "pool"
