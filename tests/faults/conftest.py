"""The fault suite: what goes wrong in production, on real servers; ``nox -s faults`` prints its figures."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .clusters import Cluster
from .proxy import FaultProxy

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
_figures: dict[str, list[str]] = {}
_numbers = itertools.count(1)

Figure = Callable[[str, str], None]


@pytest.fixture
def figure() -> Figure:
    """A function that notes, for a row of the table, what was seen."""

    def note(row: str, seen: str) -> None:
        _figures.setdefault(row, []).append(seen)

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures; write them into the document when that is asked for."""
    if not _figures:
        return
    terminalreporter.section("figures")
    lines = [f"| {row} | {'; '.join(seen)} |" for row, seen in _figures.items()]
    for line in lines:
        terminalreporter.write_line(line)
    if config.getoption("--write-figures"):
        table = "\n".join(["| fault | seen |", "|---|---|", *lines])
        text = DOCUMENT.read_text(encoding="utf-8")
        marked = r"(<!-- figures -->\n).*(\n<!-- end of figures -->)"
        DOCUMENT.write_text(re.sub(marked, lambda m: f"{m[1]}{table}{m[2]}", text, flags=re.DOTALL), encoding="utf-8")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A server of the module's own, which its tests may crash."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def dbname(cluster: Cluster) -> Iterator[str]:
    name = f"faults_{next(_numbers)}"
    cluster.create_database(name)
    cluster.execute("CREATE TABLE t (a int PRIMARY KEY)", name)
    yield name
    cluster.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def config(cluster: Cluster, dbname: str) -> dict[str, Any]:
    """A configuration with pools of eight."""
    pool = {"min_size": 8, "max_size": 8, "timeout": 10}
    return {**cluster.config(dbname), "pool_settings": dict(pool), "async_pool_settings": dict(pool)}


@pytest.fixture
def observer(cluster: Cluster, dbname: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(cluster.dsn(dbname), autocommit=True) as connection:
        yield connection


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[FaultProxy]:
    """A proxy before the server."""
    with FaultProxy(cluster.host, cluster.port) as proxy:
        yield proxy


@pytest.fixture
def proxied(config: dict[str, Any], proxy: FaultProxy) -> dict[str, Any]:
    """The configuration, by way of the proxy."""
    return {**config, "connection_settings": {**config["connection_settings"], "port": proxy.port}}
