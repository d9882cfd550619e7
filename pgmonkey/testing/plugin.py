"""The pytest plugin: fixtures for a server, a template, databases, and the sandbox.

pytest loads it with every run, so it imports nothing before a fixture is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ._sandbox import Sandbox
    from ._schema import Schema
    from ._server import TestServer
    from ._template import Template, TestDatabase


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the settings of the plugin to pytest's."""
    parser.addini(
        "pgmonkey_schema", "SQL files, or folders of them, that the databases of tests are made from", "paths"
    )
    parser.addini("pgmonkey_patience", "seconds that a transaction in a sandbox waits for its turn", default="10")


@pytest.fixture(scope="session")
def pgmonkey_server(pytestconfig: pytest.Config) -> Iterator[TestServer]:
    """Return the server for tests: that of PGMONKEY_TEST_DSN, or else one of the project's own, which is started."""
    from ._server import test_server

    with test_server(pytestconfig.rootpath) as server:
        yield server


@pytest.fixture(scope="session")
def pgmonkey_schema(pytestconfig: pytest.Config) -> Schema:
    """Return what is in a new database: the files of the setting ``pgmonkey_schema``; to be overridden."""
    from ._schema import EMPTY, sql_files

    paths = pytestconfig.getini("pgmonkey_schema")
    return sql_files(*paths) if paths else EMPTY


@pytest.fixture(scope="session")
def pgmonkey_template(pgmonkey_server: TestServer, pgmonkey_schema: Schema) -> Template:
    """Return a database with the schema, to be cloned: made once for each schema, and kept between runs."""
    from ._template import template

    return template(pgmonkey_server, pgmonkey_schema)


@pytest.fixture
def pgmonkey_database(pgmonkey_template: Template) -> Iterator[TestDatabase]:
    """Return a database of the test's own."""
    with pgmonkey_template.clone() as database:
        yield database


@pytest.fixture(scope="module")
def pgmonkey_module_database(pgmonkey_template: Template) -> Iterator[TestDatabase]:
    """Return a database that the tests of one module share."""
    with pgmonkey_template.clone() as database:
        yield database


@pytest.fixture(scope="session")
def pgmonkey_session_database(pgmonkey_template: Template) -> Iterator[TestDatabase]:
    """Return a database that all tests of this process share; sandboxes are in it."""
    with pgmonkey_template.clone() as database:
        yield database


@pytest.fixture(scope="session")
def pgmonkey_databases() -> Mapping[str, str]:
    """Return further databases of a sandbox, none by default: addresses by the names in the configurations."""
    return {}


@pytest.fixture
def pgmonkey_sandbox(
    pytestconfig: pytest.Config, pgmonkey_session_database: TestDatabase, pgmonkey_databases: Mapping[str, str]
) -> Iterator[Sandbox]:
    """Let all that applications do on databases in the test be one transaction, and roll it back."""
    from ._sandbox import sandbox

    patience = float(pytestconfig.getini("pgmonkey_patience"))
    with sandbox(pgmonkey_session_database.dsn, databases=pgmonkey_databases, patience=patience) as opened:
        yield opened
