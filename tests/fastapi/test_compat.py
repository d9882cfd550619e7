"""A FastAPI or a Starlette whose internals changed is refused when the application is set up, with one clear error."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from copy import copy
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from types import ModuleType
from typing import Any

import fastapi.routing
import pytest
import starlette._exception_handler
import starlette._utils
import starlette.middleware.exceptions
import starlette.routing
from fastapi import FastAPI

from fastapi_pgmonkey import PGMonkey, _compat

from ..altered import difference, hide_sources, remove_from_source

INSTALLED = f"FastAPI {version('fastapi')} with Starlette {version('starlette')}"
TESTED = "FastAPI 0.121 to "
SOURCES = [(name, text) for name, texts in _compat._SOURCES.items() for text in texts]


@pytest.fixture(autouse=True)
def looked_at_anew() -> Iterator[None]:
    _compat._check_sources.cache_clear()
    yield
    _compat._check_sources.cache_clear()


@pytest.fixture
def app() -> FastAPI:
    return FastAPI()


@pytest.fixture
def db() -> PGMonkey[Any]:
    return PGMonkey({"connection_settings": {"host": "127.0.0.1"}})  # nothing connects


def state(app: FastAPI) -> dict[str, object]:
    return {name: copy(value) if isinstance(value, (dict, list)) else value for name, value in vars(app).items()}


def refused(db: PGMonkey[Any], app: FastAPI) -> str:
    before = state(app)
    with pytest.raises(RuntimeError) as error:
        db.init_app(app)
    assert state(app) == before
    return difference(error.value, INSTALLED, TESTED)


async def test_what_is_installed_starts(config: dict[str, Any], app: FastAPI) -> None:
    db = PGMonkey(config)
    db.init_app(app)
    async with app.router.lifespan_context(app):
        assert await db.async_database.fetch_value("SELECT 1") == 1


@pytest.mark.parametrize(
    ("module", "name"),
    [(starlette._utils, "is_async_callable"), (starlette._exception_handler, "wrap_app_handling_exceptions")],
)
def test_another_utility_module_is_refused(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> None:
    monkeypatch.delattr(module, name)
    with pytest.raises(RuntimeError) as error:
        runpy.run_path(_compat.__file__)
    assert difference(error.value, INSTALLED, TESTED) == f"{module.__name__} has no {name}"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda app: delattr(app, "exception_handlers"), "an application has no dict 'exception_handlers'"),
        (
            lambda app: delattr(app, "middleware_stack"),
            "an application has no 'middleware_stack' or no 'build_middleware_stack()'",
        ),
        (
            lambda app: setattr(app, "build_middleware_stack", None),
            "an application has no 'middleware_stack' or no 'build_middleware_stack()'",
        ),
    ],
)
def test_a_missing_attribute_is_refused(
    db: PGMonkey[Any], app: FastAPI, change: Callable[[FastAPI], None], expected: str
) -> None:
    change(app)
    assert refused(db, app) == expected


@pytest.mark.parametrize("module", [fastapi.routing, starlette.routing, starlette.middleware.exceptions])
def test_another_way_to_handle_exceptions_is_refused(
    db: PGMonkey[Any], app: FastAPI, monkeypatch: pytest.MonkeyPatch, module: ModuleType
) -> None:
    monkeypatch.delattr(module, "wrap_app_handling_exceptions")
    assert refused(db, app) == f"{module.__name__} has no wrap_app_handling_exceptions()"


def test_another_way_to_call_endpoints_is_refused(
    db: PGMonkey[Any], app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(fastapi.routing, "get_request_handler")
    assert refused(db, app) == "fastapi.routing has no get_request_handler()"


def test_middlewares_without_the_outermost_of_starlette_are_refused(db: PGMonkey[Any], app: FastAPI) -> None:
    app.build_middleware_stack = lambda: app.router  # type: ignore[method-assign]
    db.init_app(app)
    with pytest.raises(RuntimeError) as error:
        app.build_middleware_stack()
    expected = "the middlewares of an application have no ServerErrorMiddleware"
    assert difference(error.value, INSTALLED, TESTED) == expected


@pytest.mark.parametrize(("name", "text"), SOURCES)
def test_a_source_that_does_otherwise_is_refused(
    db: PGMonkey[Any], app: FastAPI, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    remove_from_source(monkeypatch, name, text)
    assert refused(db, app) == f"the source of {name} does not contain {text}"


async def test_a_lifespan_refuses_before_it_connects(
    db: PGMonkey[Any], app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compat, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError) as error:
        async with db.lifespan(app):
            pass
    assert difference(error.value, INSTALLED, TESTED) == "there is no module fastapi.routing"
    assert "build_middleware_stack" not in vars(app)


@pytest.mark.parametrize("without", ["get_source", "loader"])
def test_no_source_is_no_reason_to_refuse(
    db: PGMonkey[Any], app: FastAPI, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    hide_sources(monkeypatch)
    if without == "loader":
        monkeypatch.setattr(_compat, "find_spec", lambda name: ModuleSpec(name, None))
    db.init_app(app)


def test_the_sources_are_read_once_in_a_process(
    db: PGMonkey[Any], app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.init_app(app)
    monkeypatch.setattr(_compat, "find_spec", None)
    db.init_app(FastAPI())


def test_a_request_without_the_stack_is_refused() -> None:
    with pytest.raises(RuntimeError) as error:
        _compat.end_of_function({"type": "http", "fastapi_function_astack": None})
    assert (
        difference(error.value, INSTALLED, TESTED)
        == "the scope of a request has no AsyncExitStack 'fastapi_function_astack'"
    )
