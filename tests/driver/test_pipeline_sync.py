"""Sending what a pipeline has collected, as psycopg does it, but without the GIL."""

from __future__ import annotations

import sys

import psycopg
import pytest
from psycopg import pq

from pgmonkey._driver import begin
from pgmonkey.embedded import Server


def test_what_a_pipeline_collected_is_sent(server: Server, dbname: str) -> None:
    with psycopg.connect(server.dsn(dbname)) as connection:
        pgconn = connection.pgconn
        pgconn.nonblocking = 0
        pgconn.enter_pipeline_mode()
        pgconn.send_query_params(b"SELECT 1", None)
        begin.pipeline_sync(pgconn)
        results = [pgconn.get_result() for _ in range(3)]
        assert [result and result.status for result in results] == [
            pq.ExecStatus.TUPLES_OK,
            None,
            pq.ExecStatus.PIPELINE_SYNC,
        ]
        pgconn.exit_pipeline_mode()


def test_outside_a_pipeline_it_is_an_error(server: Server, dbname: str) -> None:
    with psycopg.connect(server.dsn(dbname)) as connection:
        with pytest.raises(psycopg.OperationalError, match="pipeline"):
            begin.pipeline_sync(connection.pgconn)
    with pytest.raises(psycopg.OperationalError):
        begin.pipeline_sync(connection.pgconn)


def test_the_libpq_of_a_compiled_module_is_found() -> None:
    compiled = psycopg.pq.__impl__ != "python"
    assert (begin._pipeline_sync is not None) == (compiled and sys.platform != "win32")
