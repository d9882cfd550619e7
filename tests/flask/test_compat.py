"""A Flask whose internals changed is refused when an application is set up, with one clear error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.metadata import version

import pytest
from flask import Flask

from flask_pgmonkey import PGMonkey, _compat

from ..altered import difference, hide_sources, remove_from_source

INSTALLED = f"Flask {version('flask')} with Werkzeug {version('werkzeug')}"
TESTED = "Flask 3.0 to "
SOURCES = [(name, text) for name, texts in _compat._SOURCES.items() for text in texts]


@pytest.fixture(autouse=True)
def looked_at_anew() -> Iterator[None]:
    _compat._check_sources.cache_clear()
    yield
    _compat._check_sources.cache_clear()


@pytest.fixture
def app() -> Flask:
    app = Flask("shop")
    app.config["PGMONKEY_CONFIG"] = {"connection_settings": {"host": "127.0.0.1"}}  # nothing connects
    return app


def refused(app: Flask) -> str:
    before = dict(vars(app))
    with pytest.raises(RuntimeError) as error:
        PGMonkey(app)
    assert dict(vars(app)) == before
    assert not app.extensions
    return difference(error.value, INSTALLED, TESTED)


def test_what_is_installed_is_set_up(app: Flask) -> None:
    PGMonkey(app)


@pytest.mark.parametrize("name", ["wsgi_app", "preprocess_request", *_compat._CALLED_WITH_ONE_ARGUMENT])
def test_a_missing_method_is_refused(app: Flask, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(Flask, name)
    assert refused(app) == f"an application has no method {name}()"


@pytest.mark.parametrize("name", _compat._CALLED_WITH_ONE_ARGUMENT)
def test_other_arguments_are_refused(app: Flask, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(Flask, name, lambda self, context, argument: None)
    assert refused(app) == f"{name}(context, argument) cannot be called with one argument"


def test_another_mapping_of_error_handlers_is_refused(app: Flask) -> None:
    app.error_handler_spec = {}
    assert refused(app) == "an application has no mapping error_handler_spec[None][None]"


# A Flask whose proxies have another method for their object: in a process of its own, because that is looked at once.
OTHER_PROXY = """
import flask
class Proxy:
    def __getattr__(self, name):
        raise RuntimeError("Working outside of request context.")
flask.request = Proxy()
import flask_pgmonkey
"""


def test_another_proxy_is_refused() -> None:
    run = subprocess.run([sys.executable, "-c", OTHER_PROXY], capture_output=True, text=True, check=False)
    kind, _, message = run.stderr.splitlines()[-1].partition(": ")
    assert kind == "RuntimeError"
    assert (
        difference(RuntimeError(message), INSTALLED, TESTED)
        == "flask.current_app or flask.request has no method _get_current_object()"
    )


@pytest.mark.parametrize(("name", "text"), SOURCES)
def test_a_source_that_does_otherwise_is_refused(
    app: Flask, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    remove_from_source(monkeypatch, name, text)
    assert refused(app) == f"the source of {name} does not contain {text}"


def test_a_missing_module_is_refused(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compat, "find_spec", lambda name: None)
    assert refused(app) == "there is no module flask.app"


@pytest.mark.parametrize("without", ["get_source", "loader"])
def test_no_source_is_no_reason_to_refuse(app: Flask, monkeypatch: pytest.MonkeyPatch, without: str) -> None:
    hide_sources(monkeypatch)
    if without == "loader":
        monkeypatch.setattr(_compat, "find_spec", lambda name: ModuleSpec(name, None))
    PGMonkey(app)


def test_the_sources_are_read_once_in_a_process(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    PGMonkey(app)
    monkeypatch.setattr(_compat, "find_spec", None)
    other = Flask("other")
    other.config.update(app.config)
    PGMonkey(other)
