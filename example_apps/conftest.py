"""For the tests of the shops: ``pytest example_apps``."""

import os

import pytest

from pgmonkey.testing import Schema, sql_files

from . import shop

# The configuration asks for it; in a sandbox, nobody else does.
os.environ.setdefault("SHOP_PASSWORD", "")


@pytest.fixture(scope="session")
def pgmonkey_schema() -> Schema:
    return sql_files(shop.HERE / "schema.sql", shop.HERE / "seed.sql")
