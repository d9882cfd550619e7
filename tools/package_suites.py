"""Run the test suite of a package for Django, on Django's own backend and then on ours: ``nox -s suites``.

The suite comes from the source distribution of the version that is installed; more arguments are pytest's.  The exit
status is 1 when a test passes on Django's own, and does not on ours.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import yaml
from django_suite import fetch

from pgmonkey.embedded import Server, find_binaries

OTHERS = ("failure", "error", "skipped")
# Named so that what looks at the end of the name sees a PostgreSQL.
ENGINE = "django_pgmonkey.postgresql"
# Django REST framework compares the whole name with that of Django's own, and reads DATABASE_URL, with OPTIONS in it.
PLUGIN = """
import sys
import django_pgmonkey.base
sys.modules["django.db.backends.postgresql.base"] = django_pgmonkey.base
"""
SETTINGS = """
from pytest_django_test.settings_postgres import *
for settings in DATABASES.values():
    settings["ENGINE"] = {engine!r}
    settings["OPTIONS"] = {options!r}
"""


def run(package: str, source: Path, arguments: list[str], *, stock: bool) -> set[str]:
    """Run the suite on a server of its own; return the tests that passed."""
    with Server() as server, tempfile.TemporaryDirectory(prefix="package-suite-") as folder:
        server.create_database("django")
        settings = server.config("postgres")["connection_settings"]
        config, report = Path(folder, "config.yaml"), Path(folder, "report.xml")
        own = {key: value for key, value in settings.items() if key != "dbname"}
        config.write_text(yaml.safe_dump({"connection_settings": own}))
        environ = {
            **os.environ,
            **{f"PG{key.upper()}": str(settings[key]) for key in ("host", "port", "user", "password")},
            "PATH": os.pathsep.join([str(find_binaries()), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([folder, str(source)]),
        }
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *arguments]
        if package == "djangorestframework":
            Path(folder, "suite_plugin.py").write_text(PLUGIN)
            environ["DATABASE_URL"] = "postgresql:///django"
            if not stock:
                environ["DATABASE_URL"] += f"?config={quote(str(config))}"
                command += ["-p", "suite_plugin"]
        else:
            engine, options = ("django.db.backends.postgresql", {}) if stock else (ENGINE, {"config": str(config)})
            Path(folder, "suite_settings.py").write_text(SETTINGS.format(engine=engine, options=options))
            command += ["--ds=suite_settings"]
        subprocess.run(command, cwd=source, env=environ, check=False)
        if not report.exists():
            sys.exit("the suite did not run")
        cases = list(ElementTree.parse(report).iter("testcase"))
    passed = (case for case in cases if not any(case.find(other) is not None for other in OTHERS))
    return {f"{case.get('classname')}::{case.get('name')}" for case in passed}


def main() -> int:
    """Run the suite twice; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", choices=["djangorestframework", "pytest-django"])
    package, arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="package-sdist-") as folder:
        source = fetch(package.package, Path(folder))
        stock = run(package.package, source, arguments, stock=True)
        ours = run(package.package, source, arguments, stock=False)
    print(f"{package.package}: {len(stock)} tests pass on Django's own backend, {len(ours)} on ours")
    for name in sorted(stock - ours):
        print(f"NEW: {name}")
    return 1 if stock - ours or not ours else 0


if __name__ == "__main__":
    sys.exit(main())
