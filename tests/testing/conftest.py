"""Databases for the tests of the sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgmonkey import Database
from pgmonkey.testing import Schema, function, sandbox

from ..contract.conftest import SCHEMA

if TYPE_CHECKING:
    from pgmonkey.testing import Sandbox, TestDatabase

# Nobody listens there: what gets an answer is in a sandbox.
NOWHERE = "postgresql://app@127.0.0.1:1/app"


def load(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SCHEMA)


@pytest.fixture(scope="session")
def pgmonkey_schema() -> Schema:
    return function(load, depends=[__file__])


@pytest.fixture
def database() -> Iterator[Database[Any]]:
    database = Database(NOWHERE)
    yield database
    database.close()


@pytest.fixture
def box(pgmonkey_session_database: TestDatabase) -> Iterator[Sandbox]:
    """A sandbox whose transactions wait long for each other, as the machine may be busy."""
    with sandbox(pgmonkey_session_database.dsn, patience=60) as opened:
        yield opened
