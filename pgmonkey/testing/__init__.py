"""Tests that leave nothing behind: databases from a template, and a sandbox for all that an application does.

pytest finds the fixtures by itself (`pgmonkey.testing.plugin`); the names here are for overriding and typing them.
Each is loaded when it is first asked for.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from ._redirection import SandboxError as SandboxError
    from ._sandbox import Sandbox as Sandbox
    from ._sandbox import Statements as Statements
    from ._sandbox import sandbox as sandbox
    from ._sandbox import statements as statements
    from ._schema import Schema as Schema
    from ._schema import command as command
    from ._schema import django_migrations as django_migrations
    from ._schema import function as function
    from ._schema import sql_files as sql_files
    from ._server import TestServer as TestServer
    from ._template import Template as Template
    from ._template import TestDatabase as TestDatabase
    from ._template import template as template
    from ._visits import HEADER as HEADER
    from ._visits import environ as environ
    from ._visits import visit as visit

_HOMES = {
    "HEADER": "_visits",
    "Sandbox": "_sandbox",
    "SandboxError": "_redirection",
    "Schema": "_schema",
    "Statements": "_sandbox",
    "Template": "_template",
    "TestDatabase": "_template",
    "TestServer": "_server",
    "command": "_schema",
    "environ": "_visits",
    "django_migrations": "_schema",
    "function": "_schema",
    "sandbox": "_sandbox",
    "sql_files": "_schema",
    "statements": "_sandbox",
    "template": "_template",
    "visit": "_visits",
}
__all__ = [
    "HEADER",
    "Sandbox",
    "SandboxError",
    "Schema",
    "Statements",
    "Template",
    "TestDatabase",
    "TestServer",
    "command",
    "django_migrations",
    "environ",
    "function",
    "sandbox",
    "sql_files",
    "statements",
    "template",
    "visit",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
