"""Django projects that tests make, and run in processes of their own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from .. import programs

SETTINGS = """
import os
SECRET_KEY = "x"
DATABASES = {"default": {"ENGINE": "django_pgmonkey", "OPTIONS": {"config": os.environ["CONFIG"]}, **EXTRA}}
INSTALLED_APPS = ["shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "Europe/Vienna"
"""
MODELS = """
from django.db import models

class Thing(models.Model):
    name = models.TextField(unique=True)
    data = models.JSONField(default=dict)
    made = models.DateTimeField(null=True)
"""
TESTS = """
import threading
from django.db import IntegrityError, connection, connections, transaction
from django.test import LiveServerTestCase, TestCase, TransactionTestCase
from shop.models import Thing

class InTransaction(TestCase):
    @classmethod
    def setUpTestData(cls):
        Thing.objects.create(name="shared")

    def test_one(self):
        Thing.objects.create(name="one")
        self.assertEqual(Thing.objects.count(), 2)

    def test_two(self):
        self.assertEqual(Thing.objects.count(), 1)
        with self.assertRaises(IntegrityError), transaction.atomic():
            Thing.objects.create(name="shared")
        self.assertEqual(Thing.objects.count(), 1)

class Committed(TransactionTestCase):
    def test_threads_give_back(self):
        Thing.objects.create(name="committed")
        seen = []
        def work():
            seen.append(Thing.objects.count())
        for _ in range(12):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        self.assertEqual(seen, [1] * 12)

    def test_name(self):
        self.assertTrue(connection.settings_dict["NAME"].startswith("test_"))

class Live(LiveServerTestCase):
    def test_serves(self):
        self.assertEqual(Thing.objects.count(), 0)
"""


def make(folder: Path, config: dict[str, Any]) -> None:
    """Make a Django project with one model and its tests."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "settings.py").write_text("EXTRA = {}\n" + SETTINGS)
    shop = folder / "shop"
    shop.mkdir()
    (shop / "__init__.py").touch()
    (shop / "models.py").write_text(MODELS)
    (shop / "tests.py").write_text(TESTS)


# What most of the programs import, as far as it can be imported without settings.
IMPORTS = (
    "django.core.management.commands.check",
    "django.core.management.commands.migrate",
    "django.db.models",
    "django.test",
    "django_pgmonkey.base",
    "django_pgmonkey.middleware",
)


def run(project: Path, *arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """Run *code* in the project, or ``python -m django`` with *arguments*, in a process of its own."""
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "settings", "CONFIG": str(project / "config.yaml")}
    environ["PYTHONPATH"] = str(project)
    if code:
        (project / "program.py").write_text(code := "import django\ndjango.setup()\n" + code)
        return programs.run(code=code, file="program.py", folder=project, environ=environ, imports=IMPORTS)
    return programs.run(module="django", arguments=arguments, folder=project, environ=environ, imports=IMPORTS)


def ok(finished: subprocess.CompletedProcess[str]) -> str:
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def migrate(project: Path) -> None:
    ok(run(project, "makemigrations", "shop"))
    ok(run(project, "migrate"))
