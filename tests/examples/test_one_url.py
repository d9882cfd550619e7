"""The three shops on a configuration that says nothing but where the URL comes from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import psycopg

from .. import programs

SHOPS = """
import json, logging, os, sys
logging.basicConfig(level=logging.DEBUG)
from example_apps import shop
from pgmonkey import load_config, redact_config
print(redact_config(load_config(shop.CONFIG, resolve_env=True)), file=sys.stderr)
order = {"lines": [{"product_id": 1, "quantity": 2}]}
answers = []

from example_apps.flask_orders import create_app
client = create_app().test_client()
answers.append(client.post("/api/orders", json={**order, "customer": "Flask"}).json)

from starlette.testclient import TestClient
from example_apps.fastapi_orders import app
with TestClient(app) as client:
    answers.append(client.post("/api/orders", json={**order, "customer": "FastAPI"}).json())

import django
os.environ["DJANGO_SETTINGS_MODULE"] = "example_apps.django_orders.settings"
django.setup()
from django.core.management import call_command
from django.test import Client
call_command("check", "--database", "default", "--fail-level", "WARNING", stdout=sys.stderr)
client = Client(headers={"host": "localhost"})
answers.append(client.post("/api/orders", {**order, "customer": "Django"}, "application/json").json())
print(json.dumps(answers))
"""


def test_one_url_serves_the_three_shops(examples: Path, config: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(examples / "example_apps", tmp_path / "example_apps")
    own = tmp_path / "example_apps" / "shop"
    (own / "config.yaml").write_text("connection_settings:\n  conninfo: '${DATABASE_URL}'\n")
    url = "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**config["connection_settings"])
    with psycopg.connect(url) as connection:
        for name in ("schema.sql", "seed.sql"):
            connection.execute((own / name).read_bytes())
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "SHOP_"))}
    environ = {**environ, "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "DATABASE_URL": url}
    ran = programs.run(code=SHOPS, folder=tmp_path, environ=environ, flags=())
    assert ran.returncode == 0, ran.stderr
    orders = json.loads(ran.stdout)
    assert [(order["customer"], order["total_cents"]) for order in orders] == [
        (customer, 1780) for customer in ("Flask", "FastAPI", "Django")
    ]
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM purchase").fetchone() == (3,)
    assert config["connection_settings"]["password"] not in ran.stdout + ran.stderr
