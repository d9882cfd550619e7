"""What the tests of requests share: an application over a database with a table."""

from __future__ import annotations

from typing import Any

import psycopg
from fastapi import FastAPI
from fastapi.testclient import TestClient

Observer = psycopg.Connection[Any]
INSERT = "INSERT INTO t VALUES (%s)"


def client(app: FastAPI) -> TestClient:
    """Return a client that gets the answer of an exception, not the exception."""
    return TestClient(app, raise_server_exceptions=False)


def rows(observer: Observer) -> list[int]:
    return [row[0] for row in observer.execute("SELECT a FROM t ORDER BY a").fetchall()]
