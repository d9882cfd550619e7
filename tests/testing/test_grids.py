"""Random programs of web applications are answered in a sandbox as outside, and store the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from pgmonkey.testing import sandbox

from ..contract import test_grid_fastapi as fastapi
from ..contract import test_grid_flask as flask
from ..contract.grid import EVERY_EXAMPLE, EXAMPLES, Account, TwoDatabases, number_rows_anew, unlogged

if TYPE_CHECKING:
    from pgmonkey.embedded import Server

    from ..contract.grid import Program

pytestmark = pytest.mark.timeout(20 * EXAMPLES)  # seconds: twenty a program, on a busy machine
# Fewer than the grids themselves draw: each is served twice.  ``nox -s sandbox`` draws many.
EXAMPLES_TWICE = settings(EVERY_EXAMPLE, max_examples=max(EXAMPLES // 5, 10))


@pytest.fixture(scope="module")
def flask_site(server: Server) -> Iterator[flask.Site]:
    site = flask.Site(server)
    with unlogged():
        yield site
    site.stop()


@pytest.fixture(scope="module")
def fastapi_site(server: Server) -> Iterator[fastapi.Site]:
    site = fastapi.Site(server)
    with unlogged():
        yield site
    site.stop()


@contextmanager
def in_sandbox(site: TwoDatabases) -> Iterator[None]:
    """Have a site in a sandbox, with those who look at what it stores."""
    names = [config["connection_settings"]["dbname"] for config in site.configs]
    dsns = [make_conninfo(**config["connection_settings"]) for config in site.configs]
    outside = site.observers
    with sandbox(dsns[0], databases={names[1]: dsns[1]}, patience=60) as opened:
        site.observers = [psycopg.connect(opened.dsn, dbname=name, autocommit=True) for name in names]
        try:
            yield
        finally:
            site.close()
            site.observers = outside


def both_ways(site: TwoDatabases, play: Callable[[], tuple[int, list[int], Account]]) -> None:
    found = []
    for place in (nullcontext(), in_sandbox(site)):
        number_rows_anew()
        with place:
            status, kept, account = play()
            stored = site.stored()
        assert status != 404
        assert stored == kept + account.stored(status)
        found.append((status, stored))
    assert found[0] == found[1]
    assert site.stored() == [], "nothing is left"


@EXAMPLES_TWICE
@given(program=flask.PROGRAMS, host=st.sampled_from(flask.HOSTS), propagate=st.booleans())
def test_p1_p2_a_program_of_flask(flask_site: flask.Site, program: Program, host: str, propagate: bool) -> None:
    def play() -> tuple[int, list[int], Account]:
        played = flask.Play(program, host, flask_site.configs)
        played.app.config["PROPAGATE_EXCEPTIONS"] = propagate
        return flask_site.serve(played.app), [], played.account

    both_ways(flask_site, play)


# Not "both": a request with two transactions on one database at a time waits for itself in a sandbox.
@EXAMPLES_TWICE
@given(program=fastapi.PROGRAMS, host=st.sampled_from(fastapi.HOSTS), where=st.sampled_from(["loop", "threads"]))
def test_p1_p2_a_program_of_fastapi(fastapi_site: fastapi.Site, program: Program, host: str, where: str) -> None:
    def play() -> tuple[int, list[int], Account]:
        played = fastapi.Play(program, host, where, fastapi_site.databases)
        fastapi_site.app = played.app
        return fastapi_site.client.get("/").status_code, played.kept, played.account

    both_ways(fastapi_site, play)
