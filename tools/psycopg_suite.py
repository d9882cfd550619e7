"""Run psycopg's own tests over lent connections: ``nox -s psycopg-suite -- /path/to/psycopg/tests``.

The tests are those of a checkout of psycopg, whose source distribution has none.  Only the fixtures ``conn`` and
``aconn`` are replaced, and tests that use neither are left out.  The tests run on connections of psycopg's own and on
lent ones, with psycopg's ``prepare_threshold`` and with 0, by which everything is prepared at once and takes the fast
path.  What fails on psycopg's own connections does not count.  The exit status is 1 when a test fails that
``tools/psycopg_known_failures.txt`` does not name, or when one that it names passes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgmonkey import PGConnectionManager
from pgmonkey.embedded import Server

KNOWN = Path(__file__).with_name("psycopg_known_failures.txt")
THRESHOLDS = (5, 0)
SETTINGS = {"max_prepared_transactions": "10"}
# Type checkers' tests, which have parameters of these names, and another server.  What is slow are leaks of connections
# that are not lent, and COPY of tens of megabytes; what psycopg marks as flakey or timed differs from run to run.
LEFT_OUT = ("--ignore=tests/test_typing.py", "--ignore=tests/crdb", "--ignore=tests/pool")
MARKED = "not slow and not flakey and not timing"

Outcomes = dict[str, str]
"""What became of each test, in pytest's words."""


# -- inside pytest, which loads this file as a plugin ------------------------------------------------------------------


class _Done(Exception):
    """Ends a block, which rolls back."""


class Fixtures:
    """The connections of the tests: lent ones, or psycopg's own."""

    def __init__(self, *, lent: bool, threshold: int) -> None:
        self._lent = lent
        self._threshold = threshold
        self._manager = PGConnectionManager()

    def _config(self, dsn: str) -> dict[str, Any]:
        sizes = {"min_size": 1, "max_size": 4}
        return {"connection_settings": conninfo_to_dict(dsn), "pool_settings": sizes, "async_pool_settings": sizes}

    @contextmanager
    def _connect(self, dsn: str) -> Iterator[psycopg.Connection]:
        if self._lent:
            with suppress(_Done), self._manager.get_database_connection_from_dict(self._config(dsn), "pool") as lent:
                yield lent
                raise _Done
        else:
            own = psycopg.connect(dsn)
            yield own
            own.close()

    @asynccontextmanager
    async def _connect_async(self, dsn: str) -> AsyncIterator[psycopg.AsyncConnection]:
        if self._lent:
            handle = await self._manager.get_database_connection_from_dict(self._config(dsn), "async_pool")
            with suppress(_Done):
                async with handle as lent:
                    yield lent
                    raise _Done
        else:
            own = await psycopg.AsyncConnection.connect(dsn)
            yield own
            await own.close()

    @pytest.fixture
    def conn(self, dsn: str) -> Iterator[psycopg.Connection]:
        """Return a connection."""
        with self._connect(dsn) as connection:
            connection.prepare_threshold = self._threshold
            yield connection

    @pytest.fixture
    async def aconn(self, dsn: str, anyio_backend: object) -> AsyncIterator[psycopg.AsyncConnection]:
        """Return a connection."""
        async with self._connect_async(dsn) as connection:
            connection.prepare_threshold = self._threshold
            yield connection


class Report:
    """Writes what becomes of each test to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outcomes: Outcomes = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the worst of the three phases of a test."""
        name = report.nodeid.removeprefix("tests/")
        if (report.when == "call" or report.outcome != "passed") and self._outcomes.get(name) != "failed":
            self._outcomes[name] = report.outcome

    def pytest_sessionfinish(self) -> None:
        """Write it."""
        self._path.write_text("".join(f"{outcome} {name}\n" for name, outcome in self._outcomes.items()))


def pytest_configure(config: pytest.Config) -> None:
    """Replace the suite's fixtures: of two with one name, pytest takes what is registered last."""
    environ = os.environ
    fixtures = Fixtures(lent=environ["SUITE_LENT"] == "True", threshold=int(environ["SUITE_THRESHOLD"]))
    config.pluginmanager.register(fixtures)
    config.pluginmanager.register(Report(Path(environ["SUITE_REPORT"])))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what uses neither fixture."""
    used, unused = [], []
    for item in items:
        (used if {"conn", "aconn"} & {*getattr(item, "fixturenames", ())} else unused).append(item)
    config.hook.pytest_deselected(items=unused)
    items[:] = used


# -- outside -----------------------------------------------------------------------------------------------------------


class Run:
    """A run of the suite, in a process and a database of its own."""

    def __init__(
        self, tests: Path, server: Server, folder: Path, more: list[str], *, lent: bool, threshold: int
    ) -> None:
        name = f"{'lent' if lent else 'plain'}_{threshold}"
        server.create_database(name)
        self._report = folder / name
        environ = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PSYCOPG_TEST_DSN": server.dsn(name),
            "SUITE_LENT": str(lent),
            "SUITE_THRESHOLD": str(threshold),
            "SUITE_REPORT": str(self._report),
        }
        command = [sys.executable, "-m", "pytest", "-p", "psycopg_suite", "-c", os.devnull, "--rootdir=."]
        command += ["-W", "error", "-o", f"cache_dir={self._report}.cache", "--tb=short", "-q", "--timeout=120"]
        command += ["-p", "no:randomly", *LEFT_OUT, "-m", MARKED, *more, "tests"]
        self.process = subprocess.Popen(command, cwd=tests.parent, env=environ)

    def outcomes(self) -> Outcomes:
        """Return what became of each test, when the process has ended."""
        if self.process.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            sys.exit(f"the suite itself failed: {self._report.name}")
        lines = self._report.read_text().splitlines()
        return {name: outcome for outcome, _, name in (line.partition(" ") for line in lines)}


def count(outcomes: Outcomes) -> str:
    """Return how many tests passed, failed and were skipped."""
    counts = Counter(outcomes.values())
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))


def main() -> int:
    """Run the suite; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", type=Path, help="the folder 'tests' of a checkout of psycopg")
    parser.add_argument("pytest", nargs=argparse.REMAINDER, help="options for pytest, such as -k")
    arguments = parser.parse_args()
    tests: Path = arguments.tests.resolve()
    if not (tests / "fix_db.py").is_file():
        parser.error(f"{tests} is not the folder 'tests' of a checkout of psycopg")
    known = {line.split("#")[0].strip() for line in KNOWN.read_text().splitlines()} - {""}
    figures: list[str] = []
    failed: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="psycopg-suite-") as folder, Server(settings=SETTINGS) as server:
        for threshold in THRESHOLDS:
            runs = [
                Run(tests, server, Path(folder), arguments.pytest, lent=lent, threshold=threshold)
                for lent in (False, True)
            ]
            for run in runs:
                run.process.wait()
            plain, lent = (run.outcomes() for run in runs)
            failures = {name for name in lent if lent[name] == "failed" and plain.get(name) != "failed"}
            failed |= failures
            for colour in ("sync", "async"):
                own, ours = (
                    {name: what for name, what in outcomes.items() if ("_async.py" in name) == (colour == "async")}
                    for outcomes in (plain, lent)
                )
                listed = sum(function_of(name) in known for name in failures & ours.keys())
                figures.append(
                    f"{colour}, prepare_threshold {threshold}: plain {count(own)}; lent {count(ours)}; known {listed}"
                )
    new = sorted(name for name in failed if function_of(name) not in known)
    passed = [] if arguments.pytest else sorted(known - {function_of(name) for name in failed})
    print(*figures, *(f"NEW: {name}" for name in new), *(f"known, but passes: {name}" for name in passed), sep="\n")
    return 1 if new or passed else 0


def function_of(name: str) -> str:
    """Return the *name* of a test without its parameters, as the file of known failures has it."""
    return name.partition("[")[0]


if __name__ == "__main__":
    sys.exit(main())
