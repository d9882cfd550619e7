"""A FastAPI or a Starlette whose internals changed is refused when the application starts, with one clear error."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from ..altered import run_altered

PROGRAM = """
import asyncio
from fastapi import FastAPI
from fastapi_pgmonkey import PGMonkey
db = PGMonkey({config!r})
app = FastAPI(lifespan=db.lifespan)
async def start():
    async with app.router.lifespan_context(app):
        print("started")
asyncio.run(start())
"""
HANDLERS = "starlette.exception_handlers"
SENT = "await response(scope, receive, send)\n"


def start(folder: Path, config: dict[str, Any], changes: dict[str, str], only: str = "*.py") -> str:
    packages = ("fastapi", "starlette")
    return run_altered(folder, packages, changes, PROGRAM.format(config=config), only=only)


def test_what_is_installed_starts(tmp_path: Path, config: dict[str, Any]) -> None:
    assert start(tmp_path, config, {"Starlette": "Starlette"}) == "started\n"


@pytest.mark.parametrize(
    ("changes", "only", "message"),
    [
        ({"fastapi_function_astack": "fastapi_endpoint_astack"}, "*.py", "no AsyncExitStack 'fastapi_function_astack'"),
        (
            {f"response = await f(request)\n                {SENT}": f"response = await f(request)\n{' ' * 20}{SENT}"},
            "routing.py",
            "in the order ['response 200', 'end of function'], not in the order ['end of function', 'response 200']",
        ),
        ({"starlette.exception_handlers": "starlette.handlers"}, "*.py", "handlers 'starlette.exception_handlers'"),
        (
            {
                'conn.scope["starlette.exception_handlers"]': 'conn.scope["handlers"]',
                f' scope["{HANDLERS}"] =': f" scope['handlers'] = scope[{HANDLERS!r}] =",
            },
            "*exception*.py",
            "in the order ['end of function', 'replaced handler', 'response 500'], not in the order",
        ),
        ({"is_async_callable": "is_coroutine_function"}, "*.py", "starlette._utils has no is_async_callable"),
        ({"self.middleware_stack": "self.wrapped_app"}, "routing.py", "the router of an application has no"),
        ({"user_middleware": "middlewares"}, "*.py", "no list 'user_middleware'"),
        ({"build_middleware_stack": "build_stack"}, "*.py", "no 'build_middleware_stack()'"),
        ({"self.exception_handlers": "self.handlers"}, "applications.py", "no dict 'exception_handlers'"),
        ({"self.app = self._base_app": "self.inner = self._base_app"}, "routing.py", "Mount has no attribute 'app'"),
    ],
)
def test_a_change_is_refused(
    tmp_path: Path, config: dict[str, Any], changes: dict[str, str], only: str, message: str
) -> None:
    output = start(tmp_path, config, changes, only)
    last = output.splitlines()[-1]
    assert last.startswith(f"RuntimeError: FastAPI {version('fastapi')} with Starlette {version('starlette')}: "), (
        output
    )
    assert message in last
    assert "this release of pgmonkey works with FastAPI 0.121 to" in last
    assert "started" not in output
