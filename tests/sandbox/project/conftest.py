"""A suite over the contract's applications, each test on an empty database that is made in one of three ways.

SUITE_WAY is ``sandbox``, ``clone`` or ``truncate``; SUITE_SERVER is ``flask`` or ``fastapi``, by a test client, or
``gunicorn`` or ``uvicorn``, a process.
"""

import importlib.util
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psycopg
import pytest
import yaml

from pgmonkey.embedded import die_with_parent
from pgmonkey.testing import environ, function

APPS = Path(os.environ["SUITE_APPS"])
WAY, SERVER = os.environ["SUITE_WAY"], os.environ["SUITE_SERVER"]
FRAMEWORK = {"gunicorn": "flask", "uvicorn": "fastapi"}.get(SERVER, SERVER)
POOL = {"min_size": 1, "max_size": 4, "timeout": 30}
sys.path.insert(0, str(APPS))


def pytest_collection_modifyitems(items):
    random.Random(os.environ["SUITE_SEED"]).shuffle(items)


@pytest.fixture(scope="session")
def pgmonkey_schema():
    def load(dsn):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(Path(os.environ["SUITE_SCHEMA"]).read_bytes())

    return function(load)


def configured(database, folder):
    file = folder / f"config-{os.getpid()}.yaml"
    file.write_text(yaml.safe_dump({**database.config, "pool_settings": POOL, "async_pool_settings": POOL}))
    os.environ["CONTRACT_CONFIG"] = str(file)


@pytest.fixture(scope="session")
def served(pgmonkey_session_database, tmp_path_factory):
    """The address of a server process."""
    configured(pgmonkey_session_database, tmp_path_factory.mktemp("config"))
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = {
        "gunicorn": ["gunicorn", "--no-control-socket", "-b", f"127.0.0.1:{port}", "-k", "gthread", "--threads", "8"],
        "uvicorn": ["uvicorn", "--log-level", "critical", "--port", str(port)],
    }[SERVER]
    with open(tmp_path_factory.mktemp("log") / "log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command, f"{FRAMEWORK}_app:app"],
            env={**os.environ, **environ(), "PYTHONPATH": str(APPS)},
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
        )
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            httpx.get(f"{url}/nothing")
            break
        except httpx.TransportError:
            time.sleep(0.1)
    yield url
    server.terminate()
    server.wait(30)


@pytest.fixture
def headers(request):
    return request.getfixturevalue("pgmonkey_sandbox").headers if WAY == "sandbox" else {}


@pytest.fixture
def ask(request, headers, pgmonkey_session_database, tmp_path_factory):
    """A function that sends a request to an application whose tables are empty, and returns status and JSON."""
    if WAY == "truncate":
        with pgmonkey_session_database.connect() as connection:
            connection.execute("TRUNCATE t, late, doomed")
    if SERVER != FRAMEWORK:
        with httpx.Client(base_url=request.getfixturevalue("served"), headers=headers, timeout=60) as client:
            yield lambda path, body, **params: answered(client.post(path, json=body, params=params))
        return
    database = request.getfixturevalue("pgmonkey_database") if WAY == "clone" else pgmonkey_session_database
    configured(database, tmp_path_factory.getbasetemp())
    spec = importlib.util.spec_from_file_location("application", APPS / f"{FRAMEWORK}_app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if FRAMEWORK == "flask":
        client = module.app.test_client()
        yield lambda path, body, **params: answered(client.post(path, json=body, query_string=params))
    else:
        from fastapi.testclient import TestClient

        with TestClient(module.app, raise_server_exceptions=False, follow_redirects=False) as client:
            yield lambda path, body, **params: answered(client.post(path, json=body, params=params))


def answered(response):
    if "json" not in response.headers.get("content-type", ""):
        return response.status_code, None
    return response.status_code, response.json() if callable(response.json) else response.json


@pytest.fixture
def note(request):
    """A function that keeps what a test has found, to be compared."""
    file = Path(os.environ["SUITE_FOUND"]) / f"{request.node.callspec.params['number']}.json"
    return lambda found: file.write_text(json.dumps(found))
