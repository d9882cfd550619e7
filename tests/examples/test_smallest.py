"""The smallest applications, each as somebody copies it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from .. import programs

CLIENTS = {
    "flask": """
from flask_app import app
client = app.test_client()
post = lambda path: client.post(path).text
""",
    "fastapi": """
import warnings
warnings.simplefilter("ignore")  # of the test client
from fastapi.testclient import TestClient
from fastapi_app import app
client = TestClient(app).__enter__()
post = lambda path: client.post(path).json()
""",
    "django": """
import django_app
import django
django.setup()
from django.test import Client
post = lambda path: Client(headers={"host": "localhost"}).post(path).content.decode()
""",
}


CLIENTS["sqlalchemy"] = CLIENTS["flask"].replace("flask_app", "sqlalchemy_app")


@pytest.mark.parametrize("framework", CLIENTS)
def test_the_smallest_application(framework: str, examples: Path, config: dict[str, Any]) -> None:
    folder = examples / "example_apps" / "smallest"
    lines = (folder / f"{framework}_app.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 22
    url = "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**config["connection_settings"])
    code = f"{CLIENTS[framework]}\nprint(post('/Ann'))\nprint(post('/Bob'))"
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    ran = programs.run(code=code, folder=folder, environ={**os.environ, "DATABASE_URL": url, "PYTHONPATH": path})
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == ["Hello Ann, you are number 1", "Hello Bob, you are number 2"]
