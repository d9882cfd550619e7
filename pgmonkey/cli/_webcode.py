"""The applications that ``pgmonkey pgconfig generate-code --framework`` prints: one file that runs as it is."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import indent

from .._config.schema import Kind

_RUN = {
    "flask": "flask --app FILE run",
    "fastapi": "uvicorn FILE:app  (FILE without its .py)",
    "django": "python FILE.py runserver",
}
_ROUTE = {"flask": '@app.get("/")\n', "fastapi": '@app.get("/")\n', "django": ""}
_ANSWER = {"flask": '{"version": version}', "fastapi": '{"version": version}'}
_SQL = '"SELECT version()"'
# Pools of asyncio belong to an event loop, and there each view may get a new one.
_NO_LOOP = "# A pool lives in one event loop, and there may be a new one for each request: 'pool' serves better here.\n"
_LIFESPAN = """

@asynccontextmanager
async def lifespan(app):
    global pool
    {word} {opening} as pool:
        yield


"""
_DJANGO = """\
project.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
{databases}    DEBUG=True,
    ROOT_URLCONF=__name__,
    SECRET_KEY=secrets.token_urlsafe(),  # a new one at each start
)
"""
_DJANGO_END = """

urlpatterns = [path("", show)]
application = get_{interface}_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
"""


def pgmonkey_code(framework: str, config: str, kind: Kind, flags: Mapping[str, object]) -> str:
    """Return an application on pgmonkey's integration; *config* is the expression for the file or URL."""
    is_async = kind.startswith("async")
    standard = ["import os"] if config.startswith("os.") else []
    if framework == "fastapi":
        options = "".join(f", {name}={value!r}" for name, value in flags.items())
        connection = "AsyncConnection" if is_async else "Connection"
        dependency = "connection" if is_async else "sync_connection"
        body = f"cursor = await conn.execute({_SQL})\n(version,) = await cursor.fetchone()\n"
        return _program(
            framework,
            is_async,
            [*standard, "from typing import Annotated"],
            [
                "from fastapi_pgmonkey import PGMonkey",
                f"from psycopg import {connection}",
            ],
            f"db = PGMonkey({config}{options})\n",
            body if is_async else f"(version,) = conn.execute({_SQL}).fetchone()\n",
            parameters=f"conn: Annotated[{connection}, Depends(db.{dependency})]",
            application="lifespan=db.lifespan",
        )
    if framework == "django":
        options = "".join(f', "{name}": {value!r}' for name, value in flags.items())
        entry = f'{{"ENGINE": "django_pgmonkey", "OPTIONS": {{"config": {config}{options}}}}}'
        databases = (
            f'    DATABASES={{"default": {entry}}},\n'
            '    MIDDLEWARE=["django_pgmonkey.middleware.TransactionMiddleware"],\n'
        )
        sync = f"with connection.cursor() as cursor:\n    cursor.execute({_SQL})\n    (version,) = cursor.fetchone()\n"
        body = f"version = await django_pgmonkey.database().fetch_value({_SQL})\n" if is_async else sync
        third = ["import django_pgmonkey"] if is_async else ["from django.db import connection"]
        return _program(framework, is_async, standard, third, "", body, databases=databases)
    if is_async:
        # The extension is for threads.
        options = "".join(f", {name}={value!r}" for name, value in flags.items())
        body = (
            f"database = await manager.get_database_connection({config}, {kind!r}{options})\n"
            "async with database as conn:\n"
            f"    cursor = await conn.execute({_SQL})\n    (version,) = await cursor.fetchone()\n"
            "await manager.clear_cache_async()\n"
        )
        third = ["from pgmonkey import PGConnectionManager"]
        return _program(framework, True, standard, third, "manager = PGConnectionManager()\n", _NO_LOOP + body)
    options = "".join(f", PGMONKEY_{name.upper()}={value!r}" for name, value in flags.items())
    after = f"app.config.update(PGMONKEY_CONFIG={config}{options})\ndb = PGMonkey(app)\n"
    third = ["from flask_pgmonkey import PGMonkey"]
    return _program(framework, False, standard, third, "", f"version = db.fetch_value({_SQL})\n", after=after)


def psycopg_code(framework: str, kind: Kind, settings: str, pool: str, standard: list[str], third: list[str]) -> str:
    """Return an application on psycopg alone: *settings* is code, *pool* the arguments of a pool."""
    is_async, pooled = kind.startswith("async"), kind.endswith("pool")
    opening = f"psycopg_pool.{'Async' if is_async else ''}ConnectionPool({pool})"
    third = ["import psycopg_pool" if pooled else "import psycopg", *third]
    word, wait = ("async with", "await ") if is_async else ("with", "")
    connect = "await psycopg.AsyncConnection.connect(**settings)" if is_async else "psycopg.connect(**settings)"
    handle = "pool.connection()" if pooled else connect
    use = (
        f"{word} {handle} as conn:\n    cursor = {wait}conn.execute({_SQL})\n    (version,) = {wait}cursor.fetchone()\n"
    )
    before, application = settings, ""
    if pooled and framework == "fastapi":
        before += _LIFESPAN.format(word=word, opening=opening)
        standard, application = [*standard, "from contextlib import asynccontextmanager"], "lifespan=lifespan"
    elif pooled and is_async:
        use = _NO_LOOP + f"async with {opening} as pool:\n" + indent(use, "    ")
    elif pooled:
        before += f"pool = {opening[:-1]}, open=True)\natexit.register(pool.close)\n"
        standard = [*standard, "import atexit"]
    return _program(framework, is_async, standard, third, before, use, application=application)


def _program(
    framework: str,
    is_async: bool,
    standard: list[str],
    third: list[str],
    before: str,
    body: str,
    *,
    parameters: str = "",
    application: str = "",
    after: str = "",
    databases: str = "",
) -> str:
    """Return the whole file: *before* the application and *after* it, and the *body* of its view."""
    answer = _ANSWER.get(framework, 'JsonResponse({"version": version})')
    view = f"{'async ' if is_async else ''}def show({parameters or ('request' if framework == 'django' else '')}):\n"
    view = f"\n\n{_ROUTE[framework]}{view}{indent(body, '    ')}    return {answer}\n"
    if framework == "django":
        interface = "asgi" if is_async else "wsgi"
        standard = [*standard, "import secrets", "import sys"]
        third = [
            *third,
            "from django.conf import settings as project",
            "from django.core.management import execute_from_command_line",
            f"from django.core.{interface} import get_{interface}_application",
            "from django.http import JsonResponse",
            "from django.urls import path",
        ]
        middle = before + _DJANGO.format(databases=databases) + view + _DJANGO_END.format(interface=interface)
    elif framework == "flask":
        third = [*third, "from flask import Flask"]
        middle = f"{before}app = Flask(__name__)\n{after}{view}"
    else:
        third = [*third, "from fastapi import Depends, FastAPI" if parameters else "from fastapi import FastAPI"]
        middle = f"{before}app = FastAPI({application})\n{view}"
    head = [_imports(group) for group in (standard, third) if group]
    return f'"""Run with: {_RUN[framework]}"""\n\n' + "\n".join(head) + "\n" + middle


def _imports(lines: list[str]) -> str:
    # In the order of isort and ruff: "import" before "from".
    return "".join(f"{line}\n" for line in sorted(sorted(set(lines)), key=lambda line: line.startswith("from")))
