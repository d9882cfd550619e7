"""Run Django's own test suite, or some labels of it, on the backend: ``nox -s django-suite -- queries schema``.

The suite comes from Django's source distribution, for the version of Django that is installed; only ENGINE and OPTIONS
differ from what the suite is run with on PostgreSQL.  ``--stock`` takes Django's own backend instead, ``--full`` every
label, ``--fewer`` those that meet the backend itself.  ``--prepared`` has both bind on the server and prepare
everything at once; what fails on Django's own backend then does not count, so it runs first.  The exit status is 1 when
a test fails that ``tools/django_known_failures.txt`` does not name.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

import yaml

from pgmonkey.embedded import Server

KNOWN = Path(__file__).with_name("django_known_failures.txt")
LABELS = (
    "async asgi backends basic bulk_create dbshell fixtures handlers inspectdb introspection migrations "
    "multiple_database postgres_tests queries schema select_for_update servers sessions_tests test_client "
    "test_runner test_utils timezones transaction_hooks transactions view_tests"
)
# What meets the backend itself rather than the SQL that Django makes, which is the same in each version.
FEWER = (
    "async asgi backends bulk_create dbshell handlers multiple_database postgres_tests select_for_update servers "
    "test_runner transaction_hooks transactions"
)
SUITE = "the suite itself"
# What the suite's own settings for its SQLite runs say, but for the databases.
SETTINGS = """
from test_sqlite import *
def database(name):
    return {{"ENGINE": {engine!r}, "NAME": name, "OPTIONS": {options!r}, **{settings!r}}}
DATABASES = {{"default": database("django"), "other": database("django_other")}}
"""


def fetch(package: str, folder: Path) -> Path:
    """Download and unpack the source distribution of the installed *package*; return the folder that it is in."""
    wanted = f"{package}=={version(package)}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--no-binary={package}", wanted]
    subprocess.run([*pip, "--dest", str(folder)], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(folder)
    (source,) = (path for path in folder.iterdir() if path.is_dir())
    return source


def run(tests: Path, labels: list[str], server: Server, *, stock: bool, prepared: bool) -> set[str]:
    """Run *labels*, or everything; return the tests that failed."""
    connection = server.config("postgres")["connection_settings"]
    with tempfile.TemporaryDirectory(prefix="django-suite-") as folder:
        config = Path(folder) / "config.yaml"
        settings = {key: value for key, value in connection.items() if key != "dbname"}
        config.write_text(yaml.safe_dump({"connection_settings": settings, "pool_settings": {"max_size": 50}}))
        engine, options = "django_pgmonkey", {"config": str(config)}
        if stock:
            engine, options = "django.db.backends.postgresql", {}
        if prepared:
            options |= {"server_side_binding": True, "prepare_threshold": 0}
        names = {"USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
        given = {name: str(connection[key]) for name, key in names.items()} if stock else {}
        text = SETTINGS.format(engine=engine, options=options, settings=given)
        (Path(folder) / "suite_settings.py").write_text(text)
        command = [sys.executable, "runtests.py", "--settings=suite_settings", "--noinput", "--parallel=2", *labels]
        environ = {**os.environ, "PYTHONPATH": folder}
        process = subprocess.Popen(
            command, cwd=tests, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        failed: set[str] = set()
        finished = False
        for line in process.stdout or ():
            print(line, end="", flush=True)
            finished = finished or bool(re.match(r"Ran \d+ tests? in ", line))
            if found := re.match(r"(?:FAIL|ERROR|UNEXPECTED SUCCESS): \S+ \((\S+)\)", line):
                failed.add(found[1])
        if (process.wait() and not failed) or not finished:
            failed.add(SUITE)
    return failed


def judge(failed: set[str], labels: set[str], known: set[str]) -> int:
    """Tell what is new, and what is known but passes; return the exit status."""
    expected = {test for test in known if not labels or test.partition(".")[0] in labels}
    for test in sorted(failed):
        print(f"{'known' if test in known else 'NEW'}: {test}")
    # Some tests fail for root alone, or are of one version of Django only.
    for test in sorted(expected - failed):
        print(f"known, but passed or was not there: {test}")
    return 1 if failed - known else 0


def main() -> int:
    """Run the suite; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", nargs="*", default=LABELS.split())
    parser.add_argument("--fewer", action="store_true", help="run the labels that meet the backend itself")
    parser.add_argument("--full", action="store_true", help="run every label")
    parser.add_argument("--stock", action="store_true", help="run them on Django's own backend")
    parser.add_argument("--prepared", action="store_true", help="bind on the server and prepare everything at once")
    arguments = parser.parse_args()
    labels = [] if arguments.full else FEWER.split() if arguments.fewer else arguments.labels
    known = {line.split("#")[0].strip() for line in KNOWN.read_text().splitlines()} - {""}
    with tempfile.TemporaryDirectory(prefix="django-sdist-") as folder, Server() as server:
        tests = fetch("django", Path(folder)) / "tests"
        if arguments.prepared and not arguments.stock:
            known |= run(tests, labels, server, stock=True, prepared=True) - {SUITE}
        failed = run(tests, labels, server, stock=arguments.stock, prepared=arguments.prepared)
    return judge(failed, set(labels), known)


if __name__ == "__main__":
    sys.exit(main())
