"""A Flask whose internals changed is refused when an application is set up, with one clear error."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from ..altered import run_altered

PROGRAM = """
from flask import Flask
from flask_pgmonkey import PGMonkey
app = Flask("shop")
app.config["PGMONKEY_CONFIG"] = {config!r}
PGMonkey().init_app(app)
print("set up")
"""


def set_up(folder: Path, config: dict[str, Any], changes: dict[str, str]) -> str:
    return run_altered(folder, ("flask", "werkzeug"), changes, PROGRAM.format(config=config))


def test_what_is_installed_is_set_up(tmp_path: Path, config: dict[str, Any]) -> None:
    assert set_up(tmp_path, config, {"Flask": "Flask"}) == "set up\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"handle_user_exception": "handle_view_exception"}, "an application has no method handle_user_exception()"),
        (
            {
                "def handle_user_exception(\n        self, ": "def handle_user_exception(\n        self, context, ",
                "self.handle_user_exception(e)": "self.handle_user_exception(None, e)",
            },
            "handle_user_exception(context, e: 'Exception')",
        ),
        (
            {"self.handle_user_exception(e)": "type(self).handle_user_exception(self, e)"},
            "['wsgi_app', 'preprocess_request /raises', 'handler', 'response 418'], not in the order ['wsgi_app',",
        ),
        ({"preprocess_request": "before_dispatch"}, "an application has no method preprocess_request()"),
        (
            {"self.preprocess_request()": "type(self).preprocess_request(self)"},
            "in the order ['wsgi_app', 'response 200'], not in the order",
        ),
        (
            {"self.wsgi_app(environ, start_response)": "type(self).wsgi_app(self, environ, start_response)"},
            "in the order ['preprocess_request /returns', 'response 200'], not in the order",
        ),
        ({"werkzeug.request": "werkzeug.wrapper"}, "['wsgi_app', 'preprocess_request None', 'response 200']"),
        ({"error_handler_spec": "error_handlers"}, "no mapping error_handler_spec[None][None]"),
        ({"_get_current_object": "_proxied"}, "has no method _get_current_object()"),
    ],
)
def test_a_change_is_refused(tmp_path: Path, config: dict[str, Any], changes: dict[str, str], message: str) -> None:
    output = set_up(tmp_path, config, changes)
    last = output.splitlines()[-1]
    assert last.startswith(f"RuntimeError: Flask {version('flask')} with Werkzeug {version('werkzeug')}: "), output
    assert message in last
    assert "this release of pgmonkey works with Flask 3.0 to" in last
    assert "set up" not in output.splitlines()
