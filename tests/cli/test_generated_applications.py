"""``pgmonkey pgconfig generate-code --framework``: each application answers a request.

The files are written by one process, and run by one for each framework; Django's settings are a process's own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgmonkey._config.schema import KINDS

from .. import programs

GENERATE = """
import contextlib, io, itertools, sys
from pathlib import Path
from pgmonkey.cli import main
for kind, library in itertools.product({kinds}, ("pgmonkey", "psycopg")):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        words = ["--framework", {framework!r}, "--connection-type", kind, "--library", library]
        assert main(["pgconfig", "generate-code", "--resolve-env", *words]) == 0
    Path(f"{framework}_{{kind}}_{{library}}.py").write_text(printed.getvalue())
"""
FLASK = """
import importlib
for name in {names}:
    answer = importlib.import_module(name).app.test_client().get("/")
    print(answer.status_code, answer.get_json()["version"].split()[0], flush=True)
"""
FASTAPI = """
import asyncio, httpx, importlib
async def main():
    for name in {names}:
        app = importlib.import_module(name).app
        async with app.router.lifespan_context(app):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
                answer = await client.get("/")
                print(answer.status_code, answer.json()["version"].split()[0], flush=True)
asyncio.run(main())
"""
DJANGO = """
import {name}
from django.test import Client
answer = Client(SERVER_NAME="localhost").get("/")
print(answer.status_code, answer.json()["version"].split()[0], flush=True)
"""
IMPORTS = {
    "flask": ["flask", "flask_pgmonkey", "asgiref.sync"],
    "fastapi": ["fastapi", "fastapi_pgmonkey", "httpx"],
    "django": ["django.test", "django.core.management", "django.core.wsgi", "django.core.asgi", "django_pgmonkey"],
}


@pytest.mark.parametrize("framework", ["flask", "fastapi", "django"])
def test_each_application_answers(framework: str, config: dict[str, Any], tmp_path: Path) -> None:
    secret = config["connection_settings"]["password"]
    config["connection_settings"]["password"] = "${PGM_PASSWORD}"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    environ = {**os.environ, "PGM_PASSWORD": secret, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    environ.pop("PGMONKEY_CONFIG", None)
    imports = ["pgmonkey.cli._connect", "psycopg_pool", *IMPORTS[framework]]

    def run(code: str) -> list[str]:
        finished = programs.run(code=code, folder=tmp_path, environ=environ, imports=imports)
        assert (finished.returncode, finished.stderr) == (0, ""), code
        return finished.stdout.splitlines()

    assert run(GENERATE.format(kinds=KINDS, framework=framework)) == []
    names = sorted(path.stem for path in tmp_path.glob(f"{framework}_*.py"))
    assert len(names) == 8
    for name in names:
        text = (tmp_path / f"{name}.py").read_text()
        assert secret not in text
        assert ("pgmonkey" in text) == name.endswith("pgmonkey")
        compile(text, name, "exec")
    if framework == "django":
        # On pgmonkey, the file is the same for both kinds of a colour.
        texts = {(tmp_path / f"{name}.py").read_text(): name for name in names}
        answers = [line for name in texts.values() for line in run(DJANGO.format(name=name))]
        assert len(texts) == 6
    else:
        answers = run((FLASK if framework == "flask" else FASTAPI).format(names=names))
    assert answers == ["200 PostgreSQL"] * len(answers)
    assert len(answers) >= 6
