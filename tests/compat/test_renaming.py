"""What psycopg renames does no harm: see `renaming`."""

from __future__ import annotations

import ctypes.util
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ..conftest import ON_CI
from .renaming import NAMES, Copies, Outcome

# One or two of each group of names in compat.  ``nox -s compat`` renames all, which takes a minute and a half.
SOME = (
    *("_autocommit", "_connect_gen", "_notifies_backlog", "_pool", "_start_query", "lock"),
    *("_prepared", "maybe_add_to_cache", "_tpc", "PostgresQuery", "_loaders", "_set_results", "_exit_gen"),
)
JOBS = 3  # on two cores, since each run waits a good part of its time
no_libpq = not ON_CI and ctypes.util.find_library("pq") is None
pytestmark = pytest.mark.skipif(no_libpq, reason="psycopg's Python implementation needs a libpq on this machine")


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Outcome]]:
    """A function that returns the outcome of a name; those of all tests that were selected are on their way."""
    copies = Copies(tmp_path_factory.mktemp("renaming"))
    with ThreadPoolExecutor(JOBS) as pool:
        selected = [item for item in request.session.items if item.path == request.path]
        names = [str(item.callspec.params["name"]) for item in selected if isinstance(item, pytest.Function)]
        coming = {name: pool.submit(copies.outcome, name) for name in names}
        yield lambda name: coming[name].result()
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", SOME)
def test_a_name_that_is_gone(name: str, outcomes: Callable[[str], Outcome]) -> None:
    assert name in NAMES
    outcome = outcomes(name)
    assert outcome.good, str(outcome)
