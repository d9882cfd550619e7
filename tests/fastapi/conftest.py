"""An application over a database with a table."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI

from fastapi_pgmonkey import PGMonkey

from .applications import Observer


@pytest.fixture
def db(config: dict[str, Any], observer: Observer) -> PGMonkey:
    observer.execute("CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    return PGMonkey(config)


@pytest.fixture
def app(db: PGMonkey) -> FastAPI:
    return FastAPI(lifespan=db.lifespan)
